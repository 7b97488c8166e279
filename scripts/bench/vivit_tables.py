"""ViViT's tables and picture from a benchmark's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from scripts.bench.results import claims_table, markdown, mean_and_error, mean_text, setting_line
from vision.pictures import ACCENT, INK, MUTED, Picture, render

Row = Mapping[str, Any]

# The readouts of the frozen image transformer: form of the adapter, pooling, queries, cells a side.
READOUTS: dict[str, tuple[str, str, int, int]] = {
    "cls": ("none", "token", 1, 4),
    "cls, frame bottleneck": ("frame", "token", 1, 4),
    "mean": ("none", "mean", 1, 4),
    "mean, token bottleneck": ("token", "mean", 1, 4),
    "mean, 3-D convolution": ("conv3d", "mean", 1, 4),
    "attention, 1 query": ("attention", "token", 1, 4),
    "attention, 4 queries": ("attention", "token", 4, 4),
    "cls + grid residual": ("grid_residual", "token", 1, 4),
    "mean + grid residual": ("grid_residual", "mean", 1, 4),
    "grid 2x2": ("grid", "token", 1, 2),
    "grid": ("grid", "token", 1, 4),
}
# What the spatial part, the temporal part and the readout start from.
PARTS: dict[str, tuple[str, str, str]] = {
    "grid": ("image", "random", "new"),
    **{
        f"{spatial} + {temporal} + {readout}": (spatial, temporal, readout)
        for spatial in ("image", "stage1")
        for temporal in ("random", "stage1")
        for readout in ("new", "stage1")
        if (spatial, temporal, readout) != ("image", "random", "new")
    },
}
_STARTS = {"image": "image transformer", "stage1": "stage 1", "random": "random", "new": "new"}


def measure_of(rows: Sequence[Row], contender: str, seed: int, measure: str) -> float:
    """A measure of a training; -1 where the training is not there."""
    found = [row for row in rows if (row.get("contender"), row.get("seed")) == (contender, seed)]
    return float(found[0]["metrics"][measure]) if found else -1.0


def _group(rows: Sequence[Row], name: str) -> list[Row]:
    return [row for row in rows if row["group"] == name]


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({row["seed"] for row in _group(rows, "trained")})


def _mean(rows: Sequence[Row], contender: str, measure: str) -> str:
    values = [100 * measure_of(rows, contender, seed, measure) for seed in _seeds(rows)]
    known = [value for value in values if value >= 0]
    return mean_text(mean_and_error(known)) if len(known) > 1 else f"{known[0]:.1f} (one seed)"


def _each(rows: Sequence[Row], contender: str, measure: str) -> str:
    values = [measure_of(rows, contender, seed, measure) for seed in _seeds(rows)]
    return ", ".join(f"{100 * value:.1f}" for value in values if value >= 0)


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f}" if value >= 1e7 else f"{value / 1e6:.1f}"


def _sizes(rows: Sequence[Row]) -> str:
    cells = []
    of = {(row["size"], row["frames"], row["form"]): row["metrics"] for row in _group(rows, "sizes")}
    for size, frames in dict.fromkeys((size, frames) for size, frames, _ in of):
        whole, frozen, token, grid = (
            of[size, frames, form] for form in ("end to end", "frozen", "frozen + token", "frozen + grid")
        )
        cells.append(
            [
                f"ViT-{size}, {frames} frames",
                f"{grid['parameters'] / 1e6:.1f}",
                f"{grid['trained_parameters'] / 1e6:.1f}",
                f"{frozen['spatial_macs'] / 1e9:,.1f} / {frozen['other_macs'] / 1e9:.2f}",
                *(_megabytes(form["held_bytes"]) for form in (whole, frozen, token, grid)),
                *(_megabytes(form["state_bytes"]) for form in (whole, grid)),
            ]
        )
    columns = ["one clip", "parameters, M", "trained, M", "GMACs, spatial / temporal"]
    columns += [f"held, MB: {form}" for form in ("end to end", "frozen", "+ token adapter", "+ grid adapter")]
    return markdown([*columns, "weights, gradients, AdamW, MB: end to end", "+ grid adapter"], cells)


def _steps(rows: Sequence[Row]) -> str:
    steps = _group(rows, "steps")
    whole = next(row["metrics"] for row in steps if row["form"] == "end to end")
    cells = [
        [
            row["form"],
            f"{row['metrics']['trained_parameters']:,}",
            f"{row['metrics']['held_bytes'] / 1e6:.2f}",
            f"{row['metrics']['held_bytes'] / whole['held_bytes']:.3f}",
            f"{row['metrics']['gradient_and_state_bytes'] / 1e6:.1f}",
            f"{row['metrics']['ms']:.1f}",
            f"{row['metrics']['of_end_to_end']:.3f}",
        ]
        for row in steps
    ]
    columns = ["a training step", "trained parameters", "held, MB", "of end to end", "gradients and AdamW, MB"]
    return markdown([*columns, "ms", "of end to end"], cells)


def _readouts(rows: Sequence[Row]) -> str:
    if not _seeds(rows):
        return ""
    cells = [
        [name, _each(rows, name, "top1"), _mean(rows, name, "top1"), _mean(rows, name, "kind")] for name in READOUTS
    ]
    return markdown(["readout of the frozen image transformer", "top-1 by seed, %", "mean", "kind of motion"], cells)


def _parts(rows: Sequence[Row]) -> str:
    if not _seeds(rows):
        return ""
    cells = []
    for name, starts in PARTS.items():
        spatial, *others = (_STARTS[start] for start in starts)
        cells.append([spatial, *others, _each(rows, name, "top1"), _mean(rows, name, "top1")])
    first = [
        "stage 1 itself (4 frames, end to end)",
        "",
        "",
        _each(rows, "stage1", "top1"),
        _mean(rows, "stage1", "top1"),
    ]
    columns = ["frozen spatial part from", "temporal part from", "readout from", "top-1 by seed, %", "mean"]
    return markdown(columns, [*cells, first])


def _end_to_end(rows: Sequence[Row]) -> str:
    if not _seeds(rows):
        return ""
    names = [name for name in dict.fromkeys(row.get("contender") for row in rows) if str(name).startswith("end to end")]
    cells = []
    for name in ("grid", *map(str, names)):
        title = "frozen, cached" if name == "grid" else name
        seconds, epochs, reached = (
            [value for seed in _seeds(rows) if (value := measure_of(rows, name, seed, measure)) >= 0]
            for measure in ("fit_seconds", "epochs_to_65", "seconds_to_65")
        )
        cells.append(
            [
                title,
                _each(rows, name, "top1"),
                _mean(rows, name, "top1"),
                ", ".join(f"{value:.0f}" for value in seconds),
                *(", ".join(f"{value:.0f}" if value else "never" for value in of) for of in (epochs, reached)),
            ]
        )
    columns = ["training", "top-1 by seed, %", "mean", "seconds in all", "epochs to 65 % on validation clips"]
    columns.append("seconds to that")
    return markdown(columns, cells)


def _order(rows: Sequence[Row]) -> str:
    if not _seeds(rows):
        return ""
    cells = [
        [
            name,
            *(_mean(rows, name, measure) for measure in ("top1", "reversed", "shuffled_top1", "shuffled_kind")),
        ]
        for name in ("cls", "grid", "stage1 + stage1 + new")
    ]
    columns = ["", "top-1, %", "backwards: right ones that turn into the pair's other", "shuffled: top-1"]
    return markdown([*columns, "shuffled: kind of motion"], cells)


def _decoders(rows: Sequence[Row]) -> str:
    found = _group(rows, "decoders")
    ways = list(dict.fromkeys(row["way"] for row in found))
    if not ways:
        return ""
    of = {(row["codec"], row["way"]): f"{row['metrics']['ms']:.1f}" for row in found}
    codecs = list(dict.fromkeys(row["codec"] for row in found))
    return markdown(
        ["16 of 300 frames, ms", *ways], [[codec, *(of.get((codec, way), "") for way in ways)] for codec in codecs]
    )


def _budget(rows: Sequence[Row]) -> str:
    cells = [
        [
            f"ViT-{row['size']}, frozen + grid adapter",
            f"{row['metrics']['frames']:,}" if row["metrics"]["frames"] else "does not fit",
        ]
        for row in _group(rows, "budget")
    ]
    (total, *_) = [row["metrics"]["budget_bytes"] for row in _group(rows, "budget")]
    return markdown([f"in {total / 1e9:.1f} GB, what ViT-B/16 takes end to end on 32 frames", "frames"], cells)


def _headline(rows: Sequence[Row]) -> str:
    steps = {row["form"]: row["metrics"] for row in _group(rows, "steps")}
    whole = steps["end to end"]
    accuracy = {"frozen": "cls", "frozen + grid": "grid", "frozen + grid, cached": "grid"}
    cells = [
        [
            form,
            f"{steps[form]['held_bytes'] / whole['held_bytes']:.3f}",
            f"{steps[form]['of_end_to_end']:.3f}",
            _mean(rows, accuracy[form], "top1") if _seeds(rows) else "",
        ]
        for form in ("frozen", "frozen + grid", "frozen + grid, cached")
    ]
    return markdown(
        ["", "held in training, of end to end", "time of a step, of end to end", "top-1, demo's clips, %"], cells
    )


def tables(result: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by name."""
    rows = result["rows"]
    return {
        "setting": setting_line(result),
        "headline": _headline(rows),
        "steps": _steps(rows),
        "sizes": _sizes(rows),
        "budget": _budget(rows),
        "readouts": _readouts(rows),
        "parts": _parts(rows),
        "end_to_end": _end_to_end(rows),
        "order": _order(rows),
        "decoders": _decoders(rows),
        "claims": claims_table(result["claims"]),
    }


def pictures(result: Mapping[str, Any]) -> dict[str, Picture]:
    """Accuracy by readout, a dot a seed."""
    rows = result["rows"]
    if not _seeds(rows):
        return {}
    figure = Figure(figsize=(8, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for place, name in enumerate(READOUTS):
        values = [100 * measure_of(rows, name, seed, "top1") for seed in _seeds(rows)]
        colour = ACCENT if name == "grid" else MUTED
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=5)
        axes.plot([sum(values) / len(values)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2)
    axes.axvline(12.5, color=INK, linewidth=0.8, linestyle=":")
    axes.text(12.5, -0.9, " chance", fontsize=8, color=INK)
    axes.set_yticks(range(len(READOUTS)), list(READOUTS))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("test clips that are right, %: each seed, and the mean")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return {"": render(figure)}
