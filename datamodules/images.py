"""What data modules of single images share: preprocessing, loaders, resumption, and files that cannot be read."""

from __future__ import annotations

import csv
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import albumentations as A
import cv2
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.builtin import resolve_root
from datamodules.decoding import MAX_PIXELS, UnreadableImageError, read_image
from datamodules.sampling import Draw, EvalSampler, ResumableLoader, TrainSampler
from datamodules.transforms import apply_seeded, eval_transform, train_transform
from vision.batches import ImageBatch, MultitaskBatch
from vision.errors import InputError, shorten
from vision.preprocessing import CropMode, Interpolation, Preprocessing

SUBSTITUTES = 10  # training images tried in the place of an unreadable one


class Listed(Protocol):
    """Image files, and what each of them shows."""

    @property
    def paths(self) -> Sequence[str]:
        """The files."""

    @property
    def targets(self) -> Sequence[Any]:
        """As long as ``paths``."""

    def __len__(self) -> int: ...


class Sample:
    """One image of a batch to be; ``image`` is None where nothing could be read."""

    __slots__ = ("image", "path", "seed", "target", "unreadable")

    def __init__(self, path: str, target: Any, seed: int) -> None:
        self.path, self.target, self.seed = path, target, seed
        self.image: Tensor | None = None
        self.unreadable: list[tuple[str, str]] = []


class ImageDataset(Dataset[Sample]):
    """Decodes and transforms the images of a listing; draws carry the seed.

    Args:
        listing: the files and their targets.
        transform: the pipeline.
        max_pixels: larger images count as unreadable.
        substitute: take the next readable image for an unreadable one (training), or leave it out (evaluation).
    """

    def __init__(self, listing: Listed, transform: A.Compose, max_pixels: int, substitute: bool) -> None:
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


def stack(samples: Sequence[Sample], size: tuple[int, int]) -> tuple[list[Sample], Tensor]:
    """The samples that could be read, and their images: float32 ``(B, 3, *size)``, of which ``B`` may be 0."""
    images = [(sample, sample.image) for sample in samples if sample.image is not None]
    stacked = torch.stack([image for _, image in images]) if images else torch.zeros(0, 3, *size)
    return [sample for sample, _ in images], stacked


