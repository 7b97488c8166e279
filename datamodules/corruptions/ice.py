"""Pictures of frost: the user's own, or made ones."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.corruptions.blur import gaussian_blur, traced
from datamodules.corruptions.plasma import plasma
from datamodules.decoding import UnreadableImageError, read_image
from datamodules.listing import find_images
from vision.errors import InputError

MADE = 5  # pictures; the published images use as many photographs
SIDE = 512
TINT = (0.8, 0.92, 1.0)
NEEDLES = ((120, 45, 0.004), (60, 24, 0.015), (24, 9, 0.07))  # length, deviation, share of pixels that one starts from
HEXAGON = 60  # degrees between the directions in which ice grows


def frost_picture(random: Generator, scale: float, height: int, width: int, folder: Path | None) -> NDArray[np.uint8]:
    """One picture of frost, at least as large as an image.

    Args:
        random: chooses the picture.
        scale: the picture is brought to this share of its size.
        height: of the image in pixels. A picture that does not cover the image is enlarged until it does.
        width: of the image in pixels.
        folder: of pictures, each of which is read once in a process; None for the made ones.

    Returns:
        uint8 RGB, at least ``(height, width, 3)``; shared, so that it cannot be written to.

    Raises:
        InputError: the folder has no pictures, or one of them cannot be read.
    """
    if folder is None:
        source: int | str = int(random.integers(MADE))
    else:
        pictures = _pictures(folder)
        source = pictures[int(random.integers(len(pictures)))]
    rows, columns = _original(source).shape[:2]
    scale = max(scale, height / rows, width / columns)
    return _resized(source, max(height, round(rows * scale)), max(width, round(columns * scale)))


@lru_cache(maxsize=4)
def _pictures(folder: Path) -> list[str]:
    if not (pictures := find_images(folder)):
        raise InputError(f"frost_folder: {folder} has no pictures")
    return pictures


@lru_cache(maxsize=8)
def _original(source: int | str) -> NDArray[np.uint8]:
    """The made picture of a number, or that of a file."""
    try:
        return made_frost(source) if isinstance(source, int) else read_image(source)
    except UnreadableImageError as error:
        # A plain one: after the other a loader would go on without the image that is to be corrupted.
        raise InputError(f"frost_folder: {error}") from error


@lru_cache(maxsize=8)
def _resized(source: int | str, height: int, width: int) -> NDArray[np.uint8]:
    # Linearly, as the photographs of CIFAR-10-C were.
    resized = np.asarray(cv2.resize(_original(source), (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    resized.setflags(write=False)
    return resized


def made_frost(number: int) -> NDArray[np.uint8]:
    """Needles of ice on a window, uint8 RGB ``(512, 512, 3)``; the same for the same number."""
    random = np.random.default_rng((0x1CE, number))
    first = random.uniform(0, HEXAGON)
    ice = np.zeros((SIDE, SIDE, 1), dtype=np.float32)
    for length, deviation, share in NEEDLES:
        for direction in range(3):
            angle = first + HEXAGON * direction + 180 * random.integers(2) + random.uniform(-12, 12)
            starts = _patches(1.7, 4, -2.2, random) * (random.random(ice.shape, dtype=np.float32) < share)
            needles = traced(_edged(starts), length / 2, deviation, angle) * deviation
            rough = _edged(needles * random.random(ice.shape, dtype=np.float32) ** 6)
            branches = [traced(rough, length / 8, deviation / 4, angle + side) for side in (-HEXAGON, HEXAGON)]
            ice += needles + sum(branches) * (deviation / 4)
    ice = gaussian_blur(ice, 0.6)
    ice /= np.quantile(ice, 0.9)
    cover = np.maximum(_patches(1.8, 1.6, -0.1, random), 0.2)
    light = 0.05 + cover * (0.6 * np.clip(ice, 0, 1.5) ** 0.8 + 0.4 * _patches(1.3, 1, 0, random))
    return np.clip(light * np.array(TINT, dtype=np.float32) * 255, 0, 255).astype(np.uint8)


def _patches(smoothness: float, contrast: float, offset: float, random: Generator) -> NDArray[np.float32]:
    """Clouds ``(512, 512, 1)`` over all of [0, 1], then ``contrast * clouds + offset`` within [0, 1]."""
    clouds = plasma(SIDE, smoothness, random)[:, :, None]
    low, high = np.quantile(clouds, (0.02, 0.98))
    patches: NDArray[np.float32] = np.clip(contrast * np.clip((clouds - low) / (high - low), 0, 1) + offset, 0, 1)
    return patches


def _edged(starts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without those at the edge, which would go on outside as stripes."""
    starts[[0, -1]] = 0
    starts[:, [0, -1]] = 0
    return starts
