"""Which videos there are and what they show: class folders, and the lists that data sets come with."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from datamodules.decoding import SUFFIXES
from datamodules.listing import hold_out
from datamodules.video_annotations import READERS
from datamodules.video_decoding import VIDEO_SUFFIXES, Span
from datamodules.video_rows import ACTION, Annotations, Row, Split
from vision.errors import InputError, did_you_mean, shorten
from vision.labels import MISSING, LabelSchema, TaskLabels

FOLDERS = "folders"
LAYOUTS = (FOLDERS, *READERS)


@dataclass(frozen=True)
class VideoListing:
    """Clips: videos, or parts of videos, and what they show.

    Attributes:
        paths: the files or folders of frames; several clips may be of one.
        spans: the part of the video that a clip is, None for all of it.
        labels: ``(n, sets)`` class indices, columns in the order of the schema, -1 where a label is missing.
        schema: the label sets: ``action``, or ``noun`` and ``verb``.
        origins: the row that lists each clip, as ``train.csv:12``; empty for class folders.
        missing: listed videos that are not there, and the (first) row that lists them.
    """

    paths: list[str]
    spans: list[Span | None]
    labels: NDArray[np.int64]
    schema: LabelSchema
    origins: list[str]
    missing: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def targets(self) -> Sequence[NDArray[np.int64]]:
        """The rows of ``labels``."""
        # An array is a sequence in all but its type, and a list of its rows would be made anew at each look.
        return cast("Sequence[NDArray[np.int64]]", self.labels)

    def subset(self, indices: Sequence[int] | NDArray[np.intp]) -> VideoListing:
        """The clips at ``indices``, in that order."""
        return VideoListing(
            [self.paths[i] for i in indices],
            [self.spans[i] for i in indices],
            self.labels[np.asarray(indices, np.intp)],
            self.schema,
            [self.origins[i] for i in indices],
            self.missing,
        )


def read_split(
    layout: str, root: Path, videos: str, where: str, split: Split, schema: LabelSchema | None = None
) -> VideoListing:
    """Lists the clips of a split.

    Listed videos that are not on the disk are left out and named in ``missing``.

    Args:
        layout: one of ``LAYOUTS``.
        root: folder of the data.
        videos: folder below ``root`` that the listed files lie in; class folders have none.
        where: annotation file below ``root``, see the readers in :mod:`datamodules.video_annotations`; of the layout
            ``folders`` the folder with one folder a class, videos or folders of frames at any depth below them.
        split: what the clips are for. Only those of ``test`` may lack labels.
        schema: the classes, of the training clips; by default those of this split.

    Raises:
        InputError: there is no such layout, a file or folder is missing, a row is bad, a class is not in ``schema``, or
            none of the listed videos is there.
    """
    if layout not in LAYOUTS:
        raise InputError(f"layout: no layout '{layout}'{did_you_mean(layout, LAYOUTS)}; there are {', '.join(LAYOUTS)}")
    if layout == FOLDERS:
        return list_class_folders(root / where, schema)
    return _find(READERS[layout](root / where, split), root / where, root / videos, schema)


def split_off(listing: VideoListing, fraction: float, seed: int) -> tuple[VideoListing, VideoListing]:
    """Two parts, the second with ``fraction`` of every class (at least one clip), chosen by ``seed``.

    Raises:
        InputError: there are several label sets, or a class has a single clip, so that it cannot be in both parts.
    """
    if len(listing.schema.names) > 1:
        raise InputError(f"clips with {' and '.join(listing.schema.names)} are not split by class: name a list for val")
    names = listing.schema.tasks[listing.schema.names[0]].classes
    held = hold_out(listing.labels[:, 0], names, fraction, seed, "video")
    return listing.subset(np.setdiff1d(np.arange(len(listing)), held)), listing.subset(held)


# ----------------------------------------------------------------------------------------------------- class folders
def list_class_folders(folder: Path, schema: LabelSchema | None = None) -> VideoListing:
    """One folder a class; in it, at any depth, video files and folders of frames. Classes in alphabetical order.

    Raises:
        InputError: the folder is missing or has no class folders, a class folder has no videos, or a class is not in
            ``schema``.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of videos")
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: expected one folder a class, found no folders")
    schema = schema or _schema(folder, {ACTION: found})
    classes = schema.tasks[ACTION].classes
    if unknown := [name for name in found if name not in classes]:
        raise InputError(f"{folder}: class folders that the training videos do not have: {shorten(unknown)}")
    paths: list[str] = []
    labels: list[int] = []
    for name in found:
        videos = find_videos(folder / name)
        if not videos:
            raise InputError(f"{folder / name}: the class folder has no videos ({', '.join(VIDEO_SUFFIXES)})")
        paths += videos
        labels += [classes.index(name)] * len(videos)
    return VideoListing(paths, [None] * len(paths), np.array(labels, np.int64)[:, None], schema, [""] * len(paths))


