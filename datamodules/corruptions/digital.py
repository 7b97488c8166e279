"""What is done to the picture after it was taken: light, contrast, stretching, coarse pixels and compression."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image as PILImage
from scipy.fft import dctn, idctn

from datamodules.corruptions.constants import Level


def brightness(image: NDArray[np.uint8], level: Level) -> NDArray[np.float32]:
    """More of HSV's value; hue and saturation stay, so that all channels grow by the same factor."""
    value = image.max(axis=2, keepdims=True).astype(np.float32)
    brighter = np.minimum(value + np.float32(255 * level[0]), 255)
    return np.asarray(np.where(value > 0, image * brighter / np.maximum(value, 1), brighter), dtype=np.float32)


def contrast(image: NDArray[np.uint8], level: Level) -> NDArray[np.float64]:
    """Every value nearer to the mean of its channel."""
    (rest,) = level
    means = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - means) * rest + means, dtype=np.float64)


def pixelate(image: NDArray[np.uint8], level: Level) -> NDArray[np.uint8]:
    """Shrunk by averaging and enlarged again as squares of one colour."""
    (scale,) = level
    height, width = image.shape[:2]
    coarse = _picture(image).resize((int(width * scale), int(height * scale)), PILImage.Resampling.BOX)
    # The published images were enlarged by BOX: the same at their sizes, and uneven squares at some others.
    squares = coarse.resize((width, height), PILImage.Resampling.NEAREST)
    return np.asarray(squares).reshape(image.shape)


def jpeg_compression(image: NDArray[np.uint8], level: Level) -> NDArray[np.uint8]:
    """Written as a JPEG of low quality and read again; which values come out is up to the library's build."""
    stream = io.BytesIO()
    _picture(image).save(stream, "JPEG", quality=int(level[0]))
    return np.asarray(PILImage.open(stream)).reshape(image.shape)


def elastic_transform(image: NDArray[np.uint8], level: Level, random: Generator) -> NDArray[np.float32]:
    """Sheared and stretched as a whole, then each part a little by itself."""
    height, width = image.shape[:2]
    side = min(height, width)
    strength, smoothness, corners = (side * constant for constant in level)
    sheared = _sheared(image.astype(np.float32), corners, random)
    if strength:
        across, down = (smooth_field(height, width, smoothness, random) * np.float32(strength) for _ in range(2))
        across += np.arange(width, dtype=np.float32)
        down += np.arange(height, dtype=np.float32)[:, None]
        moved = cv2.remap(sheared, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        sheared = np.asarray(moved, dtype=np.float32)
    return sheared.reshape(image.shape)


def _sheared(image: NDArray[np.float32], most: float, random: Generator) -> NDArray[np.float32]:
    """The affine map that moves three corners of a square about the middle by up to ``most`` pixels each way."""
    height, width = image.shape[:2]
    x, y, reach = width // 2, height // 2, min(height, width) // 3
    points = np.array([(x + reach, y + reach), (x + reach, y - reach), (x - reach, y - reach)], dtype=np.float32)
    moved = points + random.uniform(-most, most, points.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(points, moved)
    result = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(result, dtype=np.float32)


def smooth_field(height: int, width: int, deviation: float, random: Generator) -> NDArray[np.float32]:
    """Even noise in [-1, 1) after a Gaussian that is cut off at three deviations: float32 ``(H, W)``, as if mirrored.

    The Gaussian may be far wider than the image. Of mirrored images each cosine keeps its form in a symmetric filter,
    so that the cosine transform makes of any width a multiplication.
    """
    noise = 2 * random.random((height, width), dtype=np.float32) - 1
    reach = np.arange(int(3 * deviation + 0.5) + 1)
    weights = np.exp(-(reach**2) / (2 * deviation**2))
    weights[1:] *= 2  # both sides
    weights /= weights.sum()
    kept = [np.cos(np.pi / n * np.outer(np.arange(n), reach)) @ weights for n in (height, width)]
    smooth = idctn(dctn(noise) * np.outer(*kept).astype(np.float32))
    return np.asarray(smooth, dtype=np.float32)


def _picture(image: NDArray[np.uint8]) -> PILImage.Image:
    return PILImage.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
