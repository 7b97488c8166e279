"""Blur: out of focus, frosted glass, and motion of or towards the camera."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.corruptions.constants import Level

DISK_REACH = 8  # pixels; kernels of smaller disks are this large too


def filtered(
    image: NDArray[np.float32], kernel: NDArray[np.float32], border: int, anchor: tuple[int, int] = (-1, -1)
) -> NDArray[np.float32]:
    """A correlation with ``kernel``, every channel of ``(H, W, C)`` by itself; the anchor is (column, row)."""
    result = cv2.filter2D(image, -1, kernel, anchor=anchor, borderType=border)
    return np.asarray(result, dtype=np.float32).reshape(image.shape)


def disk(radius: float, deviation: float) -> NDArray[np.float32]:
    """An even disk of sum 1 with a softened edge, as a kernel of 17x17 pixels or, for a larger disk, more."""
    large = radius > DISK_REACH
    reach = math.ceil(radius) if large else DISK_REACH
    steps = np.arange(-reach, reach + 1)
    inside = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float32)
    softened = cv2.GaussianBlur(inside / inside.sum(), (5, 5) if large else (3, 3), deviation)
    return np.asarray(softened, dtype=np.float32)


def defocus_blur(image: NDArray[np.uint8], level: Level) -> NDArray[np.float32]:
    """Each point becomes a disk, as before a lens that is out of focus."""
    return filtered(image.astype(np.float32), disk(*level), cv2.BORDER_REFLECT_101)


def gaussian_blur(image: NDArray[np.float32], deviation: float) -> NDArray[np.float32]:
    """A Gaussian cut off at four deviations, the image continued by its outermost pixels."""
    side = 2 * int(4 * deviation + 0.5) + 1
    result = cv2.GaussianBlur(image, (side, side), deviation, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(result, dtype=np.float32).reshape(image.shape)


def glass_blur(image: NDArray[np.uint8], level: Level, random: Generator) -> NDArray[np.float32]:
    """Blurred, its pixels shuffled within their neighbourhood, and blurred again, as behind frosted glass."""
    deviation, reach, rounds = level[0], int(level[1]), int(level[2])
    blurred = gaussian_blur(image.astype(np.float32), deviation).astype(np.uint8)
    for _ in range(rounds):
        blurred = shuffled(blurred, reach, random)
    return gaussian_blur(blurred.astype(np.float32), deviation)


def shuffled(image: NDArray[np.uint8], reach: int, random: Generator) -> NDArray[np.uint8]:
    """Pixels replaced by neighbours, one after the other, from the bottom right to the top left.

    The published images come from a loop over all pixels that was meant to swap pairs. It copies instead: a pixel
    takes the neighbour's present colour, and the neighbour keeps it. The same comes out here without the loop. Only
    the random numbers are others.

    Args:
        image: ``(H, W, C)``.
        reach: a pixel's new colour comes from -reach to reach - 1 rows and columns away. The edge of the image, of
            this width, is left as it is.
        random: draws the neighbours.
    """
    height, width, channels = image.shape
    rows, columns = np.arange(reach + 1, height - reach + 1), np.arange(reach + 1, width - reach + 1)
    here = rows[:, None] * width + columns
    down, right = random.integers(-reach, reach, (2, *here.shape))
    there = here + down * width + right
    row, column = rows[:, None] + down, columns + right
    # A neighbour that the loop has passed already has a new colour itself, and passes that on.
    passed = (there > here) & (row <= height - reach) & (column > reach) & (column <= width - reach)
    pixels = height * width
    source = np.arange(pixels, 2 * pixels)  # from ``pixels`` on: the old colour of a pixel, below it: the new one
    source[here] = np.where(passed, there, there + pixels)
    open_ends = np.flatnonzero(source < pixels)
    while len(open_ends):
        source[open_ends] = source[source[open_ends]]
        open_ends = open_ends[source[open_ends] < pixels]
    result: NDArray[np.uint8] = image.reshape(pixels, channels)[source - pixels].reshape(image.shape)
    return result


def traced(image: NDArray[np.float32], radius: float, deviation: float, angle: float) -> NDArray[np.float32]:
    """The trace that a moving camera leaves, by ImageMagick's rule: one half of a Gaussian along a line.

    Args:
        image: ``(H, W, C)``; continued by its outermost pixels.
        radius: the trace is ``2 * radius + 1`` pixels long.
        deviation: of the Gaussian, pixels.
        angle: degrees, clockwise from the right; where the colours come from.
    """
    steps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    columns = np.ceil(steps * math.cos(math.radians(angle)) - 0.5).astype(int)
    rows = np.ceil(steps * math.sin(math.radians(angle)) - 0.5).astype(int)
    left, top = columns.min(), rows.min()
    kernel = np.zeros((np.ptp(rows) + 1, np.ptp(columns) + 1), dtype=np.float32)
    np.add.at(kernel, (rows - top, columns - left), weights / weights.sum())
    return filtered(image, kernel, cv2.BORDER_REPLICATE, (-int(left), -int(top)))


def motion_blur(image: NDArray[np.uint8], level: Level, random: Generator) -> NDArray[np.float32]:
    """A trace in a direction at most 45 degrees from the horizontal."""
    radius, deviation = level
    return traced(image.astype(np.float32), radius, deviation, random.uniform(-45, 45))


def zoom_blur(image: NDArray[np.uint8], level: Level) -> NDArray[np.float32]:
    """The mean of the image and its centre at several zooms, as of a camera that moves forward."""
    stop, step = level
    picture = image.astype(np.float32)
    factors = np.arange(1, stop, step)
    total = picture.copy()
    for factor in factors:
        total += clipped_zoom(picture, float(factor))
    return total / np.float32(len(factors) + 1)


def clipped_zoom(image: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """The centre of an image ``(H, W, C)``, enlarged linearly to the size of the whole.

    As ``scipy.ndimage.zoom`` with order 1, but faster, and without the black line that rounding gives that at the
    end of some sizes.
    """
    for axis in (0, 1):
        at, weights = _zoomed(image.shape[axis], factor)
        weights = weights.reshape(-1, *[1] * (image.ndim - axis - 1))
        before, behind = image.take(at, axis), image.take(at + 1, axis)
        behind -= before
        behind *= weights
        image = np.add(before, behind, out=before)
    return image


def _zoomed(side: int, factor: float) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Of each pixel along the enlarged side the original pixel before it, and the weight of the one behind that."""
    cropped = math.ceil(side / factor)
    enlarged = round(cropped * factor)
    positions = (np.arange(side) + (enlarged - side) // 2) * ((cropped - 1) / (enlarged - 1))
    at = np.minimum(positions.astype(np.intp), cropped - 2)
    return at + (side - cropped) // 2, (positions - at).astype(np.float32)
