"""Small image folders for tests: flat colours with noise, so that a class can be told from its colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


def write_images(folder: Path, number: int, side: int = 32, seed: int = 0) -> Path:
    """``number`` PNG files for each of three classes, in class folders."""
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            noise = random.normal(0, 30, (side, side, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


def write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """A tab-separated table with a header row."""
    file.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    return file
