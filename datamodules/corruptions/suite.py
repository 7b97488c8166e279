"""One image and one corruption: what is corrupted, how strongly, and by which random numbers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.corruptions import blur, digital, noise, weather
from datamodules.corruptions.constants import Level, Suite, level_of
from vision.errors import InputError

LEAST_SIDE = 8

_BY_RULE: dict[str, Callable[[NDArray[np.uint8], Level], NDArray[Any]]] = {
    "defocus_blur": blur.defocus_blur,
    "zoom_blur": blur.zoom_blur,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
_BY_CHANCE: dict[str, Callable[[NDArray[np.uint8], Level, Generator], NDArray[Any]]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "snow": weather.snow,
    "fog": weather.fog,
    "elastic_transform": digital.elastic_transform,
}


def corrupt(
    image: NDArray[np.uint8],
    name: str,
    severity: int,
    seed: Sequence[int] | int,
    suite: Suite = "imagenet",
    frost_folder: Path | None = None,
) -> NDArray[np.uint8]:
    """An image with one of the 15 common corruptions; the same bytes for the same arguments.

    The rules are those of ImageNet-C and CIFAR-C (Hendrycks and Dietterich, ICLR 2019). Without random numbers
    (defocus, zoom, brightness, contrast, pixelate, jpeg) the images are theirs but for rounding, and for what the JPEG
    library's build decides. The others are theirs in distribution. Only frost shows other pictures, unless
    ``frost_folder`` has the published ones.

    Args:
        image: uint8 RGB ``(H, W, 3)`` or grey ``(H, W)``, at least 8 pixels a side. It is not changed.
        name: one of :data:`~datamodules.corruptions.CORRUPTIONS`.
        severity: 1 to 5.
        seed: of all random numbers; none are taken from elsewhere. See :func:`image_seed`.
        suite: whose severities: ``imagenet`` is made for 224 pixels, ``cifar`` for 32. Lengths in pixels are taken as
            they are for any size; zooms and the elastic transform follow the (shorter) side.
        frost_folder: pictures of frost; by default made ones.

    Returns:
        uint8 of the image's shape; fractions are cut off, as in the published data.

    Raises:
        InputError: there is no such corruption, severity or suite, the image or the seed is of another kind, or
            ``frost_folder`` has no pictures or one that cannot be read.
    """
    level = level_of(name, severity, suite)
    _check_image(image)
    pixels = np.ascontiguousarray(image).reshape(*image.shape[:2], -1)
    random = _generator(seed)
    if name == "frost":
        corrupted: NDArray[Any] = weather.frost(pixels, level, random, frost_folder)
    elif name in _BY_RULE:
        corrupted = _BY_RULE[name](pixels, level)
    else:
        corrupted = _BY_CHANCE[name](pixels, level, random)
    result: NDArray[np.uint8] = np.clip(corrupted, 0, 255).astype(np.uint8).reshape(image.shape)
    return result


def corrupt_batch(
    images: NDArray[np.uint8],
    name: str,
    severity: int,
    seeds: Sequence[Sequence[int] | int],
    suite: Suite = "imagenet",
    frost_folder: Path | None = None,
) -> NDArray[np.uint8]:
    """:func:`corrupt` for each of several images.

    Args:
        images: uint8 ``(N, H, W, 3)`` or ``(N, H, W)``.
        name: see :func:`corrupt`.
        severity: see :func:`corrupt`.
        seeds: one an image.
        suite: see :func:`corrupt`.
        frost_folder: see :func:`corrupt`.

    Returns:
        uint8 of the images' shape.

    Raises:
        InputError: see :func:`corrupt`; or there are more or fewer seeds than images.
    """
    if len(seeds) != len(images):
        raise InputError(f"seeds: expected one for each of {len(images)} images, got {len(seeds)}")
    level_of(name, severity, suite)
    corrupted = np.empty_like(images)
    for place, image, seed in zip(corrupted, images, seeds, strict=True):
        place[...] = corrupt(image, name, severity, seed, suite, frost_folder)
    return corrupted


def image_seed(seed: int, name: str, index: int) -> tuple[int, ...]:
    """The seed of one image of a data set, whichever process corrupts it and in which batch.

    All severities share it, so that an image's noise grows with the severity instead of being another one.

    Args:
        seed: of the whole data, not negative.
        name: of the corruption.
        index: of the image in the data.
    """
    return seed, zlib.crc32(name.encode()), index


def _check_image(image: NDArray[np.uint8]) -> None:
    kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise InputError(f"image must be an array of uint8, got {kind}")
    if image.ndim != 2 and (image.ndim != 3 or image.shape[2] != 3):
        raise InputError(f"image must be RGB (H, W, 3) or grey (H, W), got {kind}")
    if min(image.shape[:2]) < LEAST_SIDE:
        raise InputError(f"image must have at least {LEAST_SIDE} pixels a side, got {image.shape[0]}x{image.shape[1]}")


def _generator(seed: Sequence[int] | int) -> Generator:
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise InputError(f"seed must be whole numbers that are not negative, got {seed!r}") from error
