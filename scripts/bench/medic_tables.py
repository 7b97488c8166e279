"""MEDIC's tables and picture from a benchmark's rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import ttest_rel

from datamodules.builtin.scenes import TASKS
from scripts.bench.results import claims_table, markdown, mean_and_error, mean_text, setting_line
from vision.pictures import ACCENT, INK, MUTED, Picture, render

Row = Mapping[str, Any]
CHANCE = 0.05
_TITLES = {"timm:test_resnet": "timm's test_resnet (the demo's), 64 px"}


def _group(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["group"] == name]


def score(rows: Sequence[Row], contender: str, seed: int, tasks: Sequence[str] = tuple(TASKS)) -> float:
    """The mean weighted F1 of a training over tasks."""
    (found,) = [row for row in _group(rows, "trained") if (row["contender"], row["seed"]) == (contender, seed)]
    return statistics.fmean(found["metrics"][f"{task}_f1_weighted"] for task in tasks)


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({row["seed"] for row in _group(rows, "trained")})


def _title(network: str) -> str:
    return _TITLES.get(network, f"{network}, 224 px")


def _costs(rows: Sequence[Row]) -> str:
    counts = {(row["network"], row["form"]): row["metrics"] for row in _group(rows, "counts")}
    times = {(row["network"], row["form"], row["what"]): row["metrics"] for row in _group(rows, "times")}
    cells = []
    for network, form in counts:
        of = counts[network, form]
        cells.append(
            [
                f"{_title(network)}: {form}",
                f"{of['parameters'] / 1e6:.2f}",
                f"{of['macs'] / 1e6:.0f}",
                f"{of['saved_activations_mib_per_image']:.1f}",
                *(f"{times[network, form, what]['ms']:.1f}" for what in ("latency", "step")),
                *(f"{times[network, form, what]['of_four']:.2f}" for what in ("latency", "step")),
            ]
        )
    columns = ["", "parameters, M", "MACs, M", "kept in training, MiB/image", "one image, ms", "step, ms"]
    return markdown([*columns, "one image, of four's", "step, of four's"], cells)


def _together(rows: Sequence[Row]) -> str:
    seeds = _seeds(rows)
    if not seeds:
        return ""
    cells = []
    for task in TASKS:
        one = [100 * score(rows, "together", seed, [task]) for seed in seeds]
        own = [100 * score(rows, f"only_{task}", seed, [task]) for seed in seeds]
        (majority, *_) = [
            100 * row["metrics"][f"{task}_majority_f1_weighted"] for row in rows if row.get("contender") == "together"
        ]
        gains = [a - b for a, b in zip(one, own, strict=True)]
        spreads = [
            mean_text(mean_and_error(one)),
            mean_text(mean_and_error(own)),
            mean_text(mean_and_error(gains), True),
        ]
        cells.append([task, *spreads, f"{majority:.1f}"])
    columns = ["weighted F1, %", "one network", "a network of its own", "difference, points", "most frequent class"]
    return markdown(columns, cells)


def _contenders(rows: Sequence[Row], names: Sequence[str], titles: Sequence[str], over: str) -> str:
    seeds = _seeds(rows)
    if not seeds:
        return ""
    cells = []
    for name, title in zip(names, titles, strict=True):
        by_task = [
            mean_text(mean_and_error([100 * score(rows, name, seed, [task]) for seed in seeds])) for task in TASKS
        ]
        mean = mean_and_error([100 * score(rows, name, seed) for seed in seeds])
        gain = mean_and_error([100 * (score(rows, name, seed) - score(rows, over, seed)) for seed in seeds])
        shown = mean_text(gain, True) if name != over else ""
        cells.append([title, *by_task, mean_text(mean), shown])
    return markdown(["weighted F1, %", *TASKS, "mean", f"over {over.lower()}, points"], cells)


def _rules(rows: Sequence[Row]) -> list[str]:
    others = {"together", "hidden", "dropped", *(f"only_{task}" for task in TASKS)}
    found = {row["contender"] for row in _group(rows, "trained")} - others
    return sorted(found, key=lambda name: -statistics.fmean(score(rows, name, seed) for seed in _seeds(rows)))


def _weightings(rows: Sequence[Row]) -> str:
    names = _rules(rows)
    return _contenders(rows, names, names, "Equal")


def _reading(rows: Sequence[Row]) -> str:
    """Whether any weighting is better than equal weights beyond chance, from the rows themselves."""
    seeds = _seeds(rows)
    if not seeds:
        return ""
    others = [name for name in _rules(rows) if name != "Equal"]
    equal = [score(rows, "Equal", seed) for seed in seeds]
    better = []
    for name in others:
        found = ttest_rel([score(rows, name, seed) for seed in seeds], equal, alternative="greater")
        if found.pvalue < CHANCE / len(others):
            better.append(name)
    test = f"paired t-tests over {len(seeds)} seeds, {CHANCE:.0%} for the {len(others)} weightings together"
    if better:
        return f"Better than equal weights beyond chance ({test}): {', '.join(better)}."
    return f"No weighting is better than equal weights beyond chance ({test})."


def _partial(rows: Sequence[Row]) -> str:
    titles = ["labels hidden, rows kept", "rows with a gap dropped"]
    return _contenders(rows, ["hidden", "dropped"], titles, "dropped")


def cost_shares(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Column headers, and for each network what one costs as a share of what four cost."""
    counts = {(row["network"], row["form"]): row["metrics"] for row in _group(rows, "counts")}
    times = {(row["network"], row["what"]): row["metrics"] for row in _group(rows, "times") if row["form"] == "one"}
    cells = []
    for network in dict.fromkeys(network for network, _ in counts):
        one, four = counts[network, "one"], counts[network, "four"]
        keys = ("parameters", "macs", "saved_activations_mib_per_image")
        shares = [f"{one[key] / four[key]:.2f}" for key in keys]
        shares += [f"{times[network, what]['of_four']:.2f}" for what in ("latency", "step")]
        cells.append([_title(network), *shares])
    columns = ["one network, of four's", "parameters", "MACs", "activations kept in training", "time for one image"]
    return [*columns, "time of a training step"], cells


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """The tables that pages may show, by name, from a result as the JSON file has it; empty where rows are missing."""
    rows = result["rows"]
    return {
        "headline": markdown(*cost_shares(rows)),
        "costs": _costs(rows),
        "together": _together(rows),
        "weightings": _weightings(rows),
        "reading": _reading(rows),
        "partial": _partial(rows),
        "claims": claims_table(result["claims"]),
        "setting": setting_line(result),
    }


def pictures(result: Mapping[str, Any]) -> dict[str, Picture]:
    """By what is added to the file's name: the weightings' F1 over equal weights, seed by seed."""
    rows = result["rows"]
    return {"": _gains(rows)} if _seeds(rows) else {}


def _gains(rows: Sequence[Row]) -> Picture:
    names = [name for name in _rules(rows) if name != "Equal"][::-1]
    figure = Figure(figsize=(7.2, 3.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        gains = [100 * (score(rows, name, seed) - score(rows, "Equal", seed)) for seed in _seeds(rows)]
        spread = mean_and_error(gains)
        axes.plot([spread.low, spread.high], [place, place], color=ACCENT, linewidth=3, solid_capstyle="butt")
        axes.plot(gains, [place] * len(gains), color=INK, marker="o", markersize=4, linestyle="")
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("points of mean weighted F1 over equal weights (dots: seeds; bar: mean ± s.e.)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis="x", color=MUTED, alpha=0.25)
    return render(figure)
