"""Images of one class each, from class folders or lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from datamodules.files import FileDataset, Sample, stack
from datamodules.images import Images
from datamodules.listing import Listing, list_class_folders, read_image_list, split
from datamodules.sampling import TrainSampler
from vision.batches import ImageBatch
from vision.errors import InputError

LISTS = (".csv", ".tsv")


class Collate:
    """Samples to an :class:`~vision.batches.ImageBatch`, mixed where timm's Mixup is given.

    Args:
        size: (height, width), for the shape of a batch in which nothing could be read.
        mixup: mixes images and makes soft targets; its random choices follow from the first sample's seed.
    """

    def __init__(self, size: tuple[int, int], mixup: Mixup | None = None) -> None:
        self.size, self.mixup = size, mixup

    def __call__(self, samples: Sequence[Sample]) -> ImageBatch:
        """The readable samples as a batch, with what could not be read."""
        read, image = stack(samples, (3, *self.size))
        target = torch.tensor([sample.target for sample in read], dtype=torch.long)
        if self.mixup is not None and read:
            image, target = self._mix(image, target, read[0].seed)
        return {
            "image": image,
            "target": target,
            "path": [sample.path for sample in read],
            "unreadable": [entry for sample in samples for entry in sample.unreadable],
        }

    def _mix(self, image: Tensor, target: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        assert self.mixup is not None
        if len(image) % 2:
            return image, torch.nn.functional.one_hot(target, self.mixup.num_classes).float()
        before = np.random.get_state()  # noqa: NPY002 (timm draws from the global generator)
        np.random.seed(seed)  # noqa: NPY002
        try:
            mixed: tuple[Tensor, Tensor] = self.mixup(image, target)
            return mixed
        finally:
            np.random.set_state(before)  # noqa: NPY002


class ImageFolder(Images):
    """Class-per-folder images (ImageNet layout), or CSV/TSV lists of images.

    The classes are those of the training images, in alphabetical order. Image size, mean, standard deviation,
    interpolation and crop are the network's own (the task's ``preprocessing``) unless given here.

    Args:
        root: folder of the data; ``builtin:photographs`` and ``builtin:digits`` need no files.
        train: folder below ``root`` with one folder a class, or a ``.csv``/``.tsv`` list with the columns ``path``
            (relative to the list) and ``label``. Where ``root`` has no such folder, its own folders are the classes.
        val: the same for validation. By default ``val`` where it exists, else a split of the training images.
        test: the same for testing. By default ``test`` where it exists, else the validation images.
        val_fraction: share of each class that is split off for validation where there is no validation folder.
        mixup: alpha of Mixup, 0 for none. Soft targets are made here; smoothing is the task's.
        cutmix: alpha of CutMix, 0 for none; with both, each batch takes one or the other.
        repeats: repeated augmentation, see :class:`~datamodules.sampling.TrainSampler`.
        kwargs: see :class:`~datamodules.images.Images`.

    Raises:
        InputError: at construction or ``setup``, for whatever a user can put right.
    """

    splits: dict[str, Listing]

    def __init__(
        self,
        root: str,
        train: str = "train",
        val: str | None = None,
        test: str | None = None,
        val_fraction: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        repeats: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        if not 0 <= val_fraction < 1:
            raise InputError(f"val_fraction must be in [0, 1), got {val_fraction}")
        if repeats < 1:
            raise InputError(f"repeats must be at least 1, got {repeats}")
        if (mixup or cutmix) and self.batch_size % 2:
            raise InputError(f"batch_size must be even with mixup or cutmix, got {self.batch_size}")
        self.train, self.val, self.test, self.val_fraction = train, val, test, val_fraction
        self.mixup, self.cutmix, self.repeats = mixup, cutmix, repeats

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the target indices; after ``setup``."""
        return self.splits["train"].class_names

    def read_splits(self, root: Path) -> dict[str, Listing]:
        """Lists folders and lists; splits validation images off where there are none."""
        train = self._list(root, self.train if _exists(root, self.train) else ".")
        names = train.class_names
        val, test = self.val or _default(root, "val"), self.test or _default(root, "test")
        held = self._list(root, val, names) if val else None
        if held is None:
            train, held = split(train, self.val_fraction, self.seed)
        tested = self._list(root, test, names) if test else held
        return {"train": train, "val": held, "test": tested}

    def _list(self, root: Path, where: str, class_names: Sequence[str] | None = None) -> Listing:
        place = root / where
        return (read_image_list if place.suffix in LISTS else list_class_folders)(place, class_names)

    def collate(self, split: str) -> Collate:
        """Training images are mixed where that is asked for."""
        mixing = None
        if split == "train" and (self.mixup or self.cutmix):
            mixing = Mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=len(self.class_names))
        return Collate(self.preprocessing.size, mixing)

    def train_sampler(self, dataset: FileDataset) -> TrainSampler:
        """Each image once, or several times in a row."""
        return TrainSampler(dataset, *self.processes(), seed=self.seed, repeats=self.repeats)


def _exists(root: Path, where: str) -> bool:
    """Whether ``where`` is there; a name that is not the default must be, so it is taken at its word."""
    return where != "train" or (root / where).exists()


def _default(root: Path, name: str) -> str | None:
    return name if (root / name).is_dir() else None
