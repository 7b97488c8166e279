"""Line charts as inline SVG; the colours and the type come from the page's style sheet."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from scripts.report.blocks import Curves
from scripts.report.formatting import number, percentage
from scripts.report.ticks import Axis, x_axis, y_axis

COLOURS = 8
FONT_SIZE = 12.5
LARGEST = 1e150  # beyond it, differences and products overflow
MOST_MARKED = 40  # points up to which every one of a line is marked
MOST_LABELLED = 6  # lines up to which the names stand at their ends
WIDEST_NAME = 150.0
LABEL_GAP = 16.0
OVERHANG = 6.0  # lets a marker on the edge of the plot be whole

Point = tuple[float, float]


class Entry(NamedTuple):
    """A line of the legend: its style, the series' name, and its last value."""

    style: str
    name: str
    last: str


def text_width(text: str) -> float:
    """About how wide a text is set: the reader's font is not known here."""
    ems = sum(1.0 if unicodedata.east_asian_width(char) in "WF" else 0.64 for char in text)
    return ems * FONT_SIZE


def _fit(text: str, width: float) -> str:
    if text_width(text) <= width:
        return text
    while text and text_width(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _finite(point: Point) -> bool:
    return all(math.isfinite(value) and abs(value) < LARGEST for value in point)


def _runs(points: Iterable[Point]) -> list[list[Point]]:
    """The points between the gaps."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if _finite(point):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _value(curves: Curves, y: float) -> str:
    return percentage(y) if curves.percent else number(y)


def _style(index: int) -> str:
    """The classes of a series in the style sheet; dashes tell apart what shares a colour."""
    return f"s{index % COLOURS} again" if index >= COLOURS else f"s{index}"


def legend(curves: Curves) -> list[Entry]:
    """What the colours mean."""
    entries = []
    for index, (name, points) in enumerate(curves.series.items()):
        last = next((y for x, y in reversed(points) if _finite((x, y))), math.nan)
        entries.append(Entry(_style(index), name, _value(curves, last)))
    return entries


def names_fit(curves: Curves) -> bool:
    """Whether the names can stand at the ends of the lines, in place of a legend."""
    drawn = all(any(map(_finite, points)) for points in curves.series.values())
    return drawn and len(curves.series) <= MOST_LABELLED and all(text_width(n) <= WIDEST_NAME for n in curves.series)


def describe(curves: Curves) -> str:
    """The chart in words, for whoever cannot see it."""
    parts = [f"{curves.caption}. Line chart of {curves.y_label} against {curves.x_label}."]
    for name, points in curves.series.items():
        drawn = [y for x, y in points if _finite((x, y))]
        if drawn:
            parts.append(
                f"{name}: {_value(curves, drawn[0])} at first, {_value(curves, drawn[-1])} at last, "
                f"between {_value(curves, min(drawn))} and {_value(curves, max(drawn))}."
            )
        else:
            parts.append(f"{name}: no values.")
    return " ".join(parts)


def _spread(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights near the wanted ones, a line of text apart, between top and bottom."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    above = top - LABEL_GAP
    for i in order:
        above = placed[i] = max(wanted[i], above + LABEL_GAP)
    below = bottom + LABEL_GAP
    for i in reversed(order):
        below = placed[i] = min(placed[i], below - LABEL_GAP)
    return placed


class _Plot(NamedTuple):
    """The rectangle within the axes, and what its sides stand for."""

    left: float
    top: float
    right: float
    bottom: float
    x: Axis
    y: Axis

    def at(self, point: Point) -> Point:
        return (
            self.left + self.x.place(point[0]) * (self.right - self.left),
            self.bottom - self.y.place(point[1]) * (self.bottom - self.top),
        )


def _segment(kind: str, start: Point, end: Point) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, *start, *end)


def _text(kind: str, at: Point, anchor: str, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, *at, anchor, text)


def _axes(plot: _Plot, curves: Curves, width: float, height: float) -> list[Markup]:
    parts = []
    for tick, label in plot.y.ticks:
        y = plot.at((plot.x.low, tick))[1]
        parts.append(_segment("grid", (plot.left, y), (plot.right, y)))
        parts.append(_text("tick", (plot.left - 8, y + 4), "end", label))
    parts.append(_segment("axis", (plot.left, plot.bottom), (plot.right, plot.bottom)))
    for tick, label in plot.x.ticks:
        x = plot.at((tick, plot.y.low))[0]
        parts.append(_segment("axis", (x, plot.bottom), (x, plot.bottom + 5)))
        parts.append(_text("tick", (x, plot.bottom + 19), "middle", label))
    parts.append(_text("name", (0, 13), "start", _fit(curves.y_label, width)))
    parts.append(_text("name", (plot.right, height - 5), "end", _fit(curves.x_label, plot.right)))
    return parts


def _line(plot: _Plot, curves: Curves, name: str, style: str) -> Markup:
    points = curves.series[name]
    runs = _runs(points)
    parts = []
    for run in runs:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(plot.at, run))
        parts.append(Markup('<path d="M{}"/>').format(path))
    for run in runs:
        # A point without neighbours has no line that would show it.
        for x, y in run if len(points) <= MOST_MARKED else run[: len(run) == 1]:
            left, top = plot.at((x, y))
            parts.append(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3"><title>{}, {} {}: {}</title></circle>').format(
                    left, top, name, curves.x_label, number(int(x) if x == round(x) else x), _value(curves, y)
                )
            )
    return Markup('<g class="line {}">{}</g>').format(style, Markup("").join(parts))


def line_chart(curves: Curves, width: int, height: int, names_at_ends: bool) -> Markup:
    """The chart as an ``<svg>`` of that size, or nothing where no point is finite.

    Args:
        curves: what is drawn.
        width: in pixels, at which the type has its proper size.
        height: likewise.
        names_at_ends: writes the series' names at the ends of their lines.
    """
    drawn = {name: [point for point in points if _finite(point)] for name, points in curves.series.items()}
    points = [point for series in drawn.values() for point in series]
    if not points:
        return Markup("")
    y = y_axis([y for _, y in points], curves.y_range, curves.percent, count=max(2, height // 50))
    x = x_axis([x for x, _ in points], count=max(2, width // 75))
    names = list(curves.series) if names_at_ends else []
    beside = [text_width(label) / 2 for _, label in x.ticks[-1:]] + [1.05 * text_width(name) + 10 for name in names]
    plot = _Plot(
        left=max((text_width(label) for _, label in y.ticks), default=0.0) + 10,
        top=30.0,
        right=width - max(8.0, *beside),
        bottom=height - 46.0,
        x=x,
        y=y,
    )
    parts = _axes(plot, curves, width, height)
    lines = [_line(plot, curves, name, _style(index)) for index, name in enumerate(curves.series)]
    # A viewport of its own cuts off what lies beyond the axes, without an id that must be unique in the page.
    corner = (plot.left - OVERHANG, plot.top - OVERHANG)
    size = (plot.right - plot.left + 2 * OVERHANG, plot.bottom - plot.top + 2 * OVERHANG)
    box = [f"{value:.1f}" for value in (*corner, *size)]
    parts.append(
        Markup('<svg x="{}" y="{}" width="{}" height="{}" viewBox="{}">{}</svg>').format(
            *box, " ".join(box), Markup("").join(reversed(lines))
        )
    )
    ends = [min(max(plot.at(drawn[name][-1])[1], plot.top), plot.bottom) for name in names]
    for index, (name, end) in enumerate(zip(names, _spread(ends, plot.top, plot.bottom), strict=True)):
        parts.append(_text(f"end {_style(index)}", (plot.right + 9, end + 4), "start", name))
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, describe(curves), Markup("").join(parts)
    )
