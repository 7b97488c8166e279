"""Labelled pictures of one domain and unlabelled pictures of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.builtin import resolve_root
from datamodules.domain_classes import number_classes, read_order
from datamodules.domain_listing import read_domain
from datamodules.domain_reading import DomainReader, FeatureReader, OneView, PictureReader, StepReader, Thumbnails
from datamodules.domain_sampling import Groups, Rows, StepSampler, Whole
from datamodules.domain_splits import Setting, check_split, split_classes
from datamodules.feature_cache import FeatureCache
from datamodules.feature_store import Entry, FeatureStore
from datamodules.files import one_thread
from datamodules.images import ImageDataset, Images
from datamodules.listing import Listing
from datamodules.sampling import EvalLoader, EvalSampler, ResumableLoader
from datamodules.transforms import eval_transform
from vision.batches import DomainImages
from vision.errors import InputError

BULK = 4096
"""Rows of a batch of cached features in evaluation."""


class Domains(Images):
    """Labelled source pictures and unlabelled target pictures, some of whose classes the domains may not share.

    A training batch is a step (:class:`~vision.batches.DomainBatch`): source pictures, target pictures, and pictures
    drawn by the groups that a task has set with :meth:`regroup`. All other loaders give
    :class:`~vision.batches.DomainImages` in the evaluation's transform. Labels of the target are for evaluation alone.
    Image size, mean, standard deviation, interpolation and crop are the network's own (the task's ``preprocessing``)
    unless given here.

    A domain is a folder with one folder a class (Office-31's ``images`` in between is passed through); or a ``.txt``
    list with lines ``path label`` (the label, a number or a name, stands behind the last blank), or a ``.csv``/``.tsv``
    table with the columns ``path`` and ``label``. The target may do without labels: a folder with pictures in it, or a
    list of paths. Paths may have the prefixes of the lists of DCC, UniOT, uniood and GLC, whatever the copy on the
    disk has. Files that a list has and the disk has not count as unreadable, except the list's first, which must be
    there.

    Args:
        root: folder of the data, or ``builtin:NAME``.
        source: folder or list of the source, below ``root`` or absolute.
        target: the same of the target.
        target_test: other target pictures to validate and test with. By default those of ``target``.
        setting: what is known beforehand: in ``unida`` both domains may have classes of their own, in ``osda`` the
            target, in ``pda`` the source, and in ``closed`` neither.
        split: for benchmarks, which classes of fully labelled data take part: [common, source-private, target-private]
            numbers of classes, in the order of the classes; or ``office31``, ``officehome``, ``visda`` or
            ``domainnet`` for the published split of that data set in that setting. By default all source classes are
            known, and labels of the target's that the source does not have are private.
        class_order: what the numbers of classes are: a file (below ``root`` or absolute) with a name a line, or a
            published order: ``office31``, ``officehome_dcc``, ``officehome_uniot``, ``visda``, ``domainnet``. By
            default that of the data set that ``split`` names; else names are sorted without regard to case, and
            numbers of lists are taken as they are.
        shuffle_classes: seed of an order of the classes that is drawn before the split is made.
        batch_size: pictures of either domain a step and process; pictures a batch in evaluation.
        groups: at most so many pairs, and so many clusters, a step.
        per_group: pictures of a pair and domain, and of a cluster.
        epoch_steps: optimizer steps an epoch.
        balanced: all source classes are drawn equally often, however many pictures they have.
        cache: folder for the features of the task's frozen network, with the folders ``source``, ``target`` and
            ``target_test``. They are made at the first use, of all pictures of a domain in the evaluation's transform,
            and take the place of the pictures everywhere; they belong to this network, this preprocessing and these
            files, and serve any split.
        thumbnails: side in pixels of a picture's thumbnail, which a decoder is to draw: the whole picture, squashed. 0
            for none. With ``cache`` they are in folders of their own beside the features, as ``source_thumbnails``.
        scale: see :class:`~datamodules.images.Images`; by default the training crop has the evaluation's scale.
        kwargs: see :class:`~datamodules.images.Images`.

    Raises:
        InputError: at construction, ``setup`` or when batches are asked for, for whatever a user can put right.
    """

    splits: dict[str, Listing]

    def __init__(
        self,
        root: str,
        source: str = "source",
        target: str = "target",
        target_test: str | None = None,
        setting: Setting = "unida",
        split: str | list[int] | None = None,
        class_order: str | None = None,
        shuffle_classes: int | None = None,
        batch_size: int = 36,
        groups: int = 10,
        per_group: int = 3,
        epoch_steps: int = 200,
        balanced: bool = True,
        cache: str | None = None,
        thumbnails: int = 0,
        scale: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, batch_size=batch_size, scale=scale, **kwargs)
        for name, number, least in (
            ("seed", self.seed, 0),
            ("shuffle_classes", shuffle_classes, 0),
            ("groups", groups, 1),
            ("per_group", per_group, 1),
            ("epoch_steps", epoch_steps, 1),
            ("thumbnails", thumbnails, 0),
        ):
            if number is not None and number < least:
                raise InputError(f"{name} must be at least {least}, got {number}")
        check_split(split, setting)
        self.source, self.target, self.target_test = source, target, target_test
        self.setting, self.split, self.class_order, self.shuffle_classes = setting, split, class_order, shuffle_classes
        self.groups, self.per_group, self.epoch_steps, self.balanced = groups, per_group, epoch_steps, balanced
        self.cache, self.thumbnails = cache, thumbnails
        self.class_names: list[str] = []
        """Those that the source has and a network tells apart, the common ones first; after ``setup``."""
        self.target_names: list[str] = []
        """The same, and then those of the target alone: what ``group`` is numbered by in evaluation."""
        self._files: dict[str, tuple[list[str], Rows]] = {}
        self._stores: dict[str, tuple[FeatureStore, FeatureStore | None]] = {}
        self._assigned: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------------------- for a task
    @property
    def rejects(self) -> bool:
        """Whether the target may have pictures of no class of the source."""
        return self.setting in ("unida", "osda")

    @property
    def sizes(self) -> dict[str, int]:
        """How many pictures ``source`` and ``target`` have; after ``setup``."""
        return {"source": len(self.splits["train"]), "target": len(self.splits["target"])}

    @property
    def source_classes(self) -> Tensor:
        """Int64 ``(source,)``, the class of each source row; after ``setup``."""
        return torch.tensor(self.splits["train"].targets)

    @property
    def grouping(self) -> int:
        """How many times groups have been set."""
        return int(self._assigned.get("number", 0))

    def regroup(self, source_groups: ArrayLike, target_groups: ArrayLike, clusters: ArrayLike) -> None:
        """Sets the groups of which the steps to come have pictures; steps that are being made already keep theirs.

        They are part of the module's state, so a resumed training has them. All processes have to set the same.

        Args:
            source_groups: int64 ``(source,)``, the pair of a source class and a target cluster that each source row
                belongs to; -1 for none. So for the others.
            target_groups: int64 ``(target,)``, the same pairs of the target rows.
            clusters: int64 ``(target,)``, the cluster of each target row.
        """
        given = {"source": source_groups, "target": target_groups, "clusters": clusters}
        tensors = {name: torch.as_tensor(array).to(torch.int32) for name, array in given.items()}
        self._assigned = {**tensors, "number": self.grouping + 1}
        self._hand_over_groups()

    def _hand_over_groups(self) -> None:
        if not self._assigned:
            return
        arrays = [self._assigned[name].numpy() for name in ("source", "target", "clusters")]
        expected = [self.sizes[domain] for domain in ("source", "target", "target")]
        if [len(array) for array in arrays] != expected:
            raise InputError(
                f"data: groups are of {len(arrays[0])} source and {len(arrays[1])} target pictures, and the data have "
                f"{expected[0]} and {expected[1]}: a training goes on with the data that it was begun with"
            )
        if self._train_loader is not None:
            assert isinstance(self._train_loader.sampler, StepSampler)
            self._train_loader.sampler.groups = Groups.of(arrays[0], arrays[1], arrays[2], self.grouping)

    def state_dict(self) -> dict[str, Any]:
        """Where in the epoch the training is, and the groups."""
        return {**super().state_dict(), "groups": self._assigned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The training goes on at the step at which it was, with the groups that it had."""
        super().load_state_dict({"batches": state_dict["batches"]})
        self._assigned = state_dict.get("groups", {})
        if self._train_loader is not None:
            self._hand_over_groups()

    # ----------------------------------------------------------------------------------------------------- listing
    def setup(self, stage: str | None = None) -> None:
        """Lists the pictures and settles the classes and the preprocessing."""
        super().setup(stage)
        self._stores = {}  # another task may ask this time

    def read_splits(self, root: Path) -> dict[str, Listing]:
        """``train`` (the source), ``target``, whose labels are all -1, and ``val`` and ``test`` with the target's."""
        domains = {
            "source": read_domain(root, self.source, "source"),
            "target": read_domain(root, self.target, "target"),
        }
        if self.target_test is not None:
            domains["target_test"] = read_domain(root, self.target_test, "target_test")
        if domains["source"].labels is None:
            raise InputError(f"data.source: {domains['source'].place} has no labels, which the source needs")
        order = read_order(self.class_order, self.split, root)
        names, labels = number_classes([*domains.values()], order)
        if self.shuffle_classes is not None:
            drawn = np.random.default_rng(self.shuffle_classes).permutation(len(names))
            names = [names[number] for number in drawn]
            labels = [of if of is None else np.argsort(drawn)[of] for of in labels]
        assert labels[0] is not None
        of = split_classes(self.split, self.setting, names, labels[0], labels[1:])
        known = of.common + of.source_private
        self.class_names = [names[number] for number in known]
        self.target_names = [names[number] for number in known + of.target_private]
        numbers = np.full(len(names), -1)
        numbers[known + of.target_private] = np.arange(len(self.target_names))
        listed: dict[str, Listing] = {}
        for (domain, pictures), classes in zip(domains.items(), labels, strict=True):
            taken = known if domain == "source" else of.common + of.target_private
            rows, targets = np.arange(len(pictures)), np.full(len(pictures), -1)
            if classes is not None:
                rows = np.flatnonzero(np.isin(classes, taken))
                targets = numbers[classes[rows]]
            if not len(rows):
                raise InputError(f"{pictures.place}: the split leaves no pictures of the {domain.replace('_', ' ')}")
            self._files[domain] = pictures.paths, rows
            listed[domain] = Listing([pictures.paths[row] for row in rows], targets.tolist(), self.target_names)
        tested = listed.get("target_test", listed["target"])
        # What training is given has no labels that it could look at.
        hidden = Listing(listed["target"].paths, [-1] * len(listed["target"]), [])
        return {"train": listed["source"], "target": hidden, "val": tested, "test": tested}

    # ----------------------------------------------------------------------------------------------------- batches
    def collate(self, split: str) -> Callable[[Sequence[Any]], DomainImages]:
        """What makes batches of a split's rows, in the evaluation's transform or of its features."""
        return self._reader(split)

    def train_dataloader(self) -> ResumableLoader:
        """Steps, each a :class:`~vision.batches.DomainBatch`; resumes in mid-epoch."""
        reader = StepReader(self._reader("train", augment=True), self._reader("target", augment=True))
        sampler = StepSampler(
            self.splits["train"].targets if self.balanced else None,
            (self.sizes["source"], self.sizes["target"]),
            self.batch_size,
            self.groups,
            self.per_group,
            self.epoch_steps,
            *self.processes(),
            seed=self.seed,
        )
        self._train_loader = ResumableLoader(
            Whole(len(sampler)), self.trainer, sampler=sampler, batch_size=1, **self._options(reader)
        )
        self._train_loader.load_state_dict(self._resumed)
        self._hand_over_groups()
        return self._train_loader

    def domain_loader(self, domain: Literal["source", "target"]) -> DataLoader[DomainImages]:
        """A whole domain in the evaluation's transform, each row once over all processes; ``index`` says which.

        ``group`` is the class of source rows and -1 of target rows. Rows that cannot be read are left out; whoever
        takes the batches past Lightning gives their ``unreadable`` to :meth:`count_unreadable`.
        """
        return self._in_rows({"source": "train", "target": "target"}[domain])

    def _eval_dataloader(self, split: str) -> DataLoader[Any]:
        return self._in_rows(split)

    def _in_rows(self, split: str) -> DataLoader[Any]:
        reader = self._reader(split)
        rows = Whole(len(self.splits[split]))
        return EvalLoader(
            rows,
            sampler=EvalSampler(rows, *self.processes()),
            batch_size=self.batch_size if reader.opens_files else BULK,
            generator=torch.Generator(),  # or it would draw from the model's random numbers
            **self._options(reader),
        )

    def _options(self, reader: DomainReader | StepReader) -> dict[str, Any]:
        workers = self.num_workers if reader.opens_files else 0
        return {
            "collate_fn": reader,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "worker_init_fn": one_thread,
            "pin_memory": torch.cuda.is_available(),
        }

    def _reader(self, split: str, augment: bool = False) -> DomainReader:
        listing = self.splits[split]
        if self.cache is not None:
            tested = "target" if self.target_test is None else "target_test"
            domain = {"train": "source", "target": "target"}.get(split, tested)
            return FeatureReader(listing, self._files[domain][1], *self._cached(domain))
        transform = self.dataset("train" if augment else "test").transform
        pictures = ImageDataset(listing, transform, self.max_pixels, substitute=augment)
        return PictureReader(pictures, self.preprocessing.size, self.thumbnails)

    def _cached(self, domain: str) -> tuple[FeatureStore, FeatureStore | None]:
        """Features and thumbnails of all pictures of a domain, whether or not the split has them."""
        if domain not in self._stores:
            assert self.cache is not None
            folder, root = Path(self.cache) / domain, resolve_root(self.root)
            paths, _ = self._files[domain]
            listing, files = Listing(paths, [-1] * len(paths), []), [Entry.of(path, root) for path in paths]
            fields: dict[str, Any] = {"max_pixels": self.max_pixels}
            pictures = OneView(listing, eval_transform(self.preprocessing), self.max_pixels, substitute=False)
            of_features = {**fields, "preprocessing": self.preprocessing.as_dict()}
            features = FeatureCache(self, pictures, folder, of_features, files, unit="images").open().store
            thumbnails = None
            if self.thumbnails:
                small = Thumbnails(listing, self.thumbnails, self.max_pixels)
                folder = folder.with_name(f"{domain}_thumbnails")
                thumbnails = (
                    FeatureCache(self, small, folder, fields, files, network=small, unit="thumbnails").open().store
                )
            self._stores[domain] = features, thumbnails
        return self._stores[domain]
