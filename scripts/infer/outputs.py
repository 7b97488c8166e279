"""What every system's ``infer`` on images is told and leaves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.arguments import Parser
from vision.errors import InputError
from vision.pictures import Picture


def add_arguments(parser: Parser, checkpoint: str, backbone: str) -> None:
    """The flags that all have; what ``--checkpoint`` and ``--backbone`` take is the system's own."""
    parser.add_argument("--input", nargs="+", required=True, metavar="I", help="image files, folders or globs")
    parser.add_argument("--checkpoint", required=True, metavar="C", help=checkpoint)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--backbone", help=backbone)
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="images at a time (default 32)")
    parser.add_argument("--num-workers", type=int, default=0, metavar="N", help="processes that decode (default 0)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")


def write_results(
    folder: Path,
    content: Mapping[str, Any],
    header: Sequence[str],
    rows: Sequence[Sequence[Any]],
    sheet: Picture,
) -> None:
    """Writes ``predictions.json``, ``predictions.csv`` and ``contact_sheet.png``.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        # Names of files and folders may be no Unicode; what cannot be encoded is written as JSON's own escapes.
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / "predictions.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
            csv.writer(stream).writerows([header, *rows])
        Image.fromarray(sheet).save(folder / "contact_sheet.png")
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be written ({error.strerror})") from error


def require_some(read: int, files: Sequence[str], unreadable: Mapping[str, str]) -> None:
    """Raises :class:`InputError` where none of the files could be read."""
    if not read:
        path, reason = next(iter(unreadable.items()))
        raise InputError(f"none of {len(files)} images could be read; {path}: {reason}")


def say_what_was_done(read: int, files: Sequence[str], unreadable: Mapping[str, str], folder: Path) -> None:
    """The last lines of the command."""
    for path, reason in unreadable.items():
        print(f"vision: unreadable, left out: {path}: {reason}")
    print(f"vision: {read} of {len(files)} images, results in {folder}")
