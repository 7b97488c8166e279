"""Where the files of a list are, whatever prefix the list's author had in front of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from vision.errors import InputError, did_you_mean, shorten

PROBED = 5
"""Files at the beginning of a list that must be there; of the others, those that are missing count as unreadable."""


def fold(name: str) -> str:
    """A folder's name without what its copies differ in: ``Real World`` and ``RealWorld`` are one, ``Amazon`` too."""
    return re.sub(r"[\s_-]", "", name).casefold()


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones; none where it is missing."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


@dataclass(frozen=True)
class Rewrite:
    """A rule that makes places on the disk of the paths of a list.

    Attributes:
        base: the folder that they are below.
        folders: those in the base, by their names and their folded names; the first part of a path may be spelled in
            another way.
        drop: so many leading parts of a path are left out.
        images: whether the folder ``images`` between domain and class is as the list has it, left out, or put in.
    """

    base: Path
    folders: Mapping[str, str] = field(repr=False)
    drop: int = 0
    images: str = "keep"

    def __call__(self, path: str) -> str:
        """The place of a path, whether or not there is a file."""
        parts = path.split("/")[self.drop :]
        if self.images == "drop" and parts[-3:-2] == ["images"]:
            del parts[-3]
        elif self.images == "insert" and parts[-3:-2] != ["images"]:
            parts.insert(-2, "images")
        parts[0] = self.folders.get(parts[0]) or self.folders.get(fold(parts[0]), parts[0])
        return f"{self.base}/{'/'.join(parts)}"


def _rules(base: Path, path: str) -> Iterator[Rewrite]:
    """The rules for paths below a folder, those that change least first."""
    names = subfolders(base)
    folders = {**{fold(name): name for name in names}, **{name: name for name in names}}
    parts = path.split("/")
    # Never down to class and file: the domain's folder would go, and another domain's files would be taken.
    drops = range(max(1, len(parts) - 2 - (parts[-3:-2] == ["images"])))
    return (Rewrite(base, folders, drop, images) for drop in drops for images in ("keep", "drop", "insert"))


def resolve_paths(file: Path, lines: Sequence[int], paths: Sequence[str], root: Path) -> list[str]:
    """The files of a list: the first rule that finds all of the first few is taken for all.

    Paths are relative to ``root`` or to the list's own folder, or absolute. Leading parts may be too many, a folder
    ``images`` between domain and class may be there or not, and a list of ``class/file`` may leave out the domain's
    folder, which is the one that the list is named after, else the only one that has these files.

    Args:
        file: the list.
        lines: of the paths in it, for messages.
        paths: as they stand there, with ``/``; one at least.
        root: folder of the data.

    Raises:
        InputError: no rule finds the first files, or several folders have them.
    """
    probed = paths[:PROBED]
    if probed[0].startswith("/") and all(map(os.path.exists, probed)):
        return list(paths)
    best = 0
    for rule in chain.from_iterable(_rules(base, probed[0]) for base in (root, file.parent)):
        found = _found(rule, probed)
        if found == len(probed):
            return [rule(path) for path in paths]
        best = max(best, found)
    there = subfolders(root)
    rules = chain.from_iterable(_rules(root / name, probed[0]) for name in there)
    fitting = {rule.base.name: rule for rule in rules if _found(rule, probed) == len(probed)}
    named = {name: rule for name, rule in fitting.items() if fold(name) in fold(file.stem)}
    chosen = named or fitting
    if len(chosen) == 1:
        (rule,) = chosen.values()
        return [rule(path) for path in paths]
    if chosen:
        raise InputError(
            f"{file}:{lines[0]}: '{probed[0]}' is in several folders of {root}: {shorten([*chosen])}; name the list "
            "after one of them, or put the folder in front of its paths"
        )
    # With a rule that finds some, the first that it does not find; else the first of all.
    line, path = lines[best], probed[best]
    near = next(filter(None, (did_you_mean(part, there) for part in path.split("/")[:-2] if part not in there)), "")
    raise InputError(
        f"{file}:{line}: no file '{path}' below {root} or beside the list{near}; the folders there are "
        f"{shorten(there) or 'none'}"
    )


def _found(rule: Rewrite, paths: Sequence[str]) -> int:
    """How many of the paths are there, up to the first that is not."""
    for number, path in enumerate(paths):
        if not os.path.exists(rule(path)):  # noqa: PTH110 (as fast as it goes)
            return number
    return len(paths)
