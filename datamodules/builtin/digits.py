"""Handwritten digits: scikit-learn's copy of the UCI optical digits, 1797 scans of 8x8 pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 64


def write_digits(folder: Path) -> None:
    """Writes ``train/<digit>/*.png`` and ``test/<digit>/*.png`` (3 to 1), enlarged to 64x64, dark on light."""
    digits = load_digits()
    numbers = np.arange(len(digits.target))
    train, test = train_test_split(numbers, test_size=0.25, random_state=0, stratify=digits.target)
    for split, members in (("train", train), ("test", test)):
        for number in members:
            scan = (digits.images[number] / 16 * 255).astype(np.float32)
            picture = 255 - np.clip(cv2.resize(scan, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), 0, 255)
            target = folder / split / str(digits.target[number])
            target.mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(picture.round().astype(np.uint8)).save(target / f"{number:04d}.png")
