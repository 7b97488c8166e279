"""Noise: every value of the image by itself."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.corruptions.constants import Level


def gaussian_noise(image: NDArray[np.uint8], level: Level, random: Generator) -> NDArray[np.float32]:
    """Normal noise of one strength everywhere."""
    (deviation,) = level
    return image + np.float32(255 * deviation) * random.standard_normal(image.shape, dtype=np.float32)


def shot_noise(image: NDArray[np.uint8], level: Level, random: Generator) -> NDArray[np.float32]:
    """The number of photons that arrive in a short time: Poisson(x * rate) / rate."""
    (rate,) = level
    means = np.arange(256) * (rate / 255)
    return random.poisson(means[image]).astype(np.float32) * np.float32(255 / rate)


def impulse_noise(image: NDArray[np.uint8], level: Level, random: Generator) -> NDArray[np.uint8]:
    """Salt and pepper: some values, of each channel by itself, become 0 or 255, as many the one as the other."""
    (amount,) = level
    chance = random.random(image.shape, dtype=np.float32)
    noisy = image.copy()
    noisy[chance < amount] = 255
    noisy[chance < amount / 2] = 0
    return noisy
