"""Tables of images that are labelled for several tasks, any label of which may be missing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision.errors import InputError, did_you_mean, shorten
from vision.labels import MISSING, LabelSchema

PATH = "image_path"
LABEL = "class_label"  # the label's column where every task has a table of its own

_INTEGER = re.compile(r"-?[0-9]{1,9}")
_DRIVE = re.compile(r"[A-Za-z]:")


class Origin(NamedTuple):
    """Where an image is listed: the table's file name and the line, the header being line 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Table:
    """Images, each listed once.

    Attributes:
        paths: the files.
        targets: the class index of every task, in the order of the schema; -1 where it is missing.
        origins: the row that each image is first listed in.
        repeated: rows that were left out or merged, since their image was listed before.
    """

    paths: list[str]
    targets: list[tuple[int, ...]]
    origins: list[Origin]
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def labels(self) -> NDArray[np.int64]:
        """The targets as an array ``(images, tasks)``."""
        return np.array(self.targets, dtype=np.int64)

    def subset(self, indices: Sequence[int]) -> Table:
        """The images at ``indices``."""
        return Table(
            [self.paths[i] for i in indices],
            [self.targets[i] for i in indices],
            [self.origins[i] for i in indices],
            self.repeated,
        )


class Classes:
    """Labels as they stand in a table, to class indices.

    Args:
        schema: the tasks and their classes.
        integers: for tasks whose labels may be numbers, the classes in the order of those numbers, which need not be
            the schema's.

    Raises:
        InputError: ``integers`` has a task that the schema lacks, or other classes than the schema.
    """

    def __init__(self, schema: LabelSchema, integers: Mapping[str, Sequence[str]]) -> None:
        self.schema = schema
        self.index = {task: {name: i for i, name in enumerate(of.classes)} for task, of in schema.tasks.items()}
        self.integers: dict[str, list[int]] = {}
        for task, names in integers.items():
            if task not in self.index:
                raise InputError(f"integer_labels: no task '{task}'{did_you_mean(task, self.index)}")
            if sorted(names) != sorted(self.index[task]):
                raise InputError(
                    f"integer_labels: {task} needs each of the task's classes once ({', '.join(self.index[task])}), "
                    f"found {', '.join(map(str, names)) or 'none'}"
                )
            self.integers[task] = [self.index[task][name] for name in names]

    def parse(self, task: str, text: str) -> int:
        """The index of a label, -1 for a blank one.

        Raises:
            InputError: the task has no such class.
        """
        label = text.strip()
        if not label:
            return MISSING
        index = self.index[task]
        # Names win over numbers: a class may be called "2".
        if label in index:
            return index[label]
        if _INTEGER.fullmatch(label):
            order = self.integers.get(task)
            if order is None:
                raise InputError(
                    f"{task}: the label '{label}' is a number; say in data.integer_labels.{task} which classes the "
                    "file's numbers stand for"
                )
            if not 0 <= int(label) < len(order):
                raise InputError(f"{task}: the label '{label}' is not in 0 to {len(order) - 1}")
            return order[int(label)]
        raise InputError(f"{task}: no class '{label}'{did_you_mean(label, index)}; there are {', '.join(index)}")


class _Entry:
    """What is known so far of one image."""

    __slots__ = ("lines", "origin", "targets")

    def __init__(self, origin: Origin, tasks: int) -> None:
        self.origin = origin
        self.targets = [MISSING] * tasks
        self.lines: list[Origin | None] = [None] * tasks


def read_table(root: Path, where: str | Mapping[str, str], classes: Classes) -> Table:
    """Reads one table with a column a task, or a table a task with the column ``class_label``.

    Tables have a header row and the column ``image_path``, relative to ``root``; further columns are ignored. They are
    separated by commas where the name ends in ``.csv``, else by tabs. An image that several rows list is kept once,
    with the labels of all of them. Tables of single tasks are joined on the path.

    Raises:
        InputError: a file is missing, empty or no table, or has bad rows: a path that leaves ``root``, an unknown
            label, labels that contradict those of another row. The first bad row is described, the others are counted.
    """
    schema = classes.schema
    if isinstance(where, str):
        sources = [(where, {task: task for task in schema.names})]
    else:
        if not where:
            raise InputError("data: expected the tables by task, found none")
        schema.subset(where)
        sources = [(file, {task: LABEL}) for task, file in where.items()]
    entries: dict[str, _Entry] = {}
    repeated = 0
    for name, columns in sources:
        repeated += _read_file(root / name, columns, classes, entries)
    return Table(
        [os.path.join(root, path) for path in entries],
        [tuple(entry.targets) for entry in entries.values()],
        [entry.origin for entry in entries.values()],
        repeated,
    )


