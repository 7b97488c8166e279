"""What a frozen network makes of files, made once and read from disk in every epoch.

A task that has a frozen network offers ``frozen_features`` and ``cache_fields`` (:class:`FrozenNetwork`); a data module
that has a dataset of files makes of it one of features (:class:`FeatureCache`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import albumentations as A
import cv2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.decoding import UnreadableFileError
from datamodules.feature_store import DTYPES, REMEDY, UNREADABLE, Entry, FeatureStore, check_room, readable
from datamodules.files import FileDataset, Files, Sample, one_thread, stack
from datamodules.sampling import Draw
from vision.batches import FeatureBatch
from vision.errors import InputError

CHECKED = 3
"""Finished rows that are made again, and compared, when a cache is opened."""
TOLERANCE = 1e-3
"""Of their distance in proportion to their length: other devices and sizes of batches round differently."""
ROUGH = 3e-2
"""The same of what is kept in, or made with, 8 or 11 bits."""
TOGETHER = 50
"""Batches after which processes wait for each other, so that none waits at the end for longer than a barrier does."""


class FrozenNetwork(Protocol):
    """What a task offers, so that its data module can cache the features of its frozen network."""

    def frozen_features(self, media: Tensor) -> Tensor:
        """Media of ``N`` files on the task's device, as the dataset gives them, to ``(N, ...)`` features.

        Each row depends on its own media alone, the network being in evaluation mode whatever the task's mode.
        """

    def cache_fields(self) -> Mapping[str, Any]:
        """What the features depend on beside the media, plain JSON values: above all a hash of the weights.

        ``dtype`` is what they are kept in, ``float16`` or ``float32``.

        Raises:
            InputError: the features cannot be cached.
        """


class CachedFeatures(FileDataset):
    """The features of files, ``(V, ...)`` of each, in the place of the files.

    Args:
        source: what the features were made of; its files are not opened.
        store: a row for each draw of each file.
        draws: of each file.
        seed: of the draws.
    """

    opens_files = False

    def __init__(self, source: FileDataset, store: FeatureStore, draws: int, seed: int) -> None:
        super().__init__(source.listing, substitute=source.tries > 1)
        self.source, self.store, self.draws, self.seed = source, store, draws, seed

    def load(self, index: int, seed: int) -> Tensor:
        """The features of the draw that ``seed`` chooses."""
        row = index * self.draws + seed % self.draws
        if self.store.status[row] == UNREADABLE:
            raise UnreadableFileError(self.listing.paths[index], self.store.reasons.get(row, "cannot be read"))
        return torch.from_numpy(self.store.read(row))

    def target(self, index: int, seed: int) -> Any:
        """What the chosen draw shows."""
        return self.source.target(index, draw_seed(self.seed, index, seed % self.draws))


class FeatureCollate:
    """Cached samples to a :class:`~vision.batches.FeatureBatch`.

    Args:
        shape: of a file's features, ``(V, ...)``.
        sets: how many label sets there are.
    """

    def __init__(self, shape: Sequence[int], sets: int) -> None:
        self.shape, self.sets = shape, sets

    def __call__(self, samples: Sequence[Sample]) -> FeatureBatch:
        """The readable samples as a batch, with what could not be read."""
        read, features = stack(samples, self.shape)
        labels = np.array([sample.target for sample in read], np.int64).reshape(-1, self.sets)
        return {
            "features": features,
            "labels": torch.from_numpy(labels),
            "path": [sample.path for sample in read],
            "unreadable": [entry for sample in samples for entry in sample.unreadable],
        }


class FeatureCache:
    """The features of one dataset in a folder: made where they are missing, by all processes together.

    Several processes need a folder that all of them see. A run that is interrupted leaves what it has done.

    Args:
        data: has the trainer, whose task has the network; its ``seed``, ``batch_size`` and ``num_workers`` hold.
        source: the files, each ``(V, ...)``; gives None for one that cannot be read.
        folder: of the features.
        fields: what the media depend on, plain JSON values.
        files: those of the source.
        draws: of each file, each with a seed of its own.
        network: what makes the features, by default the task. Another one is run on the main processor, and what it
            makes may be kept in any type that its ``cache_fields`` name.
        unit: what a row is of, in messages.

    Raises:
        InputError: the task has no frozen network, or whatever is said of the methods.
    """

    def __init__(
        self,
        data: Files,
        source: FileDataset,
        folder: Path,
        fields: Mapping[str, Any],
        files: Sequence[Entry],
        draws: int = 1,
        network: FrozenNetwork | None = None,
        unit: str = "clips",
    ) -> None:
        if data.trainer is None:
            raise InputError("data.cache: features are made by a task's network, so it needs a Trainer")
        self.data, self.trainer, self.source, self.folder = data, data.trainer, source, folder
        self.network, self.device = (network, torch.device("cpu")) if network is not None else self._of_task()
        self.files, self.draws, self.unit = files, draws, unit
        of_task = dict(self.network.cache_fields())
        if network is None and of_task.get("dtype") not in DTYPES:
            raise InputError(f"data.cache: features are kept in {' or '.join(DTYPES)}, got {of_task.get('dtype')}")
        self.fields = {
            "task": of_task,
            "data": {**fields, "draws": draws},
            "trainer": {"precision": str(self.trainer.precision)},
            # Builds for other devices are the same version.
            "versions": {module.__name__: module.__version__.split("+")[0] for module in (torch, timm, A, cv2)},
        }

    def _of_task(self) -> tuple[FrozenNetwork, torch.device]:
        task = self.trainer.lightning_module
        if not hasattr(task, "frozen_features"):
            raise InputError(
                f"data.cache: {type(task).__name__} has no frozen network, so it has no features that could be kept"
            )
        return cast("FrozenNetwork", task), task.device

    def open(self) -> CachedFeatures:
        """The features of all files; those that are missing are made first.

        Raises:
            InputError: the folder holds features of another network, other arguments or other files; features that
                were made before do not come out again, or are not finite; too many files cannot be read; the disk
                is full.
        """
        rows = len(self.files) * self.draws
        store = FeatureStore.open(self.folder, self.fields, self.files, rows)
        if store is None:
            shape = self._shape()
            self._announce(rows, rows * int(np.prod(shape)) * np.dtype(self.fields["task"]["dtype"]).itemsize)
            self.trainer.strategy.barrier("no process has found a cache")
            if self.trainer.is_global_zero:
                FeatureStore.create(self.folder, self.fields, self.files, shape, rows)
            self.trainer.strategy.barrier("the cache is there")
            store = FeatureStore.open(self.folder, self.fields, self.files, rows)
            if store is None:
                raise InputError(f"data.cache: {self.folder} must be on a disk that all processes share")
        else:
            if self.trainer.is_global_zero:
                store.try_again(self.files)
            self.trainer.strategy.barrier("what can be read by now is to be made")
            store.refresh()
            self._check(store)
            if left := len(store.to_do()):
                self._announce(left, left * store.row_bytes)
        self._fill(store)
        return CachedFeatures(self.source, store, self.draws, self.data.seed)

    def _announce(self, rows: int, size: int) -> None:
        """Says what is going to be written; on all processes, since all have to end where it does not fit."""
        check_room(self.folder, size)
        if self.trainer.is_global_zero:
            print(f"vision: the cache takes {readable(size)} in {self.folder} ({rows:,} {self.unit})", flush=True)

    def _draw(self, row: int) -> Draw:
        item, draw = divmod(int(row), self.draws)
        return Draw(item, draw_seed(self.data.seed, item, draw))

    def _features(self, media: Tensor) -> Tensor:
        """``(B, V, ...)`` media to ``(B, V, ...)`` features, ``batch_size`` views at a time."""
        # Lightning's evaluation is in inference mode, which would leave its mark on what the network keeps.
        with torch.inference_mode(False), torch.no_grad(), self.trainer.precision_plugin.forward_context():
            parts = torch.split(media.flatten(0, 1), self.data.batch_size)
            features = torch.cat([self.network.frozen_features(part.to(self.device)) for part in parts])
        return features.reshape(*media.shape[:2], *features.shape[1:])

    def _shape(self) -> list[int]:
        """The shape of a file's features, found with the first file that can be read."""
        unreadable: list[tuple[str, str]] = []
        for row in range(0, len(self.files) * self.draws, self.draws):
            sample = self._sample(row)
            if sample.media is not None:
                return list(self._features(sample.media[None]).shape[1:])
            unreadable += sample.unreadable
            self.data.count_unreadable(sample.unreadable)
        raise InputError(f"none of the {self.data.kind} can be read: {unreadable[0][0]} ({unreadable[0][1]})")

    def _sample(self, row: int) -> Sample:
        return self.source.read(self._draw(row), tries=1)

    def _check(self, store: FeatureStore) -> None:
        """Makes a few finished rows again, where their files are still there."""
        done = np.flatnonzero(store.status == 1)
        chosen = np.random.default_rng().choice(done, min(CHECKED, len(done)), replace=False).tolist()
        precise = str(self.trainer.precision).startswith(("32", "64")) and store.dtype == np.float32
        tolerance = TOLERANCE if precise else ROUGH
        for row in self.trainer.strategy.broadcast(chosen):
            path = self.source.listing.paths[row // self.draws]
            if not Path(path).exists():
                continue
            sample = self._sample(row)
            if sample.media is None:
                raise InputError(f"{path}: {sample.unreadable[0][1]}, but {self.folder} has features of it; {REMEDY}")
            now, before = self._features(sample.media[None])[0].float().cpu(), torch.from_numpy(store.read(row))
            distance = float((now - before).norm() / now.norm().clamp(min=1e-12)) if now.shape == before.shape else 1.0
            if not distance <= tolerance:
                raise InputError(
                    f"{self.folder}: the features of {path} do not come out again: they differ by {distance:.1%}, "
                    f"where {tolerance:.1%} is let through; {REMEDY}"
                )

    def _fill(self, store: FeatureStore) -> None:
        """Makes the missing rows, each process its own."""
        world, rank = self.data.processes()
        rows = store.to_do()
        self.trainer.strategy.barrier("all processes know what is missing")
        if not len(rows):
            return
        own = rows[rank::world].tolist()
        with tqdm(total=len(own), desc=f"features of {self.folder.name}", disable=None if rank == 0 else True) as bar:
            for number, samples in enumerate(self._batches(store, own), 1):
                self._write(store, samples, rank)
                bar.update(len(samples))
                if number % TOGETHER == 0 and number * self._size(store) <= len(rows) // world:
                    self.trainer.strategy.barrier("not too far apart")
        self.trainer.strategy.barrier("all features are made")
        store.refresh()

    def _size(self, store: FeatureStore) -> int:
        """Files a batch, whose views the network takes at once."""
        return max(1, self.data.batch_size // store.shape[0])

    def _batches(self, store: FeatureStore, rows: Sequence[int]) -> Iterator[list[tuple[int, Sample]]]:
        size = self._size(store)
        loader = DataLoader(
            _Exactly(self.source),
            batch_size=size,
            sampler=[self._draw(row) for row in rows],
            collate_fn=list,
            num_workers=self.data.num_workers,
            worker_init_fn=one_thread,
            generator=torch.Generator(),  # or it would draw from the model's random numbers
        )
        for start, samples in zip(range(0, len(rows), size), loader, strict=True):
            yield list(zip(rows[start : start + size], samples, strict=True))

    def _write(self, store: FeatureStore, samples: Sequence[tuple[int, Sample]], rank: int) -> None:
        for row, sample in samples:
            for path, reason in sample.unreadable:
                store.leave_out(row, path, reason, rank)
            self.data.count_unreadable(sample.unreadable)
        readable_ones = [(row, sample) for row, sample in samples if sample.media is not None]
        if not readable_ones:
            return
        media = torch.stack([sample.media for _, sample in readable_ones if sample.media is not None])
        found: NDArray[Any] = self._features(media).float().cpu().numpy()
        with np.errstate(over="ignore"):
            kept = found.astype(store.dtype)
        finite = np.isfinite(kept).reshape(len(kept), -1).all(axis=1)
        if not finite.all():
            path = readable_ones[int(np.argmin(finite))][1].path
            raise InputError(f"{path}: the network's features are not finite in {store.dtype}, so they are not kept")
        store.write([row for row, _ in readable_ones], kept)


class _Exactly(Dataset[Sample]):
    """A dataset without substitutes for what cannot be read."""

    def __init__(self, source: FileDataset) -> None:
        self.source = source

    def __getitem__(self, draw: Draw) -> Sample:
        return self.source.read(draw, tries=1)


def draw_seed(seed: int, item: int, draw: int) -> int:
    """The seed of a file's draw, in [0, 2**31)."""
    return int(np.random.default_rng((seed, item, draw)).integers(2**31))
