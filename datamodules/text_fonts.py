"""Fonts that every installation has, matplotlib's and OpenCV's, and those of a folder: which characters, and masks."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from vision.errors import InputError

HEIGHT = 48
"""Pixels of a letter's body."""
SUFFIXES = (".ttf", ".otf", ".ttc")
_ALPHANUMERIC = frozenset(string.digits + string.ascii_letters)
_ASCII = _ALPHANUMERIC | frozenset(string.punctuation)
# OpenCV's faces with their weights; its Hershey fonts are drawn with the first of these since version 5.
_OPENCV = (("sans", 300), ("sans", 700), ("italic", 400), ("uni", 400))


@dataclass(frozen=True)
class Face:
    """A font.

    Attributes:
        name: the file, or OpenCV's name for it.
        characters: those that it has.
        weight: of OpenCV's faces, the thickness; None of files.
    """

    name: str
    characters: frozenset[str]
    weight: int | None = None

    def draw(self, word: str) -> NDArray[np.uint8]:
        """A line of text, uint8 ``(h, w)``, 255 where there is ink; its body lies in the middle of the height."""
        if self.weight is None:
            return _draw_file(self.name, word)
        canvas = np.zeros((2 * HEIGHT, HEIGHT * (len(word) + 1)), np.uint8)
        baseline = (HEIGHT // 2, HEIGHT + HEIGHT // 3)
        cv2.putText(canvas, word, baseline, (255, 255, 255), _opencv_face(self.name), HEIGHT, self.weight)
        width = int(np.flatnonzero(canvas.any(axis=0)).max(initial=0)) + 1
        return canvas[:, : width + HEIGHT // 4]


@lru_cache
def _opencv_face(name: str) -> cv2.FontFace:
    return cv2.FontFace(name)


@lru_cache(maxsize=256)
def _open(file: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, HEIGHT)


def _draw_file(file: str, word: str) -> NDArray[np.uint8]:
    font = _open(file)
    ascent, descent = font.getmetrics()
    left, top, right, bottom = font.getbbox(word)
    edge = max(HEIGHT // 4, -int(top), int(bottom) - ascent - descent)
    canvas = PILImage.new("L", (int(right - left) + HEIGHT // 2, ascent + descent + 2 * edge))
    ImageDraw.Draw(canvas).text((HEIGHT // 4 - left, edge), word, fill=255, font=font)
    return np.array(canvas)


@lru_cache
def embedded_faces() -> tuple[tuple[Face, ...], tuple[Face, ...]]:
    """Matplotlib's fonts that have letters and digits, and OpenCV's."""
    files = []
    for file in sorted(Path(mpl.get_data_path(), "fonts", "ttf").glob("*.ttf")):
        # The last resort has a box for everything; this Computer Modern has old digits and Greek in odd places.
        if file.stem.startswith(("LastResort", "cmmi", "cmex", "cmsy")):
            continue
        characters = _characters(file)
        if file.stem.startswith("cm"):
            # TeX's encoding: other marks sit in the places of some punctuation.
            characters &= _ASCII if file.stem == "cmtt10" else _ALPHANUMERIC
        if characters >= _ALPHANUMERIC:
            files.append(Face(str(file), characters))
    return tuple(files), tuple(Face(name, _ASCII, weight) for name, weight in _OPENCV)


def read_faces(folder: str) -> tuple[Face, ...]:
    """The fonts at any depth below a folder.

    Raises:
        InputError: there is no such folder, it has no fonts, or one cannot be read.
    """
    return tuple(_read_faces(Path(folder)))


def _read_faces(folder: Path) -> Iterator[Face]:
    if not folder.is_dir():
        raise InputError(f"fonts: no such folder: {folder}")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"fonts: {folder} has no fonts ({', '.join(SUFFIXES)})")
    for file in files:
        try:
            _open(str(file))
            characters = _characters(file)
        except (OSError, RuntimeError) as error:
            raise InputError(f"fonts: {file} is not a font that can be read") from error
        yield Face(str(file), characters)


def _characters(file: Path) -> frozenset[str]:
    return frozenset(map(chr, FT2Font(str(file)).get_charmap()))