class Images(pl.LightningDataModule, ABC):
    """Single images; subclasses say where they are listed and how they become batches.

    Image size, mean, standard deviation, interpolation and crop are the network's own (the task's
    ``preprocessing``) unless given here.

    Args:
        root: folder of the data, or ``builtin:NAME``.
        seed: of the order, augmentation, and whatever else is left to chance.
        batch_size: images a step and process.
        num_workers: processes that decode; 0 decodes in the main one.
        image_size: pixels, one side or [height, width].
        mean: of the RGB channels on the [0, 1] scale.
        std: of the RGB channels on the [0, 1] scale.
        interpolation: for enlarging; images are shrunk by area averaging.
        crop_pct: share of the resized short side that the evaluation's centre crop keeps.
        crop_mode: ``center`` keeps the aspect ratio; ``squash`` resizes both sides, so that nothing is cut off that
            ``crop_pct`` does not cut off.
        scale: range of the share of the area that a training crop keeps. With ``null``, training images are resized
            as in evaluation, and the crop of the network's size is taken anywhere.
        ratio: range of the aspect ratio of a training crop.
        horizontal_flip: probability.
        auto_augment: a policy of timm's, e.g. ``rand-m9-mstd0.5-inc1`` or ``3a``.
        augmentations: further albumentations transforms, applied after the crop.
        random_erasing: probability that a rectangle is overwritten with noise.
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
        seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 2,
        image_size: int | tuple[int, int] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        interpolation: Interpolation | None = None,
        crop_pct: float | None = None,
        crop_mode: CropMode | None = None,
        scale: tuple[float, float] | None = (0.08, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        horizontal_flip: float = 0.5,
        auto_augment: str | None = None,
        augmentations: list[A.BasicTransform] | None = None,
        random_erasing: float = 0.0,
        max_unreadable: float = 0.01,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__()
        if not 0 <= max_unreadable < 1:
            raise InputError(f"max_unreadable must be in [0, 1), got {max_unreadable}")
        for name, number in (("batch_size", batch_size), ("max_pixels", max_pixels)):
            if number < 1:
                raise InputError(f"{name} must be at least 1, got {number}")
        self.root, self.seed, self.batch_size, self.num_workers = root, seed, batch_size, num_workers
        self.own_preprocessing: dict[str, Any] = {
            "size": (image_size, image_size) if isinstance(image_size, int) else image_size,
            "mean": mean,
            "std": std,
            "interpolation": interpolation,
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
        }
        self.scale, self.ratio, self.horizontal_flip = scale, ratio, horizontal_flip
        self.auto_augment, self.augmentations, self.random_erasing = auto_augment, augmentations or [], random_erasing
        self.max_unreadable, self.max_pixels = max_unreadable, max_pixels
        self.splits: Mapping[str, Listed] = {}
        self.unreadable: dict[str, str] = {}
        self.run_folder: Path | None = None
        self._train_loader: ResumableLoader | None = None
        self._resumed: dict[str, Any] = {"batches": 0}
        self.preprocessing = Preprocessing()

    # ------------------------------------------------------------------------------------------- of a subclass
    loader_type: type[ResumableLoader] = ResumableLoader
    """Of the training images."""

    @abstractmethod
    def read_splits(self, root: Path) -> Mapping[str, Listed]:
        """``train``, ``val`` and ``test`` of the data in an existing folder."""

    @abstractmethod
    def collate(self, split: str) -> Callable[[Sequence[Sample]], Any]:
        """What makes batches of a split's samples."""

    def train_sampler(self, dataset: ImageDataset) -> TrainSampler:
        """The order of the training images."""
        return TrainSampler(dataset, *self.processes(), seed=self.seed)

    # ------------------------------------------------------------------------------------------------- listing
    def prepare_data(self) -> None:
        """Writes built-in data where ``root`` asks for it."""
        resolve_root(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Lists the images of all splits and settles the preprocessing."""
        if self.trainer is not None and self.trainer.loggers:
            # Here, since all processes have to ask for it together.
            self.run_folder = Path(self.trainer.log_dir) if self.trainer.log_dir is not None else None
        task = self.trainer.lightning_module if self.trainer is not None else None
        base = getattr(task, "preprocessing", Preprocessing())
        own = {name: value for name, value in self.own_preprocessing.items() if value is not None}
        self.preprocessing = Preprocessing(**{**base.__dict__, **own})
        if self.splits:
            return
        root = resolve_root(self.root)
        if not root.is_dir():
            raise InputError(f"data.root: no such folder: {root}")
        self.splits = self.read_splits(root)

    # ------------------------------------------------------------------------------------------------- loaders
    def _dataset(self, split: str) -> ImageDataset:
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

    def processes(self) -> tuple[int, int]:
        """(number of processes, this one)."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _loader_options(self, split: str) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "collate_fn": self.collate(split),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": _one_thread,
            "pin_memory": torch.cuda.is_available(),
        }

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, augmented; resumes in mid-epoch."""
        dataset = self._dataset("train")
        sampler = self.train_sampler(dataset)
        self._train_loader = self.loader_type(
            dataset,
            self.trainer,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,
            **self._loader_options("train"),
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

    def _eval_dataloader(self, split: str) -> DataLoader[Any]:
        dataset = self._dataset(split)
        return DataLoader(dataset, sampler=EvalSampler(dataset, *self.processes()), **self._loader_options(split))

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
    def on_before_batch_transfer(
        self, batch: ImageBatch | MultitaskBatch, dataloader_idx: int
    ) -> ImageBatch | MultitaskBatch:
        """Counts the unreadable files of the batch.

        Raises:
            InputError: there are more than ``max_unreadable`` allows.
        """
        self.unreadable.update(batch["unreadable"])
        total = sum(len(listing) for listing in {id(s): s for s in self.splits.values()}.values())
        if self.unreadable and len(self.unreadable) > self.max_unreadable * total / self.processes()[0]:
            examples = [f"{path} ({reason})" for path, reason in self.unreadable.items()]
            raise InputError(
                f"{len(self.unreadable)} of {total} images cannot be read, more than data.max_unreadable "
                f"({self.max_unreadable:.1%}) allows: {shorten(examples, 3)}"
            )
        return batch

    def teardown(self, stage: str) -> None:
        """Lists the files that were skipped in ``unreadable.csv`` in the run's folder."""
        if not self.unreadable or self.run_folder is None:
            return
        processes, rank = self.processes()
        name = f"unreadable-{rank}.csv" if processes > 1 else "unreadable.csv"
        file = write_table(self.run_folder / name, [("path", "reason"), *self.unreadable.items()])
        warnings.warn(f"{len(self.unreadable)} unreadable images were skipped, listed in {file}", stacklevel=2)


def write_table(file: Path, rows: Sequence[Sequence[Any]]) -> Path:
    """Writes rows as CSV, and the folder where it is missing; returns ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return file


def _one_thread(_worker: int) -> None:
    """Keeps OpenCV's own threads from competing with the workers, of which there are as many as are wanted."""
    cv2.setNumThreads(0)
