"""Which images there are and what they show: class folders, and CSV or TSV lists."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.decoding import SUFFIXES
from vision.errors import InputError, did_you_mean, shorten


@dataclass(frozen=True)
class Listing:
    """Image files, and the class index of each into ``class_names``."""

    paths: list[str]
    targets: list[int]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Sequence[int] | NDArray[np.intp]) -> Listing:
        """The images at ``indices``, the classes unchanged."""
        return Listing([self.paths[i] for i in indices], [self.targets[i] for i in indices], self.class_names)


def find_images(folder: str | Path) -> list[str]:
    """Every image file below ``folder``, by its suffix, sorted; hidden files are left out."""
    found = []
    for base, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(base, f) for f in sorted(files) if f.lower().endswith(SUFFIXES) and not f.startswith(".")
        ]
    return found


def list_class_folders(folder: Path, class_names: Sequence[str] | None = None) -> Listing:
    """One folder a class, images at any depth below it; classes in alphabetical order.

    Args:
        folder: holds the class folders.
        class_names: the classes that are allowed (those of the training images); by default all folders.

    Raises:
        InputError: the folder is missing or has no class folders, a class folder has no images, or a class is
            not among ``class_names``.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: expected one folder a class, found no folders")
    classes = list(class_names) if class_names is not None else found
    if unknown := [name for name in found if name not in classes]:
        raise InputError(f"{folder}: class folders that the training images do not have: {shorten(unknown)}")
    paths: list[str] = []
    targets: list[int] = []
    for name in found:
        images = find_images(folder / name)
        if not images:
            raise InputError(f"{folder / name}: the class folder has no images ({', '.join(SUFFIXES)})")
        paths += images
        targets += [classes.index(name)] * len(images)
    return Listing(paths, targets, classes)


def read_image_list(file: Path, class_names: Sequence[str] | None = None) -> Listing:
    """A CSV or TSV file with a header row and the columns ``path`` and ``label``; others are ignored.

    Paths are relative to the list's own folder. Labels are names, also where they are numbers; classes are in
    alphabetical order, in numerical order where all are numbers.

    Raises:
        InputError: the file is missing or empty, a column is missing, a row is incomplete, or a label is not
            among ``class_names``; the row is named.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such image list")
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
            columns = reader.fieldnames or []
            for column in ("path", "label"):
                if column not in columns:
                    close = did_you_mean(column, columns)
                    raise InputError(f"{file}: no column '{column}'{close}; it has {shorten(columns) or 'none'}")
            rows = [(reader.line_num, row["path"], row["label"]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: not a readable text table ({error})") from error
    if not rows:
        raise InputError(f"{file}: the list has no rows")
    for line, path, label in rows:
        if not path or not label:
            raise InputError(f"{file}:{line}: expected a path and a label, found '{path or ''}' and '{label or ''}'")
    labels = {label for _, _, label in rows}
    classes = list(class_names) if class_names is not None else sorted(labels, key=_natural)
    index = {name: i for i, name in enumerate(classes)}
    for line, _, label in rows:
        if label not in index:
            raise InputError(
                f"{file}:{line}: label '{label}' is not a class of the training images{did_you_mean(label, index)}"
            )
    return Listing(
        [os.path.join(file.parent, path) for _, path, _ in rows], [index[label] for _, _, label in rows], classes
    )


def _natural(label: str) -> tuple[int, float, str]:
    return (0, int(label), label) if label.isdecimal() else (1, 0, label)


def split(listing: Listing, fraction: float, seed: int) -> tuple[Listing, Listing]:
    """Two parts, the second with ``fraction`` of every class (at least one image), chosen by ``seed``.

    Raises:
        InputError: a class has a single image, so that it cannot be in both parts.
    """
    held = hold_out(np.asarray(listing.targets), listing.class_names, fraction, seed, "image")
    return listing.subset(np.setdiff1d(np.arange(len(listing)), held)), listing.subset(held)


def hold_out(
    targets: NDArray[np.integer], class_names: Sequence[str], fraction: float, seed: int, kind: str
) -> NDArray[np.intp]:
    """Which files to validate with: ``fraction`` of every class, at least one, chosen by ``seed``.

    Args:
        targets: ``(n,)`` class indices into ``class_names``.
        class_names: for messages.
        fraction: in (0, 1).
        seed: of the choice.
        kind: what a file is, in messages.

    Returns:
        Their indices, ascending.

    Raises:
        InputError: a class has a single file, so that it cannot be trained and validated with.
    """
    random = np.random.default_rng(seed)
    held: list[NDArray[np.intp]] = []
    for target in np.unique(targets):
        members = np.flatnonzero(targets == target)
        if len(members) < 2:
            name = class_names[target]
            raise InputError(f"class '{name}' has one {kind}: two are needed to split off validation {kind}s")
        held.append(random.permutation(members)[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(held))
