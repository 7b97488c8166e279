"""Images of one class each, from class folders or lists."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import albumentations as A
import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.builtin import resolve_root
from datamodules.decoding import MAX_PIXELS, UnreadableImageError, read_image
from datamodules.listing import Listing, list_class_folders, read_image_list, split
from datamodules.sampling import Draw, EvalSampler, ResumableLoader, TrainSampler
from datamodules.transforms import apply_seeded, eval_transform, train_transform
from vision.batches import ImageBatch
from vision.errors import InputError, shorten
from vision.preprocessing import Interpolation, Preprocessing

LISTS = (".csv", ".tsv")
SUBSTITUTES = 10  # training images tried in the place of an unreadable one


class Sample:
    """One image of a batch to be; ``image`` is None where nothing could be read."""

    __slots__ = ("image", "path", "seed", "target", "unreadable")

    def __init__(self, path: str, target: int, seed: int) -> None:
        self.path, self.target, self.seed = path, target, seed
        self.image: Tensor | None = None
        self.unreadable: list[tuple[str, str]] = []


class ImageDataset(Dataset[Sample]):
    """Decodes and transforms the images of a listing; draws carry the seed.

    Args:
        listing: the files and their classes.
        transform: the pipeline.
        max_pixels: larger images count as unreadable.
        substitute: take the next readable image for an unreadable one (training), or leave it out (evaluation).
    """

    def __init__(self, listing: Listing, transform: A.Compose, max_pixels: int, substitute: bool) -> None:
        self.listing, self.transform, self.max_pixels = listing, transform, max_pixels
        self.tries = 1 + SUBSTITUTES if substitute else 1

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, draw: Draw) -> Sample:
        unreadable: list[tuple[str, str]] = []
        for offset in range(self.tries):
            index = (draw.item + offset) % len(self)
            sample = Sample(self.listing.paths[index], self.listing.targets[index], draw.seed)
            try:
                pixels = read_image(sample.path, self.max_pixels)
            except UnreadableImageError as error:
                unreadable.append((sample.path, error.reason))
            else:
                sample.image = apply_seeded(self.transform, pixels, draw.seed)
                break
        sample.unreadable = unreadable
        return sample


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
        read = [sample for sample in samples if sample.image is not None]
        images = [cast("Tensor", sample.image) for sample in read]
        image = torch.stack(images) if images else torch.zeros(0, 3, *self.size)
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


class ImageFolder(pl.LightningDataModule):
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
        seed: of the split, the order, augmentation and mixing.
        batch_size: images a step and process.
        num_workers: processes that decode; 0 decodes in the main one.
        image_size: pixels, one side or [height, width].
        mean: of the RGB channels on the [0, 1] scale.
        std: of the RGB channels on the [0, 1] scale.
        interpolation: for enlarging; images are shrunk by area averaging.
        crop_pct: share of the resized short side that the evaluation's centre crop keeps.
        scale: range of the share of the area that a training crop keeps.
        ratio: range of the aspect ratio of a training crop.
        horizontal_flip: probability.
        auto_augment: a policy of timm's, e.g. ``rand-m9-mstd0.5-inc1`` or ``3a``.
        augmentations: further albumentations transforms, applied after the crop.
        random_erasing: probability that a rectangle is overwritten with noise.
        mixup: alpha of Mixup, 0 for none. Soft targets are made here; smoothing is the task's.
        cutmix: alpha of CutMix, 0 for none; with both, each batch takes one or the other.
        repeats: repeated augmentation, see :class:`~datamodules.sampling.TrainSampler`.
        max_unreadable: share of the images that may be unreadable before the run stops. Unreadable training
            images are replaced by others, unreadable validation and test images are left out; all are listed in
            ``unreadable.csv`` in the run's folder (one a process, of several).
        max_pixels: images with more pixels count as unreadable (decompression bombs).

    Raises:
        InputError: at construction or ``setup``, for whatever a user can put right.
    """

    def __init__(
        self,
        root: str,
        train: str = "train",
        val: str | None = None,
        test: str | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 2,
        image_size: int | tuple[int, int] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: Interpolation | None = None,
        crop_pct: float | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        horizontal_flip: float = 0.5,
        auto_augment: str | None = None,
        augmentations: list[A.BasicTransform] | None = None,
        random_erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        repeats: int = 1,
        max_unreadable: float = 0.01,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__()
        for name, value in (("val_fraction", val_fraction), ("max_unreadable", max_unreadable)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must be in [0, 1), got {value}")
        for name, number in (("batch_size", batch_size), ("repeats", repeats), ("max_pixels", max_pixels)):
            if number < 1:
                raise InputError(f"{name} must be at least 1, got {number}")
        if (mixup or cutmix) and batch_size % 2:
            raise InputError(f"batch_size must be even with mixup or cutmix, got {batch_size}")
        self.root, self.train, self.val, self.test = root, train, val, test
        self.val_fraction, self.seed, self.batch_size, self.num_workers = val_fraction, seed, batch_size, num_workers
        self.own_preprocessing: dict[str, Any] = {
            "size": (image_size, image_size) if isinstance(image_size, int) else image_size,
            "mean": mean,
            "std": std,
            "interpolation": interpolation,
            "crop_pct": crop_pct,
        }
        self.scale, self.ratio, self.horizontal_flip = scale, ratio, horizontal_flip
        self.auto_augment, self.augmentations, self.random_erasing = auto_augment, augmentations or [], random_erasing
        self.mixup, self.cutmix, self.repeats = mixup, cutmix, repeats
        self.max_unreadable, self.max_pixels = max_unreadable, max_pixels
        self.splits: dict[str, Listing] = {}
        self.unreadable: dict[str, str] = {}
        self._folder: Path | None = None
        self._train_loader: ResumableLoader | None = None
        self._resumed: dict[str, Any] = {"batches": 0}
        self.preprocessing = Preprocessing()

    # ------------------------------------------------------------------------------------------------- listing
    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the target indices; after ``setup``."""
        return self.splits["train"].class_names

    def prepare_data(self) -> None:
        """Writes built-in data where ``root`` asks for it."""
        resolve_root(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Lists the images of all splits and settles the preprocessing."""
        if self.trainer is not None and self.trainer.loggers:
            # Here, since all processes have to ask for it together.
            self._folder = Path(self.trainer.log_dir) if self.trainer.log_dir is not None else None
        task = self.trainer.lightning_module if self.trainer is not None else None
        base = getattr(task, "preprocessing", Preprocessing())
        own = {name: value for name, value in self.own_preprocessing.items() if value is not None}
        self.preprocessing = Preprocessing(**{**base.__dict__, **own})
        if self.splits:
            return
        root = resolve_root(self.root)
        if not root.is_dir():
            raise InputError(f"data.root: no such folder: {root}")
        train = self._list(root, self.train if _exists(root, self.train) else ".")
        names = train.class_names
        val, test = self.val or _default(root, "val"), self.test or _default(root, "test")
        held = self._list(root, val, names) if val else None
        if held is None:
            train, held = split(train, self.val_fraction, self.seed)
        tested = self._list(root, test, names) if test else held
        self.splits = {"train": train, "val": held, "test": tested}

    def _list(self, root: Path, where: str, class_names: Sequence[str] | None = None) -> Listing:
        place = root / where
        return (read_image_list if place.suffix in LISTS else list_class_folders)(place, class_names)

    # ------------------------------------------------------------------------------------------------- loaders
    def _dataset(self, name: str) -> ImageDataset:
        training = name == "train"
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
        return ImageDataset(self.splits[name], transform, self.max_pixels, substitute=training)

    def _processes(self) -> tuple[int, int]:
        """(number of processes, this one)."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": _one_thread,
            "pin_memory": torch.cuda.is_available(),
        }

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, augmented; resumes in mid-epoch."""
        dataset = self._dataset("train")
        sampler = TrainSampler(dataset, *self._processes(), seed=self.seed, repeats=self.repeats)
        mixing = None
        if self.mixup or self.cutmix:
            mixing = Mixup(self.mixup, self.cutmix, label_smoothing=0.0, num_classes=len(self.class_names))
        self._train_loader = ResumableLoader(
            dataset,
            sampler=sampler,
            collate_fn=Collate(self.preprocessing.size, mixing),
            drop_last=len(sampler) >= self.batch_size,
            **self._loader_options(),
        )
        self._train_loader.load_state_dict(self._resumed)
        return self._train_loader

    # Lightning keeps the state of loaders too, but does not give it back where an optimizer's schedule asked for the
    # number of steps beforehand; a data module's state always comes back.
    def state_dict(self) -> dict[str, Any]:
        """Where in the epoch the training is."""
        return self._train_loader.state_dict() if self._train_loader is not None else dict(self._resumed)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The training goes on at the batch at which it was."""
        self._resumed = state_dict
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)

    def _eval_dataloader(self, name: str) -> DataLoader[Any]:
        dataset = self._dataset(name)
        collate: Callable[[Sequence[Sample]], ImageBatch] = Collate(self.preprocessing.size)
        sampler = EvalSampler(dataset, *self._processes())
        return DataLoader(dataset, sampler=sampler, collate_fn=collate, **self._loader_options())

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation images, each once."""
        return self._eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images, each once."""
        return self._eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test images."""
        return self._eval_dataloader("test")

    # ---------------------------------------------------------------------------------------- unreadable files
    def on_before_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        """Counts the unreadable files of the batch.

        Raises:
            InputError: there are more than ``max_unreadable`` allows.
        """
        self.unreadable.update(batch["unreadable"])
        total = sum(len(listing) for listing in {id(s): s for s in self.splits.values()}.values())
        if self.unreadable and len(self.unreadable) > self.max_unreadable * total / self._processes()[0]:
            examples = [f"{path} ({reason})" for path, reason in self.unreadable.items()]
            raise InputError(
                f"{len(self.unreadable)} of {total} images cannot be read, more than data.max_unreadable "
                f"({self.max_unreadable:.1%}) allows: {shorten(examples, 3)}"
            )
        return batch

    def teardown(self, stage: str) -> None:
        """Lists the files that were skipped in ``unreadable.csv`` in the run's folder."""
        if not self.unreadable or self._folder is None:
            return
        processes, rank = self._processes()
        file = self._folder / (f"unreadable-{rank}.csv" if processes > 1 else "unreadable.csv")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("path", "reason"), *self.unreadable.items()])
        warnings.warn(f"{len(self.unreadable)} unreadable images were skipped, listed in {file}", stacklevel=2)


def _one_thread(_worker: int) -> None:
    """Keeps OpenCV's own threads from competing with the workers, of which there are as many as are wanted."""
    cv2.setNumThreads(0)


def _exists(root: Path, where: str) -> bool:
    """Whether ``where`` is there; a name that is not the default must be, so it is taken at its word."""
    return where != "train" or (root / where).exists()


def _default(root: Path, name: str) -> str | None:
    return name if (root / name).is_dir() else None
