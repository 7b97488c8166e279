"""What data modules of single images share."""

from __future__ import annotations

from abc import ABC
from typing import Any

import albumentations as A
from torch import Tensor

from datamodules.decoding import read_image
from datamodules.files import FileDataset, Files, Listed
from datamodules.transforms import apply_seeded, eval_transform, train_transform


class ImageDataset(FileDataset):
    """Decodes and transforms the images of a listing; draws carry the seed.

    Args:
        listing: the files and their targets.
        transform: the pipeline.
        max_pixels: larger images count as unreadable.
        substitute: take the next readable image for an unreadable one (training), or leave it out (evaluation).
    """

    def __init__(self, listing: Listed, transform: A.Compose, max_pixels: int, substitute: bool) -> None:
        super().__init__(listing, substitute)
        self.transform, self.max_pixels = transform, max_pixels

    def load(self, index: int, seed: int) -> Tensor:
        """The image as the transform gives it."""
        return apply_seeded(self.transform, read_image(self.listing.paths[index], self.max_pixels), seed)


class Images(Files, ABC):
    """Single images; subclasses say where they are listed and how they become batches.

    Image size, mean, standard deviation, interpolation and crop are the network's own (the task's
    ``preprocessing``) unless given here.

    Args:
        root: folder of the data, or ``builtin:NAME``.
        scale: range of the share of the area that a training crop keeps. With ``null``, training images are resized
            as in evaluation, and the crop of the network's size is taken anywhere.
        ratio: range of the aspect ratio of a training crop.
        horizontal_flip: probability.
        auto_augment: a policy of timm's, e.g. ``rand-m9-mstd0.5-inc1`` or ``3a``.
        augmentations: further albumentations transforms, applied after the crop.
        random_erasing: probability that a rectangle is overwritten with noise.
        kwargs: see :class:`~datamodules.files.Files`.

    Raises:
        InputError: at construction or ``setup``, for whatever a user can put right.
    """

    kind = "images"

    def __init__(
        self,
        root: str,
        scale: tuple[float, float] | None = (0.08, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        horizontal_flip: float = 0.5,
        auto_augment: str | None = None,
        augmentations: list[A.BasicTransform] | None = None,
        random_erasing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.scale, self.ratio, self.horizontal_flip = scale, ratio, horizontal_flip
        self.auto_augment, self.augmentations, self.random_erasing = auto_augment, augmentations or [], random_erasing

    def dataset(self, split: str) -> ImageDataset:
        """The images, augmented in training."""
        training = split == "train"
        if training:
            transform = train_transform(
                self.preprocessing,
                self.scale,
                self.ratio,
                self.horizontal_flip,
                self.auto_augment,
                self.augmentations,
                self.random_erasing,
            )
        else:
            transform = eval_transform(self.preprocessing)
        return ImageDataset(self.splits[split], transform, self.max_pixels, substitute=training)
