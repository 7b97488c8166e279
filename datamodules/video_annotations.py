"""The lists of videos that data sets come with: what each row says, before anything is looked for on the disk."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datamodules.video_decoding import Span
from datamodules.video_rows import (
    ACTION,
    Annotations,
    Row,
    Split,
    class_index,
    integer,
    label_name,
    label_text,
    read_columns,
    read_lines,
    read_text,
)
from vision.errors import InputError, did_you_mean
from vision.labels import MISSING

NOUN, VERB = "noun", "verb"

_EPIC_CLASSES = {NOUN: 300, VERB: 97}
_EPIC_TIME = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")
_HMDB_ENDING = "_test_split"


def read_kinetics(file: Path, split: Split) -> Annotations:
    """A CSV file of Kinetics: ``label,youtube_id,time_start,time_end,split``; tests may lack the labels.

    Files are called ``<id>_<start>_<end>.mp4``, with six digits each, and may lie in folders named after the label
    (with spaces or underscores) or the split, or both.

    Raises:
        InputError: the file is missing or of another layout, or a row is bad.
    """
    columns = ["youtube_id", "time_start", "time_end"] + ([] if split == "test" else ["label"])
    rows = []
    for line, row in read_columns(file, "kinetics", columns):
        start, end = (integer(file, line, name, row[name]) for name in ("time_start", "time_end"))
        stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        label = label_name(file, line, row.get("label"), split)
        folders = ("",) if label == MISSING else (f"{label}/", f"{str(label).replace(' ', '_')}/", "")
        places = tuple(f"{outer}{inner}{stem}" for outer in ("", f"{split}/") for inner in folders)
        rows.append(Row(file, line, places, (label,)))
    return Annotations(rows)


def read_ssv2(file: Path, split: Split) -> Annotations:
    """A JSON file of Something-Something v2; the classes are those of ``labels.json`` beside it, if it is there.

    Files are called ``<id>.webm``. A template's brackets are no part of its class's name. Tests may lack templates.

    Raises:
        InputError: a file is missing or of another layout, or an entry is bad.
    """
    rows = []
    for line, entry in _json_list(file):
        if not isinstance(entry, dict) or not str(entry.get("id", "")).strip():
            raise InputError(f"{file}:{line}: expected an entry with an id, found {str(entry)[:60]}")
        template = re.sub(r"[\[\]]", "", str(entry.get("template") or ""))
        rows.append(Row(file, line, (str(entry["id"]),), (label_name(file, line, template, split),)))
    for name in ("labels.json", "something-something-v2-labels.json"):
        if (file.parent / name).is_file():
            return Annotations(rows, {ACTION: _ssv2_classes(file.parent / name)})
    return Annotations(rows)


def _json_list(file: Path) -> Iterator[tuple[int, Any]]:
    """The entries of a JSON list, with their lines."""
    text, decoder = read_text(file), json.JSONDecoder()
    gap = re.compile(r"[\s,]*")
    begin = text.find("[")
    try:
        if begin < 0 or text[:begin].strip():
            json.loads(text)
            raise InputError(f"{file}:1: not a list of the layout ssv2: expected a JSON list of entries")
        line, last, place = 1, 0, begin + 1
        while True:
            found = gap.match(text, place)
            assert found is not None
            place = found.end()
            if text[place : place + 1] == "]":
                return
            line, last = line + text.count("\n", last, place), place
            entry, place = decoder.raw_decode(text, place)
            yield line, entry
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: not a list of the layout ssv2: not JSON ({error.msg})") from error


def _ssv2_classes(file: Path) -> list[str]:
    try:
        content = json.loads(read_text(file))
        indices = {re.sub(r"[\[\]]", "", name): int(index) for name, index in content.items()}
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: not JSON ({error.msg})") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{file}: expected a JSON object of class names and their indices") from error
    if sorted(indices.values()) != list(range(len(content))):
        raise InputError(f"{file}: expected the indices 0 to {len(content) - 1}, each once")
    return sorted(indices, key=indices.__getitem__)


def read_ucf101(file: Path, split: Split) -> Annotations:  # noqa: ARG001 (every row has its class in its path)
    """A list of UCF101, ``Class/video.avi <number>``; test lists have no numbers, the class being the folder.

    Numbers start at 1 and are those of ``classInd.txt`` beside the list, if it is there; else classes are in
    alphabetical order.

    Raises:
        InputError: a file is missing or of another layout, or a row is bad.
    """
    names = _numbered(file.parent / "classInd.txt")
    rows = []
    for line, text in read_lines(file):
        path, number = text, None
        if (numbered := re.fullmatch(r"(.*\S)\s+(\S+)", text)) and not text.lower().endswith(".avi"):
            path, number = numbered[1], integer(file, line, "the label", numbered[2])
        label = path.split("/")[0]
        if "/" not in path:
            raise InputError(f"{file}:{line}: expected 'Class/video.avi' and a number, found '{text[:60]}'")
        if names and label not in names:
            raise InputError(f"{file}:{line}: no class '{label}' in classInd.txt{did_you_mean(label, names)}")
        if names and number is not None:
            if not 1 <= number <= len(names):
                raise InputError(f"{file}:{line}: the label {number} is not in 1 to {len(names)}")
            if names[number - 1] != label:
                is_that = f"the label {number} is '{names[number - 1]}' in classInd.txt"
                raise InputError(f"{file}:{line}: {is_that}, the folder is '{label}'")
        rows.append(Row(file, line, (path, path.split("/")[-1]), (label,)))
    return Annotations(rows, {ACTION: names})


def _numbered(file: Path) -> list[str]:
    """The names of a class index (``1 ApplyEyeMakeup``); none where there is no such file."""
    if not file.is_file():
        return []
    names: list[str] = []
    for line, text in read_lines(file):
        number, _, name = text.partition(" ")
        if number != str(len(names) + 1) or not name.strip():
            raise InputError(f"{file}:{line}: expected '{len(names) + 1} ClassName', found '{text[:60]}'")
        names.append(name.strip())
    return names


def read_hmdb51(where: Path, split: Split) -> Annotations:
    """The lists of HMDB51, ``<class>_test_split1.txt`` a class: ``video.avi <0, 1 or 2>``.

    1 is for training, 2 for validation and test, 0 unused.

    Args:
        where: the lists of a split with a star for the class (``splits/*_test_split2.txt``), or a folder, which stands
            for those of split 1.
        split: what the rows are wanted for.

    Raises:
        InputError: there are no such lists, or a row is bad.
    """
    pattern = f"*{_HMDB_ENDING}1.txt" if where.is_dir() else where.name
    folder = where if where.is_dir() else where.parent
    files = [file for file in sorted(folder.glob(pattern)) if _HMDB_ENDING in file.name]
    if not files:
        raise InputError(f"{folder / pattern}: no lists of the layout hmdb51 (<class>{_HMDB_ENDING}1.txt)")
    rows = []
    for file in files:
        label = file.name[: file.name.rindex(_HMDB_ENDING)]
        for line, text in read_lines(file):
            name, _, use = text.rpartition(" ")
            if not name or use not in ("0", "1", "2"):
                raise InputError(f"{file}:{line}: expected 'video.avi' and 0, 1 or 2, found '{text[:60]}'")
            if use == ("1" if split == "train" else "2"):
                rows.append(Row(file, line, (f"{label}/{name.strip()}", name.strip()), (label,)))
    return Annotations(rows)


def read_epic(file: Path, split: Split) -> Annotations:
    """A CSV file of EPIC-KITCHENS-100: spans of long videos, labelled with a noun and a verb.

    Tests may lack the labels. Videos are files or folders of frames called ``<video_id>``, and may lie in a folder of
    the participant and there in ``videos`` or ``rgb_frames``. Frames are numbered from 1 on, and ``stop_frame`` is the
    last one of a row: where it equals ``start_frame`` there is one. The names of the classes are those of
    ``EPIC_100_noun_classes.csv`` and ``EPIC_100_verb_classes.csv`` beside the list, if they are there.

    Raises:
        InputError: a file is missing or of another layout, or a row is bad.
    """
    labelled = [] if split == "test" else ["noun_class", "verb_class"]
    columns = ["video_id", "start_timestamp", "stop_timestamp", "start_frame", "stop_frame", *labelled]
    rows = []
    for line, row in read_columns(file, "epic", columns):
        video = row["video_id"].strip()
        person = video.split("_")[0]
        places = (video, f"{person}/{video}", f"{person}/videos/{video}", f"{person}/rgb_frames/{video}")
        labels = tuple(_epic_label(file, line, f"{name}_class", row, split) for name in (NOUN, VERB))
        start, stop = (_epic_seconds(file, line, row[name]) for name in ("start_timestamp", "stop_timestamp"))
        first, last = (integer(file, line, name, row[name]) for name in ("start_frame", "stop_frame"))
        spans = Span(start, stop, "seconds"), Span(max(0, first - 1), last, "frames")
        rows.append(Row(file, line, places, labels, *spans))
    return Annotations(rows, {name: _epic_classes(file.parent, name) for name in (NOUN, VERB)})


def _epic_label(file: Path, line: int, column: str, row: dict[str, str], split: Split) -> int:
    text = label_text(file, line, row.get(column), split)
    return MISSING if text is None else class_index(file, line, column, text)


def _epic_seconds(file: Path, line: int, text: str) -> float:
    parts = _EPIC_TIME.fullmatch(text.strip())
    if parts is None:
        raise InputError(f"{file}:{line}: expected a time as HH:MM:SS.ss, found '{text}'")
    return 3600 * int(parts[1]) + 60 * int(parts[2]) + float(parts[3])


def _epic_classes(folder: Path, name: str) -> list[str]:
    file = folder / f"EPIC_100_{name}_classes.csv"
    if not file.is_file():
        return [f"{name} {index}" for index in range(_EPIC_CLASSES[name])]
    names: list[str] = []
    for line, row in read_columns(file, "epic", ["id", "key"]):
        if integer(file, line, "id", row["id"]) != len(names):
            raise InputError(f"{file}:{line}: expected the id {len(names)}, found {row['id']}")
        names.append(row["key"].strip())
    return names


def read_list(file: Path, split: Split) -> Annotations:
    """A plain list, ``path label`` or ``path label start end``, separated by spaces, tabs or commas.

    What the first row is separated by holds for all: tabs, else commas, else spaces; paths with spaces need one of
    the others. Labels are indices from 0 on, or names. A span is in seconds in a video file, and in frames in a
    folder of frames. The names of the classes are the lines of ``classes.txt`` beside the list, if it is there. Tests
    may lack the labels.

    Raises:
        InputError: the file is missing or of another layout, or a row is bad.
    """
    lines = list(read_lines(file))
    first = lines[0][1] if lines else ""
    separator = next((sign for sign in "\t," if sign in first), None)
    classes = file.parent / "classes.txt"
    names = [text for _, text in read_lines(classes)] if classes.is_file() else []
    rows: list[Row] = []
    numbered = False
    for line, text in lines:
        fields = text.split() if separator is None else next(csv.reader([text], delimiter=separator))
        if len(fields) not in ((1, 2, 4) if split == "test" else (2, 4)):
            hint = " (a path with spaces needs tabs or commas)" if separator is None else ""
            expected = "'path label' or 'path label start end'"
            raise InputError(f"{file}:{line}: expected {expected}, found '{text[:60]}'{hint}")
        label = label_name(file, line, fields[1] if len(fields) > 1 else None, split)
        if isinstance(label, str):
            # The first row says whether labels are numbers, so that a mistake is not taken for a class's name.
            numbered = numbered or (not rows and re.fullmatch(r"[+-]?\d+", label) is not None)
            label = class_index(file, line, "the label", label) if numbered else label
        rows.append(Row(file, line, (fields[0].strip(),), (label,), *_list_spans(file, line, fields[2:])))
    return Annotations(rows, {ACTION: names})


def _list_spans(file: Path, line: int, fields: Sequence[str]) -> tuple[Span | None, Span | None]:
    if not fields:
        return None, None
    try:
        start, end = map(float, fields)
    except ValueError as error:
        raise InputError(f"{file}:{line}: start and end must be numbers, found '{' '.join(fields)}'") from error
    if not 0 <= start < end:
        raise InputError(f"{file}:{line}: start must be at least 0 and end behind it, found {start:g} and {end:g}")
    return Span(start, end, "seconds"), Span(start, end, "frames")


READERS: dict[str, Callable[[Path, Split], Annotations]] = {
    "kinetics": read_kinetics,
    "ssv2": read_ssv2,
    "ucf101": read_ucf101,
    "hmdb51": read_hmdb51,
    "epic": read_epic,
    "list": read_list,
}
"""What reads the lists of each layout."""
