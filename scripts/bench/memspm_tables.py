"""What the benchmark of MemSPM shows: tables and pictures of its rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scripts.bench.memspm_runs import METHODS, VARIANTS, values
from scripts.bench.results import claims_table, markdown, setting_line
from vision.memspm.rejection import RULES
from vision.pictures import ACCENT, BAD, MUTED, Picture, render

Row = Mapping[str, Any]
NAMES = {
    "source_only": "source only",
    "ovanet": "OVANet",
    "dance": "DANCE",
    "dcc": "DCC",
    "memspm": "MemSPM",
    "memspm online": "MemSPM, online clusters",
    "memspm random": "MemSPM, random memory",
    "memspm paper": "MemSPM as on paper (random memory, temperature 1, K - 1 survive)",
    "memspm one sub": "MemSPM, one sub-prototype an item",
    "memspm no cdd": "MemSPM without CDD",
    "memspm no regulariser": "MemSPM without the prototypical regulariser",
    "memspm decoder": "MemSPM with a decoder (28 px) and its loss",
}
# What each is shown with: the rule of its publication, and Otsu's thresholds.
SHOWN = {
    "source_only": ("half_log_c", "otsu", "neighbours"),
    "ovanet": ("one_vs_all", "otsu"),
    "dance": ("half_log_c", "otsu"),
    "dcc": ("cluster", "otsu", "cluster_otsu"),
    "memspm": ("cluster", "cluster_otsu", "usage", "fused", "blend"),
}
WORDS: dict[str, str] = {
    **{str(rule): words for rule, words in RULES.items()},
    "neighbours": "Otsu on the source's share of 50 neighbours (a control)",
}
LABELS = {"fonts": "print to handwriting", "styles": "styles of handwriting"}


def adapted(rows: Sequence[Row], setting: str = "unida") -> list[Row]:
    """The trainings of a setting."""
    return [row for row in rows if row["group"] == "adapted" and row["setting"] == setting]


def pairs_of(rows: Sequence[Row]) -> list[str]:
    """The pairs of domains, in their order."""
    return list(dict.fromkeys(sorted(row["pair"] for row in rows if row["group"] == "adapted")))


def spread_text(found: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not found:
        return ""
    return f"{statistics.fmean(found):.1f}" + (f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else "")


def _measured(rows: Sequence[Row], pair: str, contender: str, metric: str, setting: str = "unida") -> list[float]:
    try:
        return values(rows, pair, setting, contender, metric)
    except KeyError:  # not defined in this setting, or not of this method
        return []


def methods_cells(rows: Sequence[Row], measures: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of every method under every rule: mean and standard deviation over the seeds."""
    pairs = pairs_of(rows)
    cells: list[list[str]] = []
    for contender, rules in SHOWN.items():
        for rule in rules:
            columns = [
                spread_text(_measured(rows, pair, contender, f"{rule}_{name}")) for pair in pairs for name in measures
            ]
            if any(columns):
                cells.append([f"{NAMES[contender]}: {WORDS[rule]}", *columns])
    heads = [f"{LABELS.get(pair, pair)}: {name.upper()}" for pair in pairs for name in measures]
    return ["%, mean ± standard deviation", *heads], cells


def _methods(rows: Sequence[Row], *measures: str) -> str:
    columns, cells = methods_cells(rows, measures)
    return markdown(columns, cells) if cells else ""


def _variants(rows: Sequence[Row]) -> str:
    cells = []
    for contender in ("memspm", *VARIANTS):
        seeds = sorted({row["seed"] for row in adapted(rows) if row["contender"] == contender})
        if not seeds:
            continue
        columns = []
        for pair in pairs_of(rows):
            gains = difference(rows, pair, contender, "memspm")
            columns.append(spread_text(_measured(rows, pair, contender, "blend_h")))
            columns.append("" if contender == "memspm" else f"{statistics.fmean(gains):+.1f}")
            columns += [
                f"{statistics.fmean(_measured(rows, pair, contender, name)) / 100:.2f}"
                for name in ("used", "purity", "style_nmi")
            ]
        cells.append([NAMES[contender], len(seeds), *columns])
    names = ("H, %", "less MemSPM's", "used", "purity", "style NMI")
    heads = [f"{LABELS.get(pair, pair)}: {name}" for pair in pairs_of(rows) for name in names]
    return markdown(["", "seeds", *heads], cells) if cells else ""


def difference(rows: Sequence[Row], pair: str, one: str, other: str, metric: str = "blend_h") -> list[float]:
    """A measure of ``one`` less that of ``other``, by the seeds that both have; in points."""
    found = {(row["contender"], row["seed"]): row["metrics"] for row in adapted(rows) if row["pair"] == pair}
    seeds = sorted({seed for contender, seed in found if contender == one} & {s for c, s in found if c == other})
    return [100 * (found[one, seed][metric] - found[other, seed][metric]) for seed in seeds]


