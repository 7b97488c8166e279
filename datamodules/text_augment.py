"""Augmentation of words: the published RandAugment, stronger distortions, and quarter turns."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, cast

import albumentations as A
import cv2
import numpy as np
from PIL import Image as PILImage
from PIL import ImageFilter
from timm.data.auto_augment import AugmentOp, RandAugment, rand_augment_ops

from datamodules.transforms import seed_steps
from vision.errors import InputError

Augment = Literal["none", "randaugment", "hard"]
GREY = 128
"""Of what a turn or a shift uncovers."""

OPERATIONS = 3
MAGNITUDE = 5
PROBABILITY = 0.5
# Of the 16 operations, those that timm has as they are.
_TIMM = (
    *("AutoContrast", "Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"),
    *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing"),
)
_SMALLEST = 8  # pixels a side, below which there is nothing to bend
_TURNS = (PILImage.Transpose.ROTATE_90, PILImage.Transpose.ROTATE_180, PILImage.Transpose.ROTATE_270)


class WordAugment:
    """Augments a picture as a function of picture and seed alone.

    Args:
        kind: ``none``; ``randaugment``, CFE's recipe (its code's ``augment.py``); or ``hard``, perspective, bends,
            blur, noise and compression.
        rotate_90: probability that the picture is then turned by 90, 180 or 270 degrees.

    Raises:
        InputError: there is no such kind, or the probability is none.
    """

    def __init__(self, kind: Augment, rotate_90: float = 0.0) -> None:
        if kind not in ("none", "randaugment", "hard"):
            raise InputError(f"augment must be none, randaugment or hard, got {kind}")
        if not 0 <= rotate_90 <= 1:
            raise InputError(f"rotate_90 must be in [0, 1], got {rotate_90}")
        self.rotate_90 = rotate_90
        self._policy = RandAugment(operations(), OPERATIONS, np.full(16, 1 / 16)) if kind == "randaugment" else None
        self._hard = _distortions() if kind == "hard" else None

    def __call__(self, picture: PILImage.Image, seed: int) -> PILImage.Image:
        """An RGB picture, augmented; its size may change."""
        if self._policy is not None:
            with _lent(seed):
                picture = self._policy(picture)
        elif self._hard is not None and min(picture.size) >= _SMALLEST:
            seed_steps(self._hard, seed)
            picture = PILImage.fromarray(self._hard(image=np.array(picture))["image"])
        choice = np.random.default_rng((seed, 90))
        if choice.random() < self.rotate_90:
            picture = picture.transpose(_TURNS[choice.integers(3)])
        return picture


@contextmanager
def _lent(seed: int) -> Iterator[None]:
    """The global generators, which timm's operations draw from, with a seed for the moment."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002


def operations() -> list[AugmentOp]:
    """The 16 operations at magnitude 5 of 10; timm's tables, which other systems share, are left as they are."""
    own = [
        _operation("Rotate", partial(_signed, 30.0), _rotate_expanding),
        _operation("ShearX", partial(_signed, 0.9)),
        _operation("ShearY", partial(_signed, 0.2)),
        _operation("TranslateXRel", partial(_signed, 0.1)),
        _operation("TranslateYRel", partial(_signed, 0.3)),
        _operation("GaussianBlur", partial(_level, 4.0), _blur),
        _operation("GaussianBlur", partial(_level, 40.0), _poisson, name="PoissonNoise"),
    ]
    return [*rand_augment_ops(MAGNITUDE, PROBABILITY, transforms=[*_TIMM]), *own]


def _operation(
    base: str,
    strength: Callable[[float, Any], tuple[float]],
    change: Callable[..., PILImage.Image] | None = None,
    name: str | None = None,
) -> AugmentOp:
    """One of timm's operations with another strength, and where it is given another effect."""
    operation = rand_augment_ops(MAGNITUDE, PROBABILITY, transforms=[base])[0]
    operation.name, operation.level_fn = name or base, strength
    if change is not None:
        operation.aug_fn = change
    return cast("AugmentOp", operation)


def _level(most: float, level: float, _hparams: Any) -> tuple[float]:
    return (most * level / 10,)


def _signed(most: float, level: float, _hparams: Any) -> tuple[float]:
    return (most * level / 10 * np.random.choice([-1.0, 1.0]),)  # noqa: NPY002 (lent)


def _rotate_expanding(picture: PILImage.Image, degrees: float, **_: Any) -> PILImage.Image:
    """Cuts no characters off."""
    return picture.rotate(degrees, PILImage.Resampling.BICUBIC, expand=True, fillcolor=(GREY, GREY, GREY))


def _bounded(strength: float, share: float, picture: PILImage.Image) -> int:
    """Small pictures bear less."""
    return round(min(strength, max(1.0, share * max(picture.size))))


def _blur(picture: PILImage.Image, radius: float, **_: Any) -> PILImage.Image:
    return picture.filter(ImageFilter.GaussianBlur(_bounded(radius, 0.02, picture)))


def _poisson(picture: PILImage.Image, strength: float, **_: Any) -> PILImage.Image:
    """Counts of a Poisson distribution with a random sign, the same for all channels of a pixel."""
    expected = _bounded(strength, 0.2, picture) | 1
    shape = (picture.height, picture.width, 1)
    noise = np.random.poisson(expected, shape) * np.random.choice([-1, 1], shape)  # noqa: NPY002 (lent)
    return PILImage.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _distortions() -> A.Compose:
    filled = {"border_mode": cv2.BORDER_CONSTANT, "fill": (GREY, GREY, GREY)}
    return A.Compose(
        [
            A.Perspective(scale=(0.02, 0.08), fit_output=True, p=0.3, **filled),
            A.OneOf(
                [
                    A.ElasticTransform(alpha=20, sigma=5, **filled),
                    A.ThinPlateSpline(scale_range=(0.05, 0.15), **filled),
                    A.GridDistortion(num_steps=5, distort_limit=0.15, **filled),
                ],
                p=0.4,
            ),
            A.SafeRotate(limit=20, p=0.3, **filled),
            A.MotionBlur(blur_limit=(3, 5), p=0.2),
            A.OneOf([A.GaussNoise(std_range=(0.02, 0.12)), A.ShotNoise(scale_range=(0.02, 0.15))], p=0.3),
            A.Downscale(scale_range=(0.4, 0.8), p=0.2),
            A.ImageCompression(quality_range=(25, 90), p=0.3),
        ]
    )
