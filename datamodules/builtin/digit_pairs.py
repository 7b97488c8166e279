"""Handwritten digits in pairs: small pictures of a hundred classes, some of them faint."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 16
CLASSES = 100
PAIRS = {"train": 4000, "test": 512}
TRAIN_DIGITS = 900  # of 1797
CONTRAST = (0.15, 0.85)  # white minus black, of 1


def write_digit_pairs(folder: Path) -> None:
    """Writes ``train/<pair>/*.png`` (4000 pictures) and ``test/<pair>/*.png`` (512), 16x32, grey.

    The class ``37`` is a 3 on the left and a 7 on the right, light on dark; all classes are equally frequent, or nearly
    so. The contrast of each picture is drawn, about the same middle grey. Training and test pictures have no scan of a
    digit in common.
    """
    digits = load_digits()
    random = np.random.default_rng(0)
    numbers = np.arange(len(digits.target))
    halves = train_test_split(numbers, train_size=TRAIN_DIGITS, random_state=0, stratify=digits.target)
    for (split, count), half in zip(PAIRS.items(), halves, strict=True):
        scans = [[digits.images[i] for i in half if digits.target[i] == digit] for digit in range(10)]
        pairs = random.permutation(CLASSES)
        for number in range(count):
            pair = int(pairs[number % CLASSES])
            target = folder / split / f"{pair:02d}"
            target.mkdir(parents=True, exist_ok=True)
            sides = [scans[digit][random.integers(len(scans[digit]))] for digit in divmod(pair, 10)]
            picture = _picture(sides, random.uniform(*CONTRAST))
            PILImage.fromarray(picture).save(target / f"{number:04d}.png")


def _picture(scans: list[NDArray[np.float64]], contrast: float) -> NDArray[np.uint8]:
    """Scans ``(8, 8)`` in [0, 16] side by side, uint8 ``(SIDE, 2 * SIDE)``."""
    enlarged = [cv2.resize(scan / 16, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for scan in scans]
    light = np.clip(np.hstack(enlarged), 0, 1) - 0.5
    return (255 * (0.5 + contrast * light)).round().astype(np.uint8)
