"""Weather: snow, frost on the lens, and fog."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.corruptions.blur import clipped_zoom, traced
from datamodules.corruptions.constants import Level
from datamodules.corruptions.ice import frost_picture
from datamodules.corruptions.plasma import plasma


def snow(image: NDArray[np.uint8], level: Level, random: Generator) -> NDArray[np.float32]:
    """Flakes that fall towards two opposite directions, before a paler image."""
    mean, deviation, zoom, threshold, radius, length, share = level
    height, width = image.shape[:2]
    flakes = random.standard_normal((height, width, 1), dtype=np.float32) * np.float32(deviation) + np.float32(mean)
    flakes = clipped_zoom(flakes, zoom)
    flakes[flakes < threshold] = 0
    flakes = traced(np.minimum(flakes, 1) * 255, radius, length, random.uniform(-135, -45))
    picture = image.astype(np.float32)
    pale = np.maximum(picture, grey(picture) * 1.5 + 127.5)
    result: NDArray[np.float32] = share * picture + (1 - share) * pale + flakes + flakes[::-1, ::-1]
    return result


def grey(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Luminance ``(H, W, 1)`` of an RGB or grey picture ``(H, W, C)``."""
    if picture.shape[2] == 1:
        return picture
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), dtype=np.float32)[:, :, None]


def fog(image: NDArray[np.uint8], level: Level, random: Generator) -> NDArray[np.float32]:
    """Clouds before the image, all of it dimmed so that nothing is lighter than before."""
    strength, smoothness = level
    height, width = image.shape[:2]
    clouds = plasma(1 << (max(height, width) - 1).bit_length(), smoothness, random)[:height, :width, None]
    lightest = np.float32(image.max())
    return (image + 255 * np.float32(strength) * clouds) * (lightest / (lightest + 255 * np.float32(strength)))


def frost(image: NDArray[np.uint8], level: Level, random: Generator, folder: Path | None) -> NDArray[np.float32]:
    """A part of a picture of ice, laid over a darker image.

    Args:
        image: ``(H, W, C)``.
        level: see :data:`~datamodules.corruptions.constants.LEVELS`.
        random: chooses the picture and the part.
        folder: of pictures of frost, any of which may be taken; None for made ones.

    Raises:
        InputError: the folder has no pictures, or one of them cannot be read.
    """
    share, weight, scale = level
    height, width, channels = image.shape
    ice = frost_picture(random, scale, height, width, folder)
    top, left = (int(random.integers(free + 1)) for free in (ice.shape[0] - height, ice.shape[1] - width))
    part = ice[top : top + height, left : left + width].astype(np.float32)
    return share * image + weight * (part if channels == 3 else grey(part))