def _read_file(file: Path, columns: Mapping[str, str], classes: Classes, entries: dict[str, _Entry]) -> int:
    """Adds the rows of a file to ``entries``; returns how many listed an image that the file had listed before."""
    lines = _lines(file)
    split = _splitter("," if file.suffix.lower() == ".csv" else "\t")
    header = [name.strip() for name in split(lines[0])]
    places = _find_columns(file, header, [PATH, *columns.values()])
    bad: list[tuple[int, str]] = []
    seen: set[str] = set()
    repeated = 0
    for line, text in enumerate(lines[1:], start=2):
        fields = split(text)
        try:
            if len(fields) != len(header):
                found = len(fields) if text.strip() else "an empty line"
                raise InputError(f"expected {len(header)} columns, found {found}")  # noqa: TRY301 (one handler for all)
            path = _checked_path(fields[places[PATH]])
            targets = {task: classes.parse(task, fields[places[column]]) for task, column in columns.items()}
            entry = entries.get(path) or _Entry(Origin(file.name, line), len(classes.schema.names))
            _merge(entry, path, targets, Origin(file.name, line), classes.schema)
        except InputError as error:
            bad.append((line, str(error)))
            continue
        entries[path] = entry
        repeated += path in seen
        seen.add(path)
    if bad:
        raise InputError(f"{file}:{bad[0][0]}: {bad[0][1]}{_more(bad[1:])}")
    if not seen:
        raise InputError(f"{file}:1: the table has no rows below its header")
    return repeated


def _more(bad: Sequence[tuple[int, str]]) -> str:
    if not bad:
        return ""
    rows, lines = ("rows", "lines") if len(bad) > 1 else ("row", "line")
    return f"; and {len(bad)} more bad {rows}: {lines} {shorten([str(line) for line, _ in bad])}"


def _lines(file: Path) -> list[str]:
    """The lines without their ends; those that are blank at the end of the file are left out."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: the table cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{file}:{line}: not a text in UTF-8 (byte 0x{data[error.start]:02x})") from error
    # Not splitlines(), which also ends lines at characters that may stand in a field.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError(f"{file}:1: the table is empty; expected a header row with the column {PATH}")
    return lines


def _splitter(separator: str) -> Callable[[str], list[str]]:
    """What splits a line into fields.

    A field that is wrapped in quotes may hold the separator; any other quote stands for itself.
    """
    field = re.compile(rf'"((?:[^"]|"")*)"(?={separator}|$)|([^{separator}]*)')

    def fields(line: str) -> Iterator[str]:
        at = 0
        while at <= len(line):
            match = field.match(line, at)
            assert match is not None
            quoted = match[1]
            yield match[2] if quoted is None else quoted.replace('""', '"')
            at = match.end() + 1

    return lambda line: list(fields(line)) if '"' in line else line.split(separator)


def _find_columns(file: Path, header: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    if repeated := [name for name in header if name and header.count(name) > 1]:
        raise InputError(f"{file}:1: the column '{repeated[0]}' is there more than once")
    for name in wanted:
        if name not in header:
            close = did_you_mean(name, header)
            raise InputError(f"{file}:1: no column '{name}'{close}; it has {', '.join(header)}")
    return {name: header.index(name) for name in wanted}


def _checked_path(path: str) -> str:
    """The path in its shortest form, so that one image has one path.

    Raises:
        InputError: it is empty or leaves the folder, on this system or on Windows.
    """
    if not path.strip():
        raise InputError(f"{PATH} is empty")
    if path.startswith(("/", "\\")) or _DRIVE.match(path):
        raise InputError(f"{PATH} must be relative to the data's folder, found '{path}'")
    if ".." in re.split(r"[/\\]", path):
        raise InputError(f"{PATH} must not contain '..', found '{path}'")
    if "\0" in path:
        raise InputError(f"{PATH} has a zero byte in it")
    return os.path.normpath(path)


def _merge(entry: _Entry, path: str, targets: Mapping[str, int], origin: Origin, schema: LabelSchema) -> None:
    columns = [(schema.names.index(task), task, target) for task, target in targets.items() if target != MISSING]
    for column, task, target in columns:
        before = entry.targets[column]
        if before not in (MISSING, target):
            names = schema.tasks[task].classes
            raise InputError(
                f"{task}: '{path}' is labelled '{names[target]}' here and '{names[before]}' in {entry.lines[column]}"
            )
    # Only now, so that a row that contradicts another leaves nothing behind.
    for column, _, target in columns:
        if entry.lines[column] is None:
            entry.targets[column], entry.lines[column] = target, origin
