"""Lists of words in pictures: TSV, CSV, text, JSON lines, MMOCR's JSON."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datamodules.text_words import PictureFiles, Sieve, Strings
from vision.errors import InputError

Row = tuple[int, str, str | None]
"""Line (or entry) from 1 on, path, and label; None where the list has none for it."""
# First cells of a header row, which lists of this kind may have or not.
_HEADERS = ("path", "filename", "file_name", "file", "image", "image_path", "img_path")
PROBED = 5
"""Files at the beginning of a list of which one at least must be there; of the others, missing ones are unreadable."""


def find_list(folder: Path) -> Path | None:
    """``labels.*`` in a folder, if it has one."""
    return next((file for suffix in READERS if (file := folder / f"labels{suffix}").is_file()), None)


def read_rows(file: Path) -> Iterator[tuple[str, str | None]]:
    """Paths, joined to the list's own folder, and labels as they are written.

    Raises:
        InputError: the file is missing, no text in UTF-8 or not of its format, or has no rows; or none of its first
            files is there.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{file}: the list cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{file}:{line}: not a text in UTF-8 (byte 0x{error.object[error.start]:02x})") from error
    rows = READERS[file.suffix.lower()](file, text)
    first: list[str] = []
    for number, path, label in rows:
        if not path:
            raise InputError(f"{file}:{number}: expected a path and a label, found no path")
        if not _is_encodable(path) or "\0" in path:
            raise InputError(f"{file}:{number}: no name that a file may have: {path[:60]!r}")
        place = os.path.join(file.parent, path)
        if len(first) < PROBED:
            first.append(place)
        yield place, label
    if not first:
        raise InputError(f"{file}: the list has no rows")
    if not any(Path(path).exists() for path in first):
        raise InputError(f"{file}: no such picture: {first[0]} (paths are relative to the list's folder)")


def read_list(file: Path, charset: str, longest: int) -> PictureFiles:
    """The pictures of a list whose labels a network can learn; the others are counted.

    Raises:
        InputError: as in :func:`read_rows`.
    """
    sieve, paths = Sieve(charset, longest), Strings()
    for number, (path, label) in enumerate(read_rows(file)):
        if label is None:
            sieve.dropped["missing label"] += 1
            continue
        kept = len(sieve.labels)
        sieve.offer(number, label)
        if len(sieve.labels) > kept:
            paths.append(path)
    return PictureFiles(str(file), paths, sieve.labels, sieve.dropped)


def _tab(file: Path, text: str) -> Iterator[Row]:
    return _lines(file, text, lambda line: line.split("\t"))


def _blanks(file: Path, text: str) -> Iterator[Row]:
    """The first run of blanks ends the path; the first tab where there is one, as paths may have blanks then."""
    return _lines(file, text, lambda line: line.split("\t", 1) if "\t" in line else line.split(maxsplit=1))


def _lines(file: Path, text: str, cut: Callable[[str], list[str]]) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        path, *label = cut(line.rstrip("\r"))
        if number == 1 and _is_header(file, path):
            continue
        yield number, path.strip(), label[0] if label else None


def _comma(file: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(text.splitlines())
    try:
        for number, cells in enumerate(reader, 1):
            if not any(cells) or (number == 1 and _is_header(file, cells[0])):
                continue
            yield reader.line_num, cells[0].strip(), cells[1] if len(cells) > 1 else None
    except csv.Error as error:
        raise InputError(f"{file}:{reader.line_num}: not a readable row ({error})") from error


def _is_header(file: Path, cell: str) -> bool:
    return cell.strip().lower() in _HEADERS and not (file.parent / cell.strip()).exists()


def _json_lines(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            entry = _parsed(f"{file}:{number}", line)
            if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
                raise InputError(f'{file}:{number}: expected {{"filename": ..., "text": ...}}, found {line[:60]}')
            yield number, entry["filename"], _text(entry)


def _mmocr(file: Path, text: str) -> Iterator[Row]:
    """``{"data_list": [{"img_path": ..., "instances": [{"text": ...}]}]}``."""
    parsed = _parsed(str(file), text)
    entries = parsed.get("data_list") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise InputError(f'{file}: expected MMOCR\'s {{"metainfo": ..., "data_list": [...]}}')
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("img_path"), str):
            raise InputError(f"{file}: entry {number} of data_list has no img_path")
        words = entry.get("instances")
        word = words[0] if isinstance(words, list) and words else None
        yield number, entry["img_path"], _text(word) if isinstance(word, dict) else None


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error})") from error


def _text(entry: dict[str, Any]) -> str | None:
    text = entry.get("text")
    return text if isinstance(text, str) and _is_encodable(text) else None


def _is_encodable(text: str) -> bool:
    """JSON can spell halves of characters, which are no text."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".tsv": _tab,
    ".csv": _comma,
    ".jsonl": _json_lines,
    ".txt": _blanks,
    ".json": _mmocr,
}
"""The formats, by the suffix of a list's file."""