def find_videos(folder: str | Path) -> list[str]:
    """Every video file and every folder of frames below ``folder``, sorted; hidden ones are left out."""
    found = []
    for base, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = [name for name in sorted(files) if not name.startswith(".")]
        videos = [os.path.join(base, name) for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
        if not videos and base != str(folder) and any(name.lower().endswith(SUFFIXES) for name in names):
            folders.clear()
            videos = [base]
        found += videos
    return sorted(found)


# ----------------------------------------------------------------------------------------------------- listed videos
class _Files:
    """The entries of a folder, each of its folders being read once: cheaper than a look for each of a million files."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self._known: dict[str, dict[str, tuple[str, bool]]] = {}

    def find(self, places: Sequence[str]) -> tuple[str, bool] | None:
        """The first place at which there is something, suffix or not, and whether it is a folder."""
        for place in places:
            parent, name = os.path.split(place)
            entries = self._entries(os.path.join(self.folder, parent))
            if found := entries.get(name) or entries.get(name.rpartition(".")[0]):
                return found
        return None

    def _entries(self, folder: str) -> dict[str, tuple[str, bool]]:
        if folder not in self._known:
            entries: dict[str, tuple[str, bool]] = {}
            try:
                content = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                content = []
            for entry in content:
                found = os.path.join(folder, entry.name), entry.is_dir()
                entries[entry.name] = found
                if entry.name.lower().endswith(VIDEO_SUFFIXES):
                    entries.setdefault(entry.name.rpartition(".")[0], found)
            self._known[folder] = entries
        return self._known[folder]


def _find(annotations: Annotations, where: Path, videos: Path, schema: LabelSchema | None) -> VideoListing:
    """The rows whose videos are there."""
    rows = annotations.rows
    if not rows:
        raise InputError(f"{where}: the list has no rows")
    if not videos.is_dir():
        raise InputError(f"{videos}: no such folder of videos")
    schema = schema or _schema(where, _classes(annotations))
    if schema.names != list(annotations.classes):
        here, before = " and ".join(annotations.classes), " and ".join(schema.names)
        raise InputError(f"{where}: its labels are {here}, those of the training {before}")
    indices = [{name: index for index, name in enumerate(of.classes)} for of in schema.tasks.values()]
    files, missing = _Files(videos), dict[str, str]()
    kept: list[tuple[str, Span | None, list[int], str]] = []
    for row in rows:
        labels = [_index(row, label, known) for label, known in zip(row.labels, indices, strict=True)]
        if (found := files.find(row.places)) is None:
            missing.setdefault(os.path.join(videos, row.places[0]), f"not there; listed in {row.origin}")
        else:
            kept.append((found[0], row.frames if found[1] else row.seconds, labels, row.origin))
    if not kept:
        raise InputError(
            f"{where}: none of its {len(missing)} videos is below {videos}; the first should be {rows[0].places[0]}"
        )
    paths, spans, targets, origins = zip(*kept, strict=True)
    return VideoListing(list(paths), list(spans), np.array(targets, np.int64), schema, list(origins), missing)


def _index(row: Row, label: str | int, known: Mapping[str, int]) -> int:
    if isinstance(label, str):
        if label not in known:
            raise InputError(f"{row.file}:{row.line}: no class '{label}'{did_you_mean(label, known)}")
        return known[label]
    if label != MISSING and not 0 <= label < len(known):
        raise InputError(f"{row.file}:{row.line}: the label {label} is not in 0 to {len(known) - 1}")
    return label


def _classes(annotations: Annotations) -> dict[str, Sequence[str]]:
    """The classes of each label set: those that are known by name, else those of the rows."""
    classes = dict(annotations.classes)
    for column, name in enumerate(classes):
        if classes[name]:
            continue
        labels = {row.labels[column] for row in annotations.rows} - {MISSING}
        texts, numbers = (
            {label for label in labels if isinstance(label, str)},
            {n for n in labels if isinstance(n, int)},
        )
        classes[name] = sorted(texts) or [f"class {index}" for index in range(max(numbers, default=-1) + 1)]
    return classes


def _schema(where: Path, classes: Mapping[str, Sequence[str]]) -> LabelSchema:
    for name, found in classes.items():
        if len(found) < 2:
            raise InputError(f"{where}: expected two {name}s or more, found {shorten(found) or 'none'}")
        if repeated := [one for one in found if list(found).count(one) > 1]:
            raise InputError(f"{where}: the {name} '{repeated[0]}' is there more than once")
    return LabelSchema({name: TaskLabels(tuple(found)) for name, found in classes.items()})


# ---------------------------------------------------------------------------------------------------- mirror images
_OPPOSITES = {"left": "right", "leftward": "rightward", "leftwards": "rightwards", "clockwise": "counterclockwise"}
_OPPOSITES |= {right: left for left, right in _OPPOSITES.items()}


def flip_table(schema: LabelSchema) -> list[NDArray[np.int64]]:
    """What each class becomes when the picture is mirrored.

    Classes whose names become each other when left and right, or clockwise and counterclockwise, are exchanged are
    swapped, as "Pushing something from left to right" with "Pushing something from right to left". A class that speaks
    of a side or a turn and has no such partner must not be mirrored. All others stay what they are.

    Returns:
        For each label set int64 ``(classes,)``: the index of the class in the mirror, -1 for none.
    """
    return [_flips(labels.classes) for labels in schema.tasks.values()]


def _flips(names: Sequence[str]) -> NDArray[np.int64]:
    words = [_words(name) for name in names]
    index = {of: place for place, of in enumerate(words)}
    table = []
    for place, of in enumerate(words):
        mirrored = tuple(_OPPOSITES.get(word, word) for word in of)
        table.append(place if mirrored == of else index.get(mirrored, MISSING))
    return np.array(table, np.int64)


def _words(name: str) -> tuple[str, ...]:
    """A name's words in small letters, whatever joins them: ``SwipeLeft``, ``swipe_left`` and ``Swipe left``."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    joined = re.sub(r"(anti|counter)[ -]?clockwise", "counterclockwise", apart)
    return tuple(re.findall(r"[^\W_]+", joined))
