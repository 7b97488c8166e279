"""Clouds by chance, of all sizes at once."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def plasma(side: int, smoothness: float, random: Generator) -> NDArray[np.float32]:
    """A landscape by the diamond-square algorithm: ``(side, side)`` in [0, 1], its opposite edges alike.

    Args:
        side: a power of two, at least 2.
        smoothness: the chance's share falls by its square from one scale to the next finer one.
        random: draws the heights.
    """
    heights = np.zeros((side, side), dtype=np.float32)
    step, size = side, 1.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        middles = heights[half::step, half::step]
        sums = corners + np.roll(corners, -1, axis=0)
        _settle(middles, sums + np.roll(sums, -1, axis=1), size, random)
        across = middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        _settle(heights[::step, half::step], across, size, random)
        down = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        _settle(heights[half::step, ::step], down, size, random)
        step, size = half, size / smoothness**2
    heights -= heights.min()
    heights /= heights.max()
    return heights


def _settle(place: NDArray[np.float32], sums: NDArray[np.float32], size: float, random: Generator) -> None:
    """The mean of four neighbours and a chance in [-size, size)."""
    place[...] = sums / 4 + np.float32(size) * (2 * random.random(place.shape, dtype=np.float32) - 1)
