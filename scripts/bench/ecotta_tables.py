"""EcoTTA's tables and pictures, from a result's JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from scripts.bench.results import claims_table, markdown, mean_and_error, mean_text, setting_line
from vision.pictures import ACCENT, BAD, MUTED, Picture, render

Row = Mapping[str, Any]
# What stands in the table of one rate, and what it is called there.
AT_THE_RATE = {
    "tent lr 0.1": "TENT",
    "ecotta lr 0.1": "EcoTTA", "ecotta lr 0.1 guard": "EcoTTA with guard",
    "ecotta lr 0.1 eager": "EcoTTA, exact gradients (eager)",
    "ecotta lr 0.1 calibrated": "EcoTTA without warm-up (calibrated)",
}  # fmt: skip
OWN_RECIPES = {"tent": "TENT", "eata": "EATA", "cotta": "CoTTA", "rdumb": "RDumb"}


def group(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of a group."""
    return [row for row in rows if row["group"] == name]


def of_runs(rows: Sequence[Row], contender: str, metric: str, rounds: int = 12, batch: int = 32) -> list[float]:
    """A measure of a contender, a value a seed, in percent; shares only."""
    found = [
        row
        for row in group(rows, "streams")
        if (row["contender"], row["rounds"], row["batch"]) == (contender, rounds, batch)
    ]
    return [100 * row["metrics"][metric] for row in sorted(found, key=lambda row: int(row["seed"]))]


def _mean(rows: Sequence[Row], contender: str, metric: str, rounds: int = 12, batch: int = 32) -> str:
    values = of_runs(rows, contender, metric, rounds, batch)
    return mean_text(mean_and_error(values)) if len(values) > 1 else "".join(f"{value:.1f}" for value in values)


def _memory(rows: Sequence[Row]) -> str:
    cells = []
    for row in group(rows, "memory"):
        found = row["metrics"]
        printed = found["printed_mb"]
        cells.append(
            [
                f"{row['network']}, batches of {row['batch']}: {row['method']}",
                f"{found['paper_mb']:.1f}",
                f"{printed:g}" if printed is not None else "",
                f"{found['held_mb']:.0f}",
                f"{found['copies_mb']:.0f}" if found["copies_mb"] else "",
                f"{found['trained_parameters']:,}",
            ]
        )
    columns = ["MB", "by the paper's count", "printed in the paper", "really held", "copies", "trained parameters"]
    return markdown(columns, cells)


def _backbones(rows: Sequence[Row]) -> str:
    cells = []
    for row in group(rows, "backbones"):
        found = row["metrics"]
        cells.append(
            [
                row["name"],
                "+".join(map(str, row["groups"])),
                row["form"],
                f"{found['trained_parameters'] / found['parameters']:.1%}",
                *(f"{found[key] / 1e6:.1f}" for key in ("tent_held_bytes", "eager_held_bytes", "memsave_held_bytes")),
                f"{found['memsave_held_bytes'] / found['tent_held_bytes']:.2f}",
            ]
        )
    columns = [
        *("timm's network", "blocks found, by group", "meta networks", "their weights, of the network's"),
        *("TENT holds, MB an image", "EcoTTA eager", "EcoTTA memsave", "memsave, of TENT"),
    ]
    return markdown(columns, cells)


def _steps(rows: Sequence[Row]) -> str:
    cells = [
        [row["method"], f"{row['metrics']['ms']:.0f}", f"{row['metrics']['of_eager']:.2f}"]
        for row in group(rows, "steps")
    ]
    batch = next((row["batch"] for row in group(rows, "steps")), 0)
    return markdown([f"WRN-40-2, batches of {batch}", "ms a step", "of EcoTTA's, eager"], cells)


def _streams(rows: Sequence[Row]) -> str:
    if not group(rows, "streams"):
        return ""
    cells = [
        [name, "", _mean(rows, key, "error", 1), "", _mean(rows, key, "clean_error", 1)]
        for key, name in (("source", "Source"), ("bn", "batch statistics"), ("adaptbn", "AdaptBN"))
    ]
    for names, recipe in ((AT_THE_RATE, "SGD 0.1"), (OWN_RECIPES, "Adam 0.001")):
        for key, name in names.items():
            values = (_mean(rows, key, metric) for metric in ("error", "last_error", "clean_error"))
            cells.append([name, recipe, *values])
    columns = ["error, %", "descent", "corrupted: mean of 12 rounds", "last round", "clean: last round"]
    return markdown(columns, cells)


def _rates(rows: Sequence[Row]) -> str:
    if not group(rows, "streams"):
        return ""
    rates = sorted({row["contender"].split()[-1] for row in group(rows, "streams") if _is_rate(row)}, key=float)
    cells = [
        [name + what, *(_mean(rows, f"{key} lr {rate}", metric) for rate in rates)]
        for key, name in (("tent", "TENT"), ("ecotta", "EcoTTA"))
        for metric, what in (("error", ": corrupted, mean of 12 rounds"), ("clean_error", ": clean, last round"))
    ]
    return markdown(["error, %, by the learning rate of SGD", *rates], cells)


def _is_rate(row: Row) -> bool:
    words = row["contender"].split()
    return len(words) == 3 and words[0] in ("tent", "ecotta") and row["batch"] == 32 and row["rounds"] == 12