def settings_table(rows: Sequence[Row]) -> str:
    """The settings in which something is known beforehand."""
    cells = []
    for setting in dict.fromkeys(row["setting"] for row in rows if row["group"] == "adapted"):
        for contender in METHODS:
            found = [row for row in adapted(rows, setting) if row["contender"] == contender]
            if not found:
                continue
            rule = found[0]["rule"]
            name = f"{rule}_h" if setting in ("unida", "osda") else f"{rule}_accuracy"
            columns = [spread_text(_measured(rows, pair, contender, name, setting)) for pair in pairs_of(rows)]
            measure = "H" if name.endswith("_h") else "accuracy"
            cells.append([f"{setting}: {NAMES[contender]}, its own rule", measure, *columns])
    heads = [LABELS.get(pair, pair) for pair in pairs_of(rows)]
    return markdown(["%, mean ± standard deviation", "measure", *heads], cells) if cells else ""


def _selection(rows: Sequence[Row]) -> str:
    cells = []
    for contender in ("dcc", "memspm"):
        columns = [
            spread_text(_measured(rows, pair, contender, name))
            for pair in pairs_of(rows)
            for name in ("last_h", "consensus_h")
        ]
        if any(columns):
            cells.append([NAMES[contender], *columns])
    heads = [f"{LABELS.get(pair, pair)}: {name}" for pair in pairs_of(rows) for name in ("last step", "best consensus")]
    return markdown(["H, %, by its own rule", *heads], cells) if cells else ""


def _costs(rows: Sequence[Row]) -> str:
    cells = [
        [f"{row['what']}: {row['form']}", f"{row['metrics']['ms']:.4g}", f"{row['metrics']['times_as_fast']:.3g}"]
        for row in rows
        if row["group"] == "costs"
    ]
    return markdown(["", "ms", "times as fast"], cells) if cells else ""


def _headline(rows: Sequence[Row]) -> str:
    shown = [
        ("source_only", "half_log_c"),
        ("source_only", "otsu"),
        ("source_only", "neighbours"),
        ("dcc", "cluster"),
        ("dcc", "cluster_otsu"),
        ("memspm", "fused"),
        ("memspm", "blend"),
    ]
    cells = []
    for contender, rule in shown:
        columns = [spread_text(_measured(rows, pair, contender, f"{rule}_h")) for pair in pairs_of(rows)]
        cells.append([f"{NAMES[contender]}: {WORDS[rule]}", *columns])
    heads = [LABELS.get(pair, pair) for pair in pairs_of(rows)]
    return markdown(["H, %, mean ± standard deviation over ten seeds", *heads], cells)


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by name."""
    rows = result["rows"]
    if not any(row["group"] == "costs" for row in rows):  # of a user's own domains
        return {"setting": setting_line(result), "settings": settings_table(rows)}
    return {
        "setting": setting_line(result),
        "headline": _headline(rows) if adapted(rows) else "",
        "methods": _methods(adapted(rows), "h", "h3", "auroc"),
        "accuracy": _methods(adapted(rows), "common", "unknown", "oscr"),
        "variants": _variants(rows),
        "settings": settings_table(rows),
        "selection": _selection(rows),
        "costs": _costs(rows),
        "claims": claims_table(result["claims"]),
    }


def pictures(result: Mapping[str, Any]) -> dict[str, Picture]:
    """H by method and seed."""
    rows = adapted(result["rows"])
    if not rows or len(rows) == len(result["rows"]):
        return {}
    shown = [("source_only", "otsu"), ("source_only", "neighbours"), ("dcc", "cluster"), ("dcc", "cluster_otsu")]
    shown += [("memspm", "fused"), ("memspm", "blend")]
    figure = Figure(figsize=(10, 3.8), dpi=110, layout="constrained")
    pairs = pairs_of(rows)
    for axes, pair in zip(np.atleast_1d(figure.subplots(1, len(pairs), sharey=True)), pairs, strict=True):
        for place, (contender, rule) in enumerate(shown):
            found = _measured(rows, pair, contender, f"{rule}_h")
            if not found:
                continue
            colour = {"memspm": ACCENT, "dcc": BAD}.get(contender, MUTED)
            axes.scatter(np.linspace(place - 0.15, place + 0.15, len(found)), found, s=14, color=colour, alpha=0.6)
            axes.plot([place - 0.3, place + 0.3], [statistics.fmean(found)] * 2, color=colour, linewidth=2.5)
        labels = ["source,\nOtsu", "source, 50\nneighbours", "DCC", "DCC,\nOtsu", "MemSPM,\nfused", "MemSPM,\nblend"]
        axes.set(title=LABELS.get(pair, pair), xticks=range(len(shown)), xticklabels=labels)
        axes.set_ylim(0, 100)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("H, %; a dot a seed, the bar their mean")
    return {"": render(figure)}
