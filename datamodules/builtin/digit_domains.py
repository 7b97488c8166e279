"""Digits in two domains: printed and handwritten, and two ways to write by hand; for domain adaptation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 32
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono"),
    *("STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10"),
)
COPIES = 12  # of each digit in each font
DRAWN = 64  # pixels, before the scanner's 8

Grey = NDArray[np.float32]


def write_fonts(folder: Path) -> None:
    """Writes ``source/<digit>/*.png``, 1320 digits printed in 11 fonts, and ``target/<digit>/*.png``, 1797 by hand.

    32x32, grey, light on dark. The printed ones are slightly turned, shifted and scaled, then scanned at 8x8 as the
    handwriting was. The fonts are matplotlib's; a file's name ends in its font (``0007_cmr10.png``).
    """
    random = np.random.default_rng(0)
    for font in FONTS:
        for digit in range(10):
            for copy in range(COPIES):
                scan = cv2.resize(_printed(font, digit, random), (8, 8), interpolation=cv2.INTER_AREA)
                _save(scan / max(scan.max(), 1e-6), folder / "source" / str(digit) / f"{copy:04d}_{font}.png")
    for number, (scan, digit) in enumerate(_scans()):
        _save(scan, folder / "target" / str(digit) / f"{number:04d}_hand.png")


def write_styles(folder: Path) -> None:
    """Writes ``source/<digit>/*.png`` and ``target/<digit>/*.png``: two halves of the handwriting, 898 and 899 scans.

    32x32, grey. Those of the source are light on dark and plain, sheared, or written with a thick pen; those of the
    target are turned and narrow, dark on light, noisy, or blurred by another scanner. A file's name ends in its style.
    """
    random = np.random.default_rng(0)
    scans = _scans()
    digits = [digit for _, digit in scans]
    halves = train_test_split(np.arange(len(scans)), test_size=0.5, random_state=0, stratify=digits)
    for domain, half, styles in zip(("source", "target"), halves, (SOURCE_STYLES, TARGET_STYLES), strict=True):
        for place, number in enumerate(random.permutation(half).tolist()):
            scan, digit = scans[number]
            name = list(styles)[place % len(styles)]
            _save(styles[name](_enlarged(scan), random), folder / domain / str(digit) / f"{number:04d}_{name}.png")


def _scans() -> list[tuple[Grey, int]]:
    """The handwritten digits, 8x8 in [0, 1], and what they are."""
    digits = load_digits()
    return [
        ((image / 16).astype(np.float32), int(digit)) for image, digit in zip(digits.images, digits.target, strict=True)
    ]


def _enlarged(picture: Grey) -> Grey:
    if picture.shape == (SIDE, SIDE):
        return picture
    return np.clip(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), 0, 1)


def _save(picture: Grey, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray((255 * np.clip(_enlarged(picture), 0, 1)).round().astype(np.uint8)).save(file)


def _printed(font: str, digit: int, random: np.random.Generator) -> Grey:
    """A digit in a font, as large as its frame, ``(DRAWN, DRAWN)`` in [0, 1], turned and shifted a little."""
    file = Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    drawn = PILImage.new("L", (DRAWN * 3, DRAWN * 3))
    ImageDraw.Draw(drawn).text((DRAWN, DRAWN), str(digit), fill=255, font=ImageFont.truetype(str(file), DRAWN))
    box = drawn.getbbox()
    assert box is not None
    glyph = np.asarray(drawn.crop(box), np.float32) / 255
    height, width = glyph.shape
    scale = 0.92 * DRAWN / height * random.uniform(0.9, 1.05)
    angle = np.deg2rad(random.uniform(-8, 8))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = DRAWN / 2 + random.uniform(-3, 3, 2) - turn @ np.array([width / 2, height / 2])
    warp = np.hstack([turn, shift[:, None]])
    return cv2.warpAffine(glyph, warp, (DRAWN, DRAWN), flags=cv2.INTER_AREA).astype(np.float32)


def _warped(picture: Grey, warp: list[list[float]]) -> Grey:
    """A picture under a linear map about its centre."""
    linear, centre = np.array(warp), np.full(2, (SIDE - 1) / 2)
    matrix = np.hstack([linear, (centre - linear @ centre)[:, None]])
    return cv2.warpAffine(picture, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR).astype(np.float32)


def _sheared(picture: Grey, random: np.random.Generator) -> Grey:
    return _warped(picture, [[1, -random.uniform(0.2, 0.35)], [0, 1]])


def _thick(picture: Grey, _random: np.random.Generator) -> Grey:
    return cv2.dilate(picture, np.ones((4, 4), np.uint8)).astype(np.float32)


def _turned(picture: Grey, random: np.random.Generator) -> Grey:
    angle = np.deg2rad(random.uniform(15, 30) * random.choice([-1, 1]))
    return _warped(picture, [[0.7 * np.cos(angle), -np.sin(angle)], [0.7 * np.sin(angle), np.cos(angle)]])


def _inverted(picture: Grey, _random: np.random.Generator) -> Grey:
    return 1 - picture


def _noisy(picture: Grey, random: np.random.Generator) -> Grey:
    return (picture + random.normal(0, 0.05, picture.shape)).astype(np.float32)


def _blurred(picture: Grey, _random: np.random.Generator) -> Grey:
    return (0.15 + 0.7 * cv2.GaussianBlur(picture, (0, 0), 3.0)).astype(np.float32)


def _plain(picture: Grey, _random: np.random.Generator) -> Grey:
    return picture


Style = Callable[[Grey, np.random.Generator], Grey]
SOURCE_STYLES: dict[str, Style] = {"plain": _plain, "sheared": _sheared, "thick": _thick}
TARGET_STYLES: dict[str, Style] = {"turned": _turned, "inverted": _inverted, "noisy": _noisy, "blurred": _blurred}
