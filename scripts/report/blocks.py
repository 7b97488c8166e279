"""What a report is made of. All text is plain: it is escaped when the page is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Cell: TypeAlias = str | float | bool | None
"""A number that is not finite, and None, are shown as a dash."""


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    paragraph: str


@dataclass(frozen=True)
class Figures:
    """Headline numbers: (label, value, note); the first one also stands in the report's table of systems."""

    figures: Sequence[tuple[str, Cell, str]]


@dataclass(frozen=True)
class Table:
    """Rows under column headers; the first cell of a row is its header.

    A column of numbers is written with the same decimals throughout. Columns of numbers, and of text that reads as
    numbers (``"97.1 %"``, ``"2.3x"``, ``"0.91 ± 0.02"``), are set right aligned.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str | None = None

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table '{self.caption}': row {number} has {len(row)} cells, expected {len(self.columns)}"
                )


@dataclass(frozen=True)
class Curves:
    """A line chart of (x, y) points by series name; a value that is not finite leaves a gap in its line.

    Attributes:
        y_range: lowest and highest value of the axis; chosen from the values where None. Lines are cut off at it.
        percent: the values are shares of 1, written as per cent.
    """

    caption: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    y_range: tuple[float, float] | None = None
    percent: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture: a file, or uint8 RGB ``(H, W, 3)``. A ``.jpg`` file is embedded as JPEG, all else as PNG."""

    caption: str
    image: Path | str | NDArray[np.uint8]
    alt: str


@dataclass(frozen=True)
class Pictures:
    """Pictures in a grid."""

    caption: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Code:
    """Commands that the reader can repeat."""

    caption: str
    text: str


Block: TypeAlias = Text | Figures | Table | Curves | Picture | Pictures | Code


@dataclass(frozen=True)
class Section:
    """What the report says of one system."""

    system: str
    title: str
    summary: str
    blocks: Sequence[Block]
