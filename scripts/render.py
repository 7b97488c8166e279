"""``vision render``: words in pictures as an LMDB, drawn or taken from a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datamodules.decoding import MAX_PIXELS, UnreadableImageError, decode_image
from datamodules.text_lists import READERS, find_list, read_rows
from datamodules.text_lmdb import write_lmdb
from datamodules.text_renderer import RenderOptions, renderer
from scripts.arguments import Parser
from vision.errors import InputError

LEVELS = {"clean": 0.0, "mixed": 0.5, "hard": 1.0}
_DRAWING = ("count", "charset", "lengths", "level", "colour", "size", "fonts", "words", "seed")


def _parser() -> Parser:
    parser = Parser(
        prog="vision render",
        description="Write an LMDB of words in pictures, drawn or taken from a list, that 'vision fit' trains on.",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the LMDB; it must not have one yet")
    kinds = ", ".join(READERS)
    taken = f"a list ({kinds}) or a folder with labels.*: take its pictures and labels, unchanged, instead of drawing"
    parser.add_argument("--from", dest="listed", metavar="LIST", help=taken)
    parser.add_argument("--count", type=int, metavar="N", help="words (default 12000)")
    parser.add_argument("--charset", metavar="C", help="36 (default), 62, 94, a .txt file, or the characters")
    parser.add_argument("--lengths", type=float, nargs="+", metavar="P", help="shares of words of 1, 2, ... characters")
    parser.add_argument("--level", choices=[*LEVELS], help="clean, hard (bent and tilted), or half of each (default)")
    parser.add_argument("--colour", choices=["any", "grey"], help="any (default), or light text on dark")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels (default 32 128)")
    parser.add_argument("--fonts", metavar="DIR", help="folder of further fonts")
    parser.add_argument("--words", metavar="FILE", help="a word a line; half of the words are taken from it")
    parser.add_argument("--seed", type=int, metavar="N", help="default 0")
    return parser


def _drawn(options: RenderOptions) -> Iterator[tuple[bytes, str]]:
    """The words of a seed as PNG files."""
    draws = renderer(options)
    for index in tqdm(range(options.count), unit="word", disable=None):
        picture, word = draws.render(options.seed, index)
        yield cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes(), word


def _listed(file: Path, skipped: Counter[str]) -> Iterator[tuple[bytes, str]]:
    """The files of a list, byte for byte, with their labels; what cannot be used is counted."""
    for path, label in tqdm(read_rows(file), unit="word", disable=None):
        if label is None:
            skipped["without a label"] += 1
            continue
        try:
            data = Path(path).read_bytes()
            decode_image(data, path, MAX_PIXELS)
        except (OSError, UnreadableImageError):
            skipped["unreadable"] += 1
            continue
        yield data, label


def main(arguments: Sequence[str]) -> None:
    """Carries out ``vision render``.

    Raises:
        InputError: for whatever a user can put right.
    """
    given = _parser().parse_args(arguments)
    out, skipped = Path(given.out), Counter[str]()
    if given.listed is not None:
        if unused := [f"--{name}" for name in _DRAWING if getattr(given, name) is not None]:
            raise InputError(f"render: {unused[0]} is for drawn words, and --from takes those of a list")
        source = Path(given.listed)
        file = find_list(source) if source.is_dir() else source
        if file is None or file.suffix.lower() not in READERS:
            raise InputError(f"--from: expected a list or a folder with labels ({', '.join(READERS)}), found {source}")
        number = write_lmdb(out, _listed(file, skipped))
    else:
        chosen = {name: getattr(given, name) for name in _DRAWING if getattr(given, name) is not None}
        if "charset" in chosen:
            chosen["alphabet"] = chosen.pop("charset")
        chosen["hard_share"] = LEVELS[chosen.pop("level", "mixed")]
        for name in ("lengths", "size"):
            if name in chosen:
                chosen[name] = tuple(chosen[name])
        number = write_lmdb(out, _drawn(RenderOptions(**chosen)))
    left = "".join(f", {count:,} {reason} left out" for reason, count in skipped.items())
    print(f"vision: {number:,} words are in {out}{left}", flush=True)
