"""The range of a chart's axis and the round numbers along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scripts.report.formatting import typographic

_UNITS = ((1e9, "G"), (1e6, "M"), (1e4, "k"))


class Axis(NamedTuple):
    """Lowest and highest value, and the ticks with their labels."""

    low: float
    high: float
    ticks: list[tuple[float, str]]

    def place(self, value: float) -> float:
        """Where the value lies: 0 at the lowest, 1 at the highest."""
        return (value - self.low) / (self.high - self.low)


def _step(span: float, count: int, whole: bool) -> float:
    """The smallest round number that divides the span into no more than ``count`` parts."""
    power = 10.0 ** math.floor(math.log10(span / count))
    multiples = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next((m * power for m in multiples if m * power * count >= span * (1 - 1e-9)), 10 * power)
    return max(step, 1.0) if whole else step


def _decimals(step: float) -> int:
    return next((d for d in range(12) if math.isclose(round(step, d), step, rel_tol=1e-6)), 12)


def _labels(ticks: Sequence[float], step: float, percent: bool) -> list[str]:
    if percent:
        return [typographic(f"{tick:.{max(0, _decimals(step) - 2)}%}") for tick in ticks]
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest >= 1e13 or step < 1e-4:
        digits = max(1, math.ceil(math.log10(largest / step)) + 1) if largest else 1
        return [typographic(f"{tick:.{digits}g}") for tick in ticks]
    divisor, unit = next((u for u in _UNITS if largest >= u[0]), (1.0, ""))
    divisor = 1e3 if unit == "k" else divisor
    decimals = _decimals(step / divisor)
    return [typographic(f"{tick / divisor:,.{decimals}f}{unit}") if tick or not unit else "0" for tick in ticks]


def _axis(low: float, high: float, count: int, whole: bool, percent: bool) -> Axis:
    step = _step(high - low, count, whole)
    ticks = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, list(zip(ticks, _labels(ticks, step, percent), strict=True)))


def _all_equal(low: float, high: float) -> bool:
    # Below this the ticks' labels would need more digits than a float can be trusted with.
    return high - low <= 1e-9 * max(abs(low), abs(high)) or high - low < 1e-150


def x_axis(values: Sequence[float], count: int) -> Axis:
    """An axis that ends where the values end; between integers no fraction is ticked."""
    low, high = min(values), max(values)
    whole = all(value == round(value) for value in values)
    if _all_equal(low, high):
        pad = max(1.0, abs(low) * 0.05)
        low, high = low - pad, high + pad
    return _axis(low, high, count, whole, percent=False)


def y_axis(values: Sequence[float], limits: tuple[float, float] | None, percent: bool, count: int) -> Axis:
    """An axis that ends at round numbers, or at the limits that are given."""
    if limits is not None and all(map(math.isfinite, limits)) and not _all_equal(*limits) and limits[0] < limits[1]:
        return _axis(*limits, count, whole=False, percent=percent)
    lowest, highest = min(values), max(values)
    low, high = lowest, highest
    if _all_equal(low, high):
        pad = abs(low) * 0.05 or (0.05 if percent else 1.0)
        low, high = low - pad, high + pad
    elif 0 <= low < 0.35 * high:
        low = 0.0
    step = _step(high - low, count, whole=False)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    if percent:  # nothing is to suggest more than all or less than none
        low = max(low, 0.0) if lowest >= 0 else low
        high = min(high, 1.0) if highest <= 1 else high
    return _axis(low, high, count, whole=False, percent=percent)
