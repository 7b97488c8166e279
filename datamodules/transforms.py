"""Albumentations pipelines for single images, seeded image by image."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.pytorch import ToTensorV2
from numpy.typing import NDArray
from PIL import Image as PILImage
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from torch import Tensor

from vision.errors import InputError
from vision.preprocessing import Preprocessing

INTERPOLATION = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}


class AutoAugment(A.ImageOnlyTransform):
    """timm's augmentation policies by their strings: RandAugment, AugMix, AutoAugment, 3-Augment.

    Args:
        policy: e.g. ``rand-m9-mstd0.5-inc1`` or ``3a``.
        mean: RGB on the [0, 1] scale, fills what a shift or rotation uncovers.
        operations: those that a ``rand`` policy chooses among, by timm's names; by default all of timm's.

    Raises:
        InputError: timm knows no such policy.
    """

    def __init__(
        self, policy: str, mean: Sequence[float], p: float = 1.0, operations: Sequence[str] | None = None
    ) -> None:
        super().__init__(p=p)
        self.policy = policy
        self.mean = tuple(mean)
        self.operations = operations
        fill = tuple(round(255 * value) for value in mean)
        makers = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
        make = makers.get(policy.split("-")[0], auto_augment_transform)
        options = {} if operations is None else {"transforms": list(operations)}
        try:
            self._transform = make(policy, {"translate_const": 100, "img_mean": fill}, **options)
        except (AssertionError, ValueError, KeyError) as error:
            raise InputError(
                f"auto_augment: timm knows no policy '{policy}' (try rand-m9-mstd0.5-inc1 or 3a)"
            ) from error

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """The image after the policy, uint8 RGB ``(H, W, 3)``."""
        # timm's operations draw from the global generators, so those are lent this image's seed for the moment.
        before = random.getstate(), np.random.get_state()  # noqa: NPY002
        seed = self.py_random.randrange(2**31)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            return np.asarray(self._transform(PILImage.fromarray(img)))
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002

    def apply_to_images(self, images: NDArray[np.uint8], *args: Any, **params: Any) -> NDArray[np.uint8]:
        """The frames ``(T, H, W, 3)`` after one draw of the policy: it sees them as one tall image."""
        return self.apply(images.reshape(-1, *images.shape[2:])).reshape(images.shape)


def _resize(preprocessing: Preprocessing) -> A.BasicTransform:
    """To the size that the evaluation's crop is taken from."""
    height, width = (int(side / preprocessing.crop_pct) for side in preprocessing.size)
    options = {"interpolation": INTERPOLATION[preprocessing.interpolation], "area_for_downscale": "image"}
    if preprocessing.crop_mode == "squash":
        return A.Resize(height, width, **options)
    return A.SmallestMaxSize(max_size_hw=(height, width), **options)


def eval_transform(preprocessing: Preprocessing) -> A.Compose:
    """Resize, centre crop, normalise: uint8 RGB ``(H, W, 3)`` to a float32 tensor ``(3, *size)``.

    Images are enlarged by the preprocessing's interpolation and shrunk by area averaging (OpenCV's cubic
    interpolation does not smooth, unlike the Pillow one that published accuracies were measured with).
    """
    return A.Compose(
        [
            _resize(preprocessing),
            A.CenterCrop(*preprocessing.size),
            A.Normalize(preprocessing.mean, preprocessing.std),
            ToTensorV2(),
        ]
    )


def train_transform(
    preprocessing: Preprocessing,
    scale: tuple[float, float] | None,
    ratio: tuple[float, float],
    horizontal_flip: float,
    auto_augment: str | None,
    augmentations: Sequence[A.BasicTransform],
    random_erasing: float,
) -> A.Compose:
    """Random crop, flip, policy, own transforms, normalisation, erasing; arguments as in ``Images``."""
    if scale is None:
        steps: list[A.BasicTransform] = [_resize(preprocessing), A.RandomCrop(*preprocessing.size)]
    else:
        steps = [
            A.RandomResizedCrop(
                preprocessing.size,
                scale=scale,
                ratio=ratio,
                interpolation=INTERPOLATION[preprocessing.interpolation],
                area_for_downscale="image",
            )
        ]
    steps.append(A.HorizontalFlip(p=horizontal_flip))
    if auto_augment:
        steps.append(AutoAugment(auto_augment, preprocessing.mean))
    steps += augmentations
    if random_erasing:
        steps.append(A.Erasing(fill="random", p=random_erasing))
    steps += [A.Normalize(preprocessing.mean, preprocessing.std), ToTensorV2()]
    return A.Compose(steps)


def seed_steps(transform: A.Compose, seed: int) -> None:
    """Makes what the steps do next a function of ``seed``.

    Not by ``set_random_seed``, which gives each step generators of its own that begin with this one seed: steps that
    happen by chance would then happen all at once or not at all.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311


def apply_seeded(transform: A.Compose, image: NDArray[np.uint8], seed: int) -> Tensor:
    """The transform's outcome as a function of image and seed alone."""
    seed_steps(transform, seed)
    out: Tensor = transform(image=image)["image"]
    return out
