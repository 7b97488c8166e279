"""Which pictures a domain has and what they are labelled with: class folders, text lists, tables."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.decoding import SUFFIXES
from datamodules.domain_paths import fold, resolve_paths, subfolders
from datamodules.listing import find_images, list_class_folders
from vision.errors import InputError, did_you_mean, shorten

LISTS = (".txt", ".csv", ".tsv")


@dataclass(frozen=True)
class DomainPictures:
    """The pictures of a domain as they are listed.

    Attributes:
        place: the folder or list.
        paths: the files.
        labels: as they stand there, one a picture: names, or of a list numbers too; None without labels.
        lines: of a list, where each picture is listed; None of a folder.
    """

    place: Path
    paths: list[str]
    labels: list[str] | None
    lines: list[int] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, row: int) -> str:
        """``amazon.txt:12``, or the folder."""
        return f"{self.place}:{self.lines[row]}" if self.lines is not None else str(self.place)

    def parent(self, row: int) -> str:
        """The name of the folder that a picture lies in."""
        return os.path.basename(os.path.dirname(self.paths[row]))  # noqa: PTH119, PTH120 (a Path a picture is slow)


def read_domain(root: Path, name: str, argument: str) -> DomainPictures:
    """The pictures of a domain.

    Args:
        root: folder of the data.
        name: below it, or absolute: a folder with one folder a class (also in a sole folder ``images``) or, without
            labels, with the pictures in it; a ``.txt`` list, a line of which is ``path label`` or, without labels,
            ``path``; a ``.csv`` or ``.tsv`` table with the columns ``path`` and, unless there are no labels,
            ``label``. The label of a text list stands behind the last blank.
        argument: that names it, for messages.

    Raises:
        InputError: there is no such folder or list; it has no pictures, is no text in UTF-8, or has a bad row, which is
            named; or the files of a list are not found.
    """
    place = _find(root, name, argument)
    if place.is_dir():
        return _read_folder(place)
    rows = _read_table(place) if place.suffix != ".txt" else _read_lines(place)
    lines, paths, labels = [], [], []
    for line, path, label in rows:
        lines.append(line)
        paths.append(path)
        labels.append(label)
    if not paths:
        raise InputError(f"{place}: the list has no pictures")
    labelled = [label for label in labels if label is not None]
    if labelled and len(labelled) != len(labels):
        first = labels.index(None)
        raise InputError(f"{place}:{lines[first]}: expected a path and a label, found '{paths[first]}'")
    return DomainPictures(place, resolve_paths(place, lines, paths, root), labelled or None, lines)


def _find(root: Path, name: str, argument: str) -> Path:
    place = root / name
    if place.is_dir() or (place.suffix in LISTS and place.is_file()):
        return place
    if not place.exists() and place.suffix not in LISTS:
        close = [folder for folder in subfolders(root) if fold(folder) == fold(name)]
        if len(close) == 1:
            return root / close[0]
    there = subfolders(root) + sorted(entry.name for entry in os.scandir(root) if entry.name.endswith(LISTS))
    raise InputError(
        f"data.{argument}: no folder or list ({', '.join(LISTS)}) '{name}' in {root}{did_you_mean(name, there)}; "
        f"it has {shorten(there) or 'none'}"
    )


def _read_folder(folder: Path) -> DomainPictures:
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    if any(entry.name.lower().endswith(SUFFIXES) and entry.is_file() for entry in entries):
        return DomainPictures(folder, find_images(folder), None)
    if subfolders(folder) == ["images"]:  # Office-31 as it is downloaded
        return _read_folder(folder / "images")
    listing = list_class_folders(folder)
    return DomainPictures(folder, listing.paths, [listing.class_names[target] for target in listing.targets])


def _read_text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: the list cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]  # without a mark of the byte order
        line = before.count(b"\n") + 1
        raise InputError(f"{file}:{line}: not a text in UTF-8 (byte 0x{byte:02x})") from error


Row = tuple[int, str, str | None]


def _read_lines(file: Path) -> Iterator[Row]:
    for number, text in enumerate(_read_text(file).split("\n"), 1):
        line = text.strip()
        if not line:
            continue
        if line.lower().endswith(SUFFIXES):
            yield number, line, None
            continue
        path, *label = line.rsplit(maxsplit=1)
        if not label:
            raise InputError(f"{file}:{number}: expected a path and a label, found '{line}'")
        yield number, path, label[0]


def _read_table(file: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_read_text(file), newline=""), delimiter="\t" if file.suffix == ".tsv" else ",")
    try:
        columns: Sequence[str] = reader.fieldnames or []
        if "path" not in columns:
            raise InputError(f"{file}:1: no column 'path'{did_you_mean('path', columns)}; it has {shorten(columns)}")
        # Another column may be a label that is spelled wrong, so only a table without any says that there are none.
        if "label" not in columns and len(columns) > 1:
            raise InputError(f"{file}:1: no column 'label'{did_you_mean('label', columns)}; it has {shorten(columns)}")
        for row in reader:
            path, label = row["path"], row.get("label")
            if not path or ("label" in columns and not label):
                raise InputError(
                    f"{file}:{reader.line_num}: expected a path and a label, found '{path or ''}' and '{label or ''}'"
                )
            yield reader.line_num, path, label
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: not a readable table ({error})") from error
