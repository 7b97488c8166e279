"""What data modules of files share: preprocessing, loaders, resumption, and files that cannot be read."""

from __future__ import annotations

import csv
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.builtin import resolve_root
from datamodules.decoding import MAX_PIXELS, UnreadableFileError
from datamodules.sampling import Draw, EvalLoader, EvalSampler, ResumableLoader, TrainSampler
from vision.errors import InputError, shorten
from vision.preprocessing import CropMode, Interpolation, Preprocessing

SUBSTITUTES = 10  # training files tried in the place of an unreadable one


class Listed(Protocol):
    """Files, and what each of them shows."""

    @property
    def paths(self) -> Sequence[str]:
        """The files."""

    @property
    def targets(self) -> Sequence[Any]:
        """As long as ``paths``."""

    def __len__(self) -> int: ...


class Sample:
    """One file of a batch to be; ``media`` is None where nothing could be read."""

    __slots__ = ("media", "path", "seed", "target", "unreadable")

    def __init__(self, path: str, target: Any, seed: int) -> None:
        self.path, self.target, self.seed = path, target, seed
        self.media: Tensor | None = None
        self.unreadable: list[tuple[str, str]] = []


class FileDataset(Dataset[Sample], ABC):
    """The files of a listing as tensors; draws carry the seed.

    Args:
        listing: the files and their targets.
        substitute: take the next readable file for an unreadable one (training), or leave it out (evaluation).
    """

    opens_files = True
    """Decoding is work, which processes of a loader may share."""

    def __init__(self, listing: Listed, substitute: bool) -> None:
        self.listing = listing
        self.tries = 1 + SUBSTITUTES if substitute else 1

    @abstractmethod
    def load(self, index: int, seed: int) -> Tensor:
        """The tensor of a file, a function of file and seed alone.

        Raises:
            UnreadableFileError: it cannot be decoded.
        """

    def target(self, index: int, seed: int) -> Any:
        """What the tensor of ``load`` shows; told without opening the file."""
        return self.listing.targets[index]

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, draw: Draw) -> Sample:
        return self.read(draw, self.tries)

    def read(self, draw: Draw, tries: int) -> Sample:
        """The sample of a draw, for which as many files are tried as are given, one behind the other."""
        unreadable: list[tuple[str, str]] = []
        for index in islice(self._one_a_file(draw.item), tries):
            sample = Sample(self.listing.paths[index], self.target(index, draw.seed), draw.seed)
            try:
                sample.media = self.load(index, draw.seed)
            except UnreadableFileError as error:
                unreadable.append((sample.path, error.reason))
            else:
                break
        sample.unreadable = unreadable
        return sample

    def _one_a_file(self, item: int) -> Iterator[int]:
        """An item and those behind it, without those of a file that was there before."""
        seen: set[str] = set()
        for offset in range(len(self)):
            index = (item + offset) % len(self)
            if (path := self.listing.paths[index]) not in seen:
                seen.add(path)
                yield index


