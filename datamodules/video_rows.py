"""What a list of videos says, row by row, and how its text is read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datamodules.video_decoding import Span
from vision.errors import InputError, did_you_mean, shorten
from vision.labels import MISSING

Split = Literal["train", "val", "test"]
ACTION = "action"
"""The label set of lists with one."""

_MOST_CLASSES = 1_000_000  # of lists that do not say how many there are


@dataclass(frozen=True)
class Row:
    """A clip as it is listed.

    Attributes:
        file: the list.
        line: in it, from 1.
        places: paths below the folder of videos at which it may lie, the likeliest first; a suffix may be missing.
        labels: of each label set the class's name or index, or ``MISSING``.
        seconds: its span where it lies in a video file.
        frames: its span where it lies in a folder of frames.
    """

    file: Path
    line: int
    places: tuple[str, ...]
    labels: tuple[str | int, ...]
    seconds: Span | None = None
    frames: Span | None = None

    @property
    def origin(self) -> str:
        """``train.csv:12``."""
        return f"{self.file.name}:{self.line}"


@dataclass(frozen=True)
class Annotations:
    """The rows of a list.

    Attributes:
        rows: in the order of the list.
        classes: the classes of each label set, in the order of their indices; empty where only the rows know them.
    """

    rows: list[Row]
    classes: Mapping[str, Sequence[str]] = field(default_factory=lambda: {ACTION: ()})


def read_text(file: Path) -> str:
    """A text file's content.

    Raises:
        InputError: it is missing or not in UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: the list cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not a text in UTF-8 (byte {error.start})") from error


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers."""
    for line, text in enumerate(read_text(file).split("\n"), start=1):
        if text.strip():
            yield line, text.strip()


def read_columns(file: Path, layout: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file, with their lines.

    Raises:
        InputError: the file is missing or no table, one of these columns is missing, or a row is longer or shorter than
            the header.
    """
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), restkey="")
    try:
        header = reader.fieldnames or []
        for column in columns:
            if column not in header:
                raise InputError(
                    f"{file}:1: not a list of the layout {layout}: no column '{column}'{did_you_mean(column, header)}; "
                    f"it has {shorten(header) or 'none'}"
                )
        for row in reader:
            found = len(header) - list(row.values()).count(None) + len(row.get("", ()))
            if found != len(header):
                raise InputError(f"{file}:{reader.line_num}: expected {len(header)} columns, found {found}")
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: not a readable table ({error})") from error


def integer(file: Path, line: int, name: str, text: str) -> int:
    """An integer of a row.

    Raises:
        InputError: it is none.
    """
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{file}:{line}: {name} must be an integer, found '{text}'") from error


def class_index(file: Path, line: int, name: str, text: str) -> int:
    """A class's index of a row, from 0 on.

    Raises:
        InputError: it is none.
    """
    index = integer(file, line, name, text)
    if not 0 <= index < _MOST_CLASSES:
        raise InputError(f"{file}:{line}: {name} must be the index of a class, 0 or more, found {index}")
    return index


def label_text(file: Path, line: int, text: str | None, split: Split) -> str | None:
    """The label of a row as it stands there; None where a test has none.

    Raises:
        InputError: it is missing, and the row is not for a test.
    """
    if text and text.strip():
        return text.strip()
    if split != "test":
        raise InputError(f"{file}:{line}: the label is missing")
    return None


def label_name(file: Path, line: int, text: str | None, split: Split) -> str | int:
    """The class's name of a row, ``MISSING`` where a test has none."""
    return label_text(file, line, text, split) or MISSING