def _single(rows: Sequence[Row]) -> str:
    runs = list(dict.fromkeys(row["contender"] for row in group(rows, "streams") if row["batch"] == 1))
    cells = [[name, _mean(rows, name, "error", 1, 1)] for name in runs]
    return markdown(["one image at a time", "error, %"], cells) if cells else ""


def _guarded(rows: Sequence[Row]) -> str:
    cells = []
    for key in ("tent lr 0.3", "tent lr 0.3 guard", "ecotta lr 0.3", "ecotta lr 0.1", "ecotta lr 0.1 guard"):
        found = [row for row in group(rows, "streams") if row["contender"] == key and row["rounds"] == 12]
        if not found:
            return ""
        values = [_mean(rows, key, metric) for metric in ("error", "last_error", "clean_error")]
        back = ", ".join(str(row["metrics"]["rollbacks"]) for row in found)
        first = ", ".join(str(row["metrics"]["first_rollback_step"]) for row in found)
        cells.append([key, *values, back, first if "guard" in key else ""])
    columns = ["error, %", "corrupted: mean of 12 rounds", "last round", "clean: last round"]
    return markdown([*columns, "rollbacks by seed", "first one at step"], cells)


def _long(rows: Sequence[Row]) -> str:
    cells = []
    for row in group(rows, "streams"):
        if row["rounds"] != 30:
            continue
        picked = [0, 4, 9, 19, 29]
        cells.append(
            [
                row["contender"],
                *(f"{100 * row['error_by_round'][i]:.1f} / {100 * row['clean_by_round'][i]:.1f}" for i in picked),
            ]
        )
    return markdown(["error, %: corrupted / clean, at round", "1", "5", "10", "20", "30"], cells) if cells else ""


def _headline(rows: Sequence[Row]) -> str:
    steps = {row["method"]: row["metrics"] for row in group(rows, "steps")}
    memory = {row["method"]: row["metrics"] for row in group(rows, "memory") if row["network"] == "WRN-40-2"}
    shown = [
        ("TENT", "TENT, Adam 0.001", "tent"),
        ("TENT", "TENT, SGD 0.1", "tent lr 0.1"),
        ("CoTTA", "CoTTA, Adam 0.001", "cotta"),
        ("EcoTTA K=4, eager", "EcoTTA, SGD 0.1, in plain PyTorch", "ecotta lr 0.1 eager"),
        ("EcoTTA K=4", "EcoTTA, SGD 0.1", "ecotta lr 0.1"),
    ]
    cells = [
        [
            label,
            f"{memory[method]['paper_mb']:.0f}",
            f"{memory[method]['held_mb'] + memory[method]['copies_mb']:.0f}",
            f"{steps[method]['of_eager']:.2f}",
            _mean(rows, run, "last_error"),
            _mean(rows, run, "clean_error"),
        ]
        for method, label, run in shown
    ]
    columns = [
        *("WRN-40-2, batches of 64", "MB by the paper's count", "MB really held, with copies"),
        *("time of a step, of EcoTTA's in plain PyTorch", "demo's digits: error in round 12, %", "on clean images, %"),
    ]
    return markdown(columns, cells)


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by name."""
    rows = result["rows"]
    return {
        "setting": setting_line(result),
        "headline": _headline(rows),
        "memory": _memory(rows),
        "steps": _steps(rows),
        "backbones": _backbones(rows),
        "streams": _streams(rows),
        "rates": _rates(rows),
        "long": _long(rows),
        "single": _single(rows),
        "guarded": _guarded(rows),
        "claims": claims_table(result["claims"]),
    }


def pictures(result: Mapping[str, Any]) -> dict[str, Picture]:
    """Errors by round at one rate, and on clean images: the forgetting curve."""
    rows = result["rows"]
    shown = {
        "tent lr 0.1": ("TENT, SGD 0.1", BAD),
        "tent": ("TENT, Adam 0.001", "#b45309"),
        "rdumb": ("RDumb, its own recipe", "#0891b2"),
        "cotta": ("CoTTA, its own recipe", "#7c3aed"),
    }
    shown["ecotta lr 0.1"] = ("EcoTTA, SGD 0.1", ACCENT)
    runs = [row for row in group(rows, "streams") if row["rounds"] == 12]
    if not runs:
        return {}
    figure = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 2),
        ("error_by_round", "clean_by_round"),
        ("corrupted images, as they come", "clean images, no updates"),
        strict=True,
    ):
        for name, (label, colour) in shown.items():
            curves = [row[key] for row in runs if row["contender"] == name]
            means = [100 * statistics.fmean(values) for values in zip(*curves, strict=True)]
            axes.plot(range(1, len(means) + 1), means, color=colour, label=label, linewidth=2)
        for name, label in (("bn", "batch statistics"), ("source", "source")):
            metric = "error" if key == "error_by_round" else "clean_error"
            axes.axhline(statistics.fmean(of_runs(rows, name, metric, 1)), color=MUTED, linewidth=1,
                         linestyle="--" if name == "bn" else ":", label=label)  # fmt: skip
        axes.set(title=title, xlabel="round", ylabel="error, %, mean of three seeds")
        axes.set_ylim(bottom=0)
        axes.grid(color="#e4e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return {"": render(figure)}