def stack(
    samples: Sequence[Sample], shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> tuple[list[Sample], Tensor]:
    """The samples that could be read, and their tensors: ``(B, *shape)``, of which ``B`` may be 0."""
    media = [(sample, sample.media) for sample in samples if sample.media is not None]
    stacked = torch.stack([tensor for _, tensor in media]) if media else torch.zeros(0, *shape, dtype=dtype)
    return [sample for sample, _ in media], stacked


class Files(pl.LightningDataModule, ABC):
    """Files that are decoded; subclasses say where they are listed and how they become batches.

    Size, mean, standard deviation, interpolation and crop are the network's own (the task's ``preprocessing``)
    unless given here.

    Args:
        root: folder of the data, or ``builtin:NAME``.
        seed: of the order, augmentation, and whatever else is left to chance.
        batch_size: files a step and process; where an evaluation has several views of each, views.
        num_workers: processes that decode; 0 decodes in the main one.
        image_size: pixels, one side or [height, width].
        mean: of the RGB channels on the [0, 1] scale.
        std: of the RGB channels on the [0, 1] scale.
        interpolation: for enlarging; images are shrunk by area averaging.
        crop_pct: share of the resized short side that the evaluation's crop keeps.
        crop_mode: ``center`` keeps the aspect ratio; ``squash`` resizes both sides, so that nothing is cut off that
            ``crop_pct`` does not cut off.
        max_unreadable: share of the files that may be unreadable before the run stops; a file that is listed several
            times is one. Unreadable training files are replaced by others, unreadable validation and test files are
            left out; all are listed in ``unreadable.csv`` in the run's folder (one a process, of several).
        max_pixels: pictures with more pixels count as unreadable (decompression bombs).

    Raises:
        InputError: at construction or ``setup``, for whatever a user can put right.
    """

    kind = "files"
    """What the files are, in messages."""
    loader_type: type[ResumableLoader] = ResumableLoader
    """Of the training files."""

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
        self.max_unreadable, self.max_pixels = max_unreadable, max_pixels
        self.splits: Mapping[str, Listed] = {}
        self.unreadable: dict[str, str] = {}
        self.run_folder: Path | None = None
        self._train_loader: ResumableLoader | None = None
        self._resumed: dict[str, Any] = {"batches": 0}
        self.preprocessing = Preprocessing()

    # ------------------------------------------------------------------------------------------- of a subclass
    @abstractmethod
    def read_splits(self, root: Path) -> Mapping[str, Listed]:
        """``train``, ``val`` and ``test`` of the data in an existing folder."""

    @abstractmethod
    def dataset(self, split: str) -> FileDataset:
        """A split's files as tensors."""

    @abstractmethod
    def collate(self, split: str) -> Callable[[Sequence[Sample]], Any]:
        """What makes batches of a split's samples; asked for after ``dataset``."""

    def train_sampler(self, dataset: FileDataset) -> TrainSampler:
        """The order of the training files."""
        return TrainSampler(dataset, *self.processes(), seed=self.seed)

    def missing(self) -> dict[str, str]:
        """Files that the data's lists have and the disk has not, and where: in no split, and no reason to stop."""
        return {}

    # ------------------------------------------------------------------------------------------------- listing
    def prepare_data(self) -> None:
        """Writes built-in data where ``root`` asks for it."""
        resolve_root(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Lists the files of all splits and settles the preprocessing."""
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
    def processes(self) -> tuple[int, int]:
        """(number of processes, this one)."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def files_a_batch(self, split: str) -> int:
        """Files in a batch of a split."""
        return self.batch_size

    def _loader_options(self, split: str, dataset: FileDataset) -> dict[str, Any]:
        workers = self.num_workers if dataset.opens_files else 0
        return {
            "batch_size": self.files_a_batch(split),
            "collate_fn": self.collate(split),
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "worker_init_fn": one_thread,
            "pin_memory": torch.cuda.is_available(),
        }

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled, augmented; resumes in mid-epoch."""
        dataset = self.dataset("train")
        sampler = self.train_sampler(dataset)
        self._train_loader = self.loader_type(
            dataset,
            self.trainer,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,
            **self._loader_options("train", dataset),
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
        dataset = self.dataset(split)
        sampler = EvalSampler(dataset, *self.processes())
        return EvalLoader(dataset, sampler=sampler, **self._loader_options(split, dataset))

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation files, each once."""
        return self._eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test files, each once."""
        return self._eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test files."""
        return self._eval_dataloader("test")

    # ---------------------------------------------------------------------------------------- unreadable files
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Counts the unreadable files of the batch.

        Raises:
            InputError: there are more than ``max_unreadable`` allows.
        """
        self.count_unreadable(batch["unreadable"])
        return batch

    def count_unreadable(self, entries: Iterable[tuple[str, str]]) -> None:
        """Adds (path, reason) of files that could not be read; one that is known already counts once.

        Raises:
            InputError: there are more than ``max_unreadable`` allows.
        """
        self.unreadable.update(entries)
        if not self.unreadable:
            return
        rows, files = self._listed
        # A process has its share of the rows; parts of one file may be in the shares of all processes.
        if len(self.unreadable) > self.max_unreadable * min(files, rows / self.processes()[0]):
            examples = [f"{path} ({reason})" for path, reason in self.unreadable.items()]
            raise InputError(
                f"{len(self.unreadable)} of {files} {self.kind} cannot be read, more than data.max_unreadable "
                f"({self.max_unreadable:.1%}) allows: {shorten(examples, 3)}"
            )

    @cached_property
    def _listed(self) -> tuple[int, int]:
        """How many rows all listings have, and how many files these are of."""
        listings = {id(listing): listing for listing in self.splits.values()}.values()
        return sum(map(len, listings)), len({path for listing in listings for path in listing.paths})

    def teardown(self, stage: str) -> None:
        """Lists the files that were skipped in ``unreadable.csv`` in the run's folder."""
        processes, rank = self.processes()
        missing = self.missing() if rank == 0 else {}
        if not (missing or self.unreadable) or self.run_folder is None:
            return
        name = f"unreadable-{rank}.csv" if processes > 1 else "unreadable.csv"
        file = write_table(self.run_folder / name, [("path", "reason"), *missing.items(), *self.unreadable.items()])
        numbers = ((len(missing), "missing"), (len(self.unreadable), "unreadable"))
        skipped = " and ".join(f"{number} {what}" for number, what in numbers if number)
        warnings.warn(f"{skipped} {self.kind} were skipped, listed in {file}", stacklevel=2)


def write_table(file: Path, rows: Sequence[Sequence[Any]]) -> Path:
    """Writes rows as CSV, and the folder where it is missing; returns ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return file


def one_thread(_worker: int) -> None:
    """Keeps OpenCV's own threads from competing with the workers, of which there are as many as are wanted."""
    cv2.setNumThreads(0)
