"""The photographs that scikit-learn and scikit-image ship, and a task made of them: which one is this a part of?"""

from __future__ import annotations

from functools import cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import skimage
import sklearn.datasets
from numpy.typing import NDArray
from PIL import Image as PILImage

from datamodules.decoding import read_image

_SKIMAGE = Path(skimage.__file__).parent / "data"
_SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
FILES: dict[str, Path] = {
    "astronaut": _SKIMAGE / "astronaut.png",
    "cat": _SKIMAGE / "chelsea.png",
    "coffee": _SKIMAGE / "coffee.png",
    "flower": _SKLEARN / "flower.jpg",
    "galaxies": _SKIMAGE / "hubble_deep_field.jpg",
    "motorcycle": _SKIMAGE / "motorcycle_left.png",
    "retina": _SKIMAGE / "retina.jpg",
    "rocket": _SKIMAGE / "rocket.jpg",
    "temple": _SKLEARN / "china.jpg",
    "tissue": _SKIMAGE / "ihc.png",
}
"""Class name and file of every colour photograph."""

SHORT_SIDE = 512  # every photograph is brought to this size first, so that a part shows as much of each
CELL = 88
PART = 80
GAP = 4  # pixels around a test cell that no training part touches
TRAIN_PARTS = 240
TEST_PARTS = 40
CONTRAST = 8  # least standard deviation of a part's grey values: an even black could be of any photograph


@cache
def photographs() -> dict[str, NDArray[np.uint8]]:
    """The colour photographs by name: uint8 ``(H, W, 3)`` RGB, their short side 512 pixels.

    Of the retina only the square within the disc is taken. The arrays are shared: not to be written to.
    """
    pictures = {}
    for name, path in FILES.items():
        picture = read_image(path)
        if name == "retina":
            edge = picture.shape[0] * 3 // 20
            picture = picture[edge:-edge, edge:-edge]
        scale = SHORT_SIDE / min(picture.shape[:2])
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        pictures[name] = np.asarray(cv2.resize(picture, size, interpolation=interpolation), dtype=np.uint8)
    return pictures


def test_cells(height: int, width: int) -> list[tuple[int, int]]:
    """(top, left) of the 88x88 cells of a photograph that are kept for testing: a fifth, none beside another."""
    rows, columns = height // CELL, width // CELL
    return [(r * CELL, c * CELL) for r in range(rows) for c in range(columns) if (r + 2 * c) % 5 == 0]


def train_places(height: int, width: int) -> NDArray[np.intp]:
    """(top, left) of every 80x80 part that stays at least 4 pixels away from all test cells, ``(n, 2)``."""
    free = np.ones((height - PART + 1, width - PART + 1), dtype=bool)
    for top, left in test_cells(height, width):
        reach = PART + GAP - 1
        free[max(0, top - reach) : top + CELL + GAP, max(0, left - reach) : left + CELL + GAP] = False
    return np.argwhere(free)


def test_places(height: int, width: int) -> NDArray[np.intp]:
    """(top, left) of every 80x80 part that lies within a test cell, ``(n, 2)``."""
    steps = np.argwhere(np.ones((CELL - PART + 1, CELL - PART + 1)))
    return np.concatenate([steps + cell for cell in test_cells(height, width)])


def has_contrast(part: NDArray[np.uint8]) -> bool:
    """Whether there is something to see in a part of a photograph, uint8 RGB ``(H, W, 3)``."""
    return bool(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY).std() >= CONTRAST)


def _chosen(picture: NDArray[np.uint8], places: NDArray[np.intp], number: int) -> list[tuple[int, int]]:
    """The first ``number`` places whose parts have something to see."""
    corners = ((int(top), int(left)) for top, left in places)
    return list(islice((corner for corner in corners if has_contrast(picture[_part(*corner)])), number))


def _part(top: int, left: int) -> tuple[slice, slice]:
    return slice(top, top + PART), slice(left, left + PART)


def write_photographs(folder: Path) -> None:
    """Writes ``train/<photograph>/*.jpg`` (240 each) and ``test/<photograph>/*.jpg`` (40 each), 80x80 pixels.

    Training and test parts come from areas of the photograph that do not touch. Parts with hardly any contrast, which
    nobody could tell apart, are left out of both.
    """
    rng = np.random.default_rng(0)
    for name, picture in photographs().items():
        height, width = picture.shape[:2]
        places = {
            "train": _chosen(picture, rng.permutation(train_places(height, width)), TRAIN_PARTS),
            "test": _chosen(picture, rng.permutation(test_places(height, width)), TEST_PARTS),
        }
        for split, corners in places.items():
            target = folder / split / name
            target.mkdir(parents=True)
            for number, (top, left) in enumerate(corners):
                part = PILImage.fromarray(picture[_part(top, left)])
                part.save(target / f"{number:03d}.jpg", quality=95)
