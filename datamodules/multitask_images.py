"""Images that are labelled for several tasks, from tables."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.files import FileDataset, Sample, stack, write_table
from datamodules.images import Images
from datamodules.multitask_listing import Classes, Table, read_table
from datamodules.sampling import ResumableLoader, TrainSampler
from vision.batches import MultitaskBatch
from vision.errors import InputError, did_you_mean
from vision.labels import MISSING, LabelSchema, count_labels

TEST = "test.tsv"


class MultitaskCollate:
    """Samples of a table to a :class:`~vision.batches.MultitaskBatch`; ``labelled`` counts this batch alone.

    Args:
        table: says where the images are listed.
        size: (height, width), for the shape of a batch in which nothing could be read.
    """

    def __init__(self, table: Table, size: tuple[int, int]) -> None:
        self.size = size
        self.tasks = len(table.targets[0])
        self.origins = dict(zip(table.paths, table.origins, strict=True))

    def __call__(self, samples: Sequence[Sample]) -> MultitaskBatch:
        """The readable samples as a batch, with what could not be read, and in which row that is."""
        read, image = stack(samples, (3, *self.size))
        labels = torch.tensor([sample.target for sample in read], dtype=torch.long).reshape(-1, self.tasks)
        unreadable = [entry for sample in samples for entry in sample.unreadable]
        return {
            "image": image,
            "labels": labels,
            "labelled": count_labels(labels),
            "path": [sample.path for sample in read],
            "unreadable": [(path, f"{reason}, {self.origins[path]}") for path, reason in unreadable],
        }


class WindowLoader(ResumableLoader):
    """Looks ahead: ``labelled`` of a batch counts the labels of all batches of its optimizer step.

    These are in memory together. How many they are is asked of the trainer when a pass begins.
    """

    def arrange(self, batches: Iterator[MultitaskBatch], start: int) -> Iterator[MultitaskBatch]:
        """Every batch with its step's counts; the last step of an epoch may have fewer batches."""
        size = self.trainer.accumulate_grad_batches if self.trainer is not None else 1
        total = self.epoch_batches()
        while start < total:
            end = min((start // size + 1) * size, total)
            step = list(islice(batches, end - start))
            labelled = torch.stack([batch["labelled"] for batch in step]).sum(dim=0)
            for batch in step:
                yield {**batch, "labelled": labelled}
            start = end


class MultitaskImages(Images):
    """Images that are labelled for several tasks, from tables; any label may be missing.

    A table is tab-separated (comma-separated where it is called ``.csv``), has a header row, the column
    ``image_path`` and a column for each task; others are ignored. A blank label is a missing one. Image size, mean,
    standard deviation, interpolation and crop are the network's own (the task's ``preprocessing``) unless given here.

    Args:
        root: folder that the tables and the paths in them are relative to; ``builtin:scenes`` needs no files.
        tasks: by name, the list of classes in the order of their indices, or ``{classes: [...], ordinal: true}``
            where the classes are steps of one scale, lowest first. This order holds, whatever a file has.
        train: table of the training images; or a table for each task, ``{task: file}``, with the columns
            ``image_path`` and ``class_label``, which are joined on the path.
        val: the same for validation.
        test: the same for testing. By default ``test.tsv`` where it exists, else the validation images.
        integer_labels: for tasks whose labels are numbers in the tables: the classes in the order of those numbers.
            On Hugging Face, MEDIC's ``disaster_types`` are numbered in another order than the official one.
        balance: tasks whose rare classes are drawn more often: training images are drawn with replacement, in
            proportion to the mean over these tasks of 1 / (images of its class). An image without a label counts
            with the task's mean.
        unlikely: labels that hardly go together, each as ``{task: class, task: class}``; the images that have them are
            counted in a warning, and kept.
        deduplicate: leave out images with the same content: of several in a split the first is kept, training images
            that are in validation or test are left out, and validation images that are in test. All are listed in
            ``duplicates.csv`` in the run's folder.
        kwargs: see :class:`~datamodules.images.Images`.

    Raises:
        InputError: at construction or ``setup``, for whatever a user can put right.
    """

    splits: dict[str, Table]
    loader_type = WindowLoader

    def __init__(
        self,
        root: str,
        tasks: dict[str, Any],
        train: str | dict[str, str] = "train.tsv",
        val: str | dict[str, str] = "dev.tsv",
        test: str | dict[str, str] = TEST,
        integer_labels: dict[str, list[str]] | None = None,
        balance: list[str] | None = None,
        unlikely: list[dict[str, str]] | None = None,
        deduplicate: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.schema = LabelSchema.parse(tasks)
        self.classes = Classes(self.schema, integer_labels or {})
        self.balance = balance or []
        for task in self.balance:
            if task not in self.schema.tasks:
                raise InputError(f"balance: no task '{task}'{did_you_mean(task, self.schema.tasks)}")
        self.unlikely = [self._indices(labels) for labels in unlikely or []]
        self.train, self.val, self.test = train, val, test
        self.deduplicate = deduplicate

    def _indices(self, labels: Mapping[str, str]) -> dict[str, int]:
        """Labels by name as class indices by task."""
        found = {}
        for task, name in labels.items():
            classes = self.schema.subset([task]).tasks[task].classes
            if name not in classes:
                raise InputError(f"unlikely: {task} has no class '{name}'{did_you_mean(name, classes)}")
            found[task] = classes.index(name)
        return found

    @property
    def class_counts(self) -> dict[str, list[int]]:
        """How many training images are labelled with each class, by task; after ``setup``."""
        labels = self.splits["train"].labels()
        return {task: _count(labels[:, i], len(of)) for i, (task, of) in enumerate(self.schema.tasks.items())}

    def read_splits(self, root: Path) -> dict[str, Table]:
        """Reads the tables; leaves duplicates out where that is asked for."""
        tables = {"train": read_table(root, self.train, self.classes), "val": read_table(root, self.val, self.classes)}
        if self.test != TEST or (root / TEST).exists():
            tables["test"] = read_table(root, self.test, self.classes)
        for split, table in tables.items():
            if table.repeated:
                warnings.warn(
                    f"data.{split}: {table.repeated} rows list an image that was listed before, which is kept once",
                    stacklevel=2,
                )
        if self.deduplicate:
            tables = self._without_duplicates(tables)
        for split, table in tables.items():
            self._check_labels(split, table)
        tables.setdefault("test", tables["val"])
        return tables

    def _without_duplicates(self, tables: Mapping[str, Table]) -> dict[str, Table]:
        kept, dropped = drop_duplicates(tables)
        if dropped:
            listed = ""
            if self.run_folder is not None:
                file = self.run_folder / "duplicates.csv"
                listed = f", listed in {file}"
                if self.processes()[1] == 0:
                    write_table(file, [("path", "row", "split", "same_as"), *dropped])
            warnings.warn(f"{len(dropped)} images with the content of another were left out{listed}", stacklevel=2)
        if empty := [split for split, table in kept.items() if not len(table)]:
            raise InputError(f"data.{empty[0]}: all images are in other splits too, so deduplicate leaves none")
        return kept

    def _check_labels(self, split: str, table: Table) -> None:
        labelled = (table.labels() != MISSING).any(axis=0)
        for task in [task for task, some in zip(self.schema.names, labelled, strict=True) if not some]:
            message = f"data.{split}: no image has a label for the task {task}"
            if split == "train":
                raise InputError(f"{message} ({table.origins[0].file})")
            warnings.warn(message, stacklevel=2)
        if not labelled.any():
            raise InputError(f"data.{split}: no image has any label ({table.origins[0].file})")
        for combination in self.unlikely:
            columns = [self.schema.names.index(task) for task in combination]
            number = int((table.labels()[:, columns] == list(combination.values())).all(axis=1).sum())
            if number:
                words = " and ".join(
                    f"{task} '{self.schema.tasks[task].classes[index]}'" for task, index in combination.items()
                )
                warnings.warn(f"data.{split}: {number} images are labelled {words}", stacklevel=2)

    def collate(self, split: str) -> MultitaskCollate:
        """Batches with the labels of all tasks."""
        return MultitaskCollate(self.splits[split], self.preprocessing.size)

    def train_sampler(self, dataset: FileDataset) -> TrainSampler:
        """Each image once, or drawn by weight where classes are to be balanced."""
        weights = None
        if self.balance:
            labels = self.splits["train"].labels()
            columns = [labels[:, self.schema.names.index(task)] for task in self.balance]
            weights = np.mean([_inverse_frequencies(column) for column in columns], axis=0)
        return TrainSampler(dataset, *self.processes(), seed=self.seed, weights=weights)


def _count(labels: NDArray[np.int64], classes: int) -> list[int]:
    counts: list[int] = np.bincount(labels[labels != MISSING], minlength=classes).tolist()
    return counts


def _inverse_frequencies(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / (images of the class) for each label, the mean of that for a missing one."""
    given = labels != MISSING
    weights = np.empty(len(labels))
    weights[given] = 1 / np.bincount(labels[given])[labels[given]]
    weights[~given] = weights[given].mean()
    return weights


Dropped = tuple[str, str, str, str]


def drop_duplicates(tables: Mapping[str, Table]) -> tuple[dict[str, Table], list[Dropped]]:
    """The tables without images whose bytes are in a later table, or earlier in their own.

    Args:
        tables: in the order in which they give images up: train, val, test. Files that cannot be read are kept.

    Returns:
        The tables, and of every image that was left out (path, row, split, path of the one it equals).
    """
    digests = _digests([path for table in tables.values() for path in table.paths])
    owners: dict[bytes, str] = {}
    kept: dict[str, Table] = {}
    dropped: list[Dropped] = []
    for split, table in reversed([*tables.items()]):
        indices = []
        for i, path in enumerate(table.paths):
            digest = digests.get(path)
            if digest in owners:
                dropped.append((path, str(table.origins[i]), split, owners[digest]))
                continue
            indices.append(i)
            if digest is not None:
                owners[digest] = path
        kept[split] = table.subset(indices)
    return {split: kept[split] for split in tables}, dropped


def _digests(paths: Sequence[str]) -> dict[str, bytes]:
    """Hashes of the contents of files that share their size with another; the others cannot have a duplicate."""
    sizes: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        try:
            sizes[Path(path).stat().st_size].append(path)
        except OSError:
            continue
    digests = {}
    for group in sizes.values():
        if len(group) > 1:
            for path in dict.fromkeys(group):
                try:
                    with Path(path).open("rb") as stream:
                        digests[path] = hashlib.file_digest(stream, "sha256").digest()
                except OSError:
                    continue
    return digests
