"""Numbers as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from scripts.report.blocks import Cell

DASH = "\N{EN DASH}"
SIGNIFICANT = 4
MOST_DECIMALS = 6
_READS_AS_NUMBER = re.compile(
    r"""[-+\N{MINUS SIGN}±~≈<>≤≥]?\s?
    \d[\d,.]*(e[-+\N{MINUS SIGN}]?\d+)?
    (\s?±\s?\d[\d,.]*)?
    (\s?([%\N{MULTIPLICATION SIGN}x]|[a-zA-Zµ]{1,5}(/\w{1,5})?))?""",
    re.VERBOSE,
)


def typographic(number: str) -> str:
    """The number with a minus sign as wide as its digits."""
    return number.replace("-", "\N{MINUS SIGN}")


def _decimals(values: Sequence[float]) -> int:
    """Decimals that give the largest value its significant digits, and no more than the values have."""
    largest = max(abs(value) for value in values)
    wanted = max(0, SIGNIFICANT - 1 - math.floor(math.log10(largest))) if largest else 0
    for decimals in range(wanted):
        if all(math.isclose(round(value, decimals), value, rel_tol=1e-9) for value in values):
            return decimals
    return wanted


def number(value: float) -> str:
    """A number by itself: four significant digits, integers in full."""
    if not math.isfinite(value):
        return DASH
    if abs(value) >= 1e15 or 0 < abs(value) < 1e-4:
        return typographic(f"{value:.3g}")
    return typographic(f"{value:,.{_decimals([value])}f}")


def percentage(share: float) -> str:
    """A share of 1 as per cent."""
    return typographic(f"{share:.1%}") if math.isfinite(share) else DASH


def _as_float(value: Cell) -> float | None:
    return None if value is None or isinstance(value, bool | str) else float(value)


def cell(value: Cell) -> str:
    """A table cell by itself, or a headline number."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return DASH if value is None else number(float(value))


def column(cells: Sequence[Cell]) -> tuple[list[str], bool]:
    """The cells of a table's column as text, and whether they are to be right aligned."""
    texts = [cell(value) for value in cells]
    numbers = [_as_float(value) for value in cells]
    finite = [value for value in numbers if value is not None and math.isfinite(value)]
    if finite and not any(isinstance(value, bool | str) for value in cells):
        decimals = _decimals(finite)
        sizes = [abs(value) for value in finite if value]
        # Where the small values would lose their digits beside the large ones, each is written by itself.
        if (
            decimals <= MOST_DECIMALS
            and max(sizes, default=0.0) < 1e15
            and min(sizes, default=1.0) >= 10.0 ** (1 - decimals)
        ):
            texts = [
                typographic(f"{value:,.{decimals}f}") if value is not None and math.isfinite(value) else DASH
                for value in numbers
            ]
    filled = [text for text in texts if text not in ("", DASH)]
    right = all(map(_READS_AS_NUMBER.fullmatch, filled)) if filled else any(value is not None for value in numbers)
    return texts, right
