"""Videos of actions, from class folders or from the lists that data sets come with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import albumentations as A
import numpy as np

from datamodules.builtin import resolve_root
from datamodules.feature_cache import CachedFeatures, FeatureCache, FeatureCollate
from datamodules.feature_store import Entry, key_of
from datamodules.files import FileDataset, Files
from datamodules.video_cache import load_listing, save_listing
from datamodules.video_dataset import EvalVideos, Sampling, TrainVideos, VideoCollate, VideoReader
from datamodules.video_decoding import DECODERS, fastest_decoder
from datamodules.video_listing import FOLDERS, LAYOUTS, VideoListing, flip_table, read_split, split_off
from datamodules.video_transforms import Augmentation, EvalViews, TrainView
from vision.errors import InputError, did_you_mean, shorten
from vision.labels import MISSING, LabelSchema

SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")


class VideoFolder(Files):
    """Videos in one folder a class, or in the lists of Kinetics, Something-Something, UCF101, HMDB51 and EPIC-KITCHENS.

    Gives clips of ``frames`` frames as :class:`~vision.batches.VideoBatch`: one view of each video in training,
    ``windows`` x ``crops`` in evaluation. With ``cache`` a task's frozen network is run once over the videos, and its
    features come in their place (:class:`~vision.batches.FeatureBatch`). Image size, mean, standard deviation,
    interpolation and crop are the network's own (the task's ``preprocessing``) unless given here.

    ``batch_size`` counts views: an evaluation's batch has ``batch_size`` / (``windows`` x ``crops``) videos, rounded
    down, and one at least.

    Videos that a list has and the disk has not are left out: they are counted in a warning and listed in
    ``unreadable.csv``, and do not count for ``max_unreadable``, since most copies of the data sets lack some.

    Args:
        root: folder of the data, or ``builtin:NAME``.
        layout: ``folders``, one a class with video files or folders of frames at any depth, or the kind of list:
            ``kinetics``, ``ssv2``, ``ucf101``, ``hmdb51``, ``epic`` or ``list`` (a row is ``path label`` or
            ``path label start end``).
        train: folder or list below ``root`` of the training videos. Of class folders by default ``train``; where
            ``root`` has no such folder, its own folders are the classes. Classes are those of the training videos.
        val: the same for validation. By default the folder ``val`` where it exists, else a split of the training.
        test: the same for testing. By default the folder ``test`` where it exists, else the validation videos.
        videos: folder below ``root`` that the listed files lie in.
        val_fraction: share of each class that is split off for validation where there is none.
        frames: of a clip.
        stride: from one frame of a clip to the next.
        sampling: ``dense`` takes frames at that stride, from a random one on in training; a shorter video is repeated.
            ``uniform`` spreads them over the whole video: in training a random frame of each of ``frames`` equal
            parts, in evaluation frames at equal distances from each other and from the ends; in a shorter video
            frames stand still. Either is warned of once.
        windows: clips of a video in evaluation, from its beginning to its end; one is in the middle.
        crops: of each clip in evaluation: 1 in the centre, or 3 along the longer side.
        test_windows: windows of a test, by default as many as of a validation; ViViT's papers have 4.
        test_crops: crops of a test, by default as many as of a validation; ViViT's papers have 3.
        decoder: ``opencv``, ``pyav``, ``torchcodec``, or ``auto`` for the one that reads these files fastest.
        augment: off, training clips are made as those of an evaluation with one view.
        scale_jitter: range of the factors by which height and width are each enlarged before the crop is taken.
        scale: range of the share of the area that a training crop keeps, in the place of ``scale_jitter``.
        ratio: range of the aspect ratio of such a crop.
        horizontal_flip: probability. Classes that speak of left and right, or of a turn, are exchanged with the one
            that they become; where there is none, the video is never mirrored.
        colour: brightness, contrast, saturation and hue are varied (of 80 %), and colours taken away (of 10 %).
        rand_augment: [layers, magnitude] of RandAugment without the operations that move the picture; not together
            with ``colour``.
        augmentations: further albumentations transforms, applied last, to all frames of a clip alike.
        cache: folder for the features of the task's frozen network, one a split below it. They are made at the first
            use and belong to this network, these arguments and these files; the command says how large they are, and
            goes on where it was interrupted. Where they are complete, ``root`` need not be there any more.
        cache_draws: augmented clips of each training video in the cache, of which each epoch takes any one.
        kwargs: see :class:`~datamodules.files.Files`.

    Raises:
        InputError: at construction, ``setup`` or when batches are asked for, for whatever a user can put right.
    """

    kind = "videos"
    splits: Mapping[str, VideoListing]

    def __init__(
        self,
        root: str,
        layout: str = FOLDERS,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        videos: str = ".",
        val_fraction: float = 0.1,
        frames: int = 32,
        stride: int = 2,
        sampling: Literal["dense", "uniform"] = "dense",
        windows: int = 1,
        crops: int = 1,
        test_windows: int | None = None,
        test_crops: int | None = None,
        decoder: str = "opencv",
        augment: bool = True,
        scale_jitter: tuple[float, float] | None = (0.9, 1.33),
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] = (0.75, 4 / 3),
        horizontal_flip: float = 0.5,
        colour: bool = False,
        rand_augment: tuple[int, int] | None = None,
        augmentations: list[A.BasicTransform] | None = None,
        cache: str | None = None,
        cache_draws: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        for name, value, known in (("layout", layout, LAYOUTS), ("decoder", decoder, (*DECODERS, "auto"))):
            if value not in known:
                raise InputError(
                    f"{name}: no {name} '{value}'{did_you_mean(value, known)}; there are {', '.join(known)}"
                )
        if train is None and layout != FOLDERS:
            raise InputError(f"train: the layout {layout} needs the list of the training videos")
        if not 0 < val_fraction < 1:
            raise InputError(f"val_fraction must be in (0, 1), got {val_fraction}")
        self.layout, self.videos, self.val_fraction, self.decoder = layout, videos, val_fraction, decoder
        self.train, self.val, self.test = train, val, test
        self.sampling = Sampling(frames, stride, sampling)
        val_views, test_views = (windows, crops), (test_windows or windows, test_crops or crops)
        self.views = {"train": (1, 1), "val": val_views, "test": test_views}
        for number, of in self.views.values():
            if number < 1 or of not in (1, 3):
                raise InputError(f"windows must be at least 1 and crops 1 or 3, got {number} and {of}")
            if number > 1 and sampling == "uniform":
                raise InputError(f"windows must be 1 with sampling uniform, which takes the whole video; got {number}")
        self.augmentation = Augmentation(
            scale_jitter, scale, ratio, horizontal_flip, colour, rand_augment, augmentations or []
        )
        if cache_draws < 1 or (cache_draws > 1 and not augment):
            raise InputError(f"cache_draws must be at least 1, and 1 with augment off, got {cache_draws}")
        self.augment, self.cache, self.cache_draws = augment, cache, cache_draws
        self._reader: VideoReader | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}

    # ------------------------------------------------------------------------------------------------- for a task
    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.sampling.frames

    @property
    def stride(self) -> int | None:
        """From one frame of a clip to the next; None where clips are spread over the whole video."""
        return self.sampling.stride if self.sampling.kind == "dense" else None

    @property
    def schema(self) -> LabelSchema:
        """The label sets and their classes; after ``setup``."""
        return next(iter(self.splits.values())).schema

    @property
    def class_names(self) -> list[str]:
        """The classes, where there is one label set; after ``setup``."""
        if len(self.schema.names) > 1:
            raise AttributeError(f"the videos have {len(self.schema.names)} label sets, see schema")
        return list(self.schema.tasks[self.schema.names[0]].classes)

    @property
    def class_counts(self) -> dict[str, list[int]]:
        """How many training videos are labelled with each class, by label set; after ``setup``."""
        labels = self.splits["train"].labels
        return {
            name: np.bincount(column[column != MISSING], minlength=len(of)).tolist()
            for (name, of), column in zip(self.schema.tasks.items(), labels.T, strict=True)
        }

    # ----------------------------------------------------------------------------------------------------- listing
    def setup(self, stage: str | None = None) -> None:
        """Lists the videos of all splits and settles the preprocessing; counts those that are not there."""
        listed = bool(self.splits)
        root = resolve_root(self.root)
        if self.cache is not None and not listed and not root.is_dir():
            found = {split: load_listing(Path(self.cache) / split, root) for split in SPLITS}
            self.splits = {split: listing for split, listing in found.items() if listing is not None}
        super().setup(stage)
        if not listed and self.processes()[1] == 0 and (missing := self.missing()):
            examples = [f"{path} ({reason})" for path, reason in missing.items()]
            warnings.warn(f"{len(missing)} videos are left out: {shorten(examples, 3)}", stacklevel=2)

    def missing(self) -> dict[str, str]:
        """Videos that are listed and not there, and the row that lists them."""
        return {path: reason for listing in self.splits.values() for path, reason in listing.missing.items()}

    def read_splits(self, root: Path) -> dict[str, VideoListing]:
        """Reads folders or lists; splits validation videos off where there are none."""
        folders = self.layout == FOLDERS
        train_at = self.train or ("train" if (root / "train").is_dir() else ".")
        train = read_split(self.layout, root, self.videos, train_at, "train")
        places: dict[str, str | None] = {"val": self.val, "test": self.test}
        for split in places:
            if places[split] is None and folders and (root / split).is_dir():
                places[split] = split
        schema = train.schema
        held = read_split(self.layout, root, self.videos, places["val"], "val", schema) if places["val"] else None
        if held is None:
            train, held = split_off(train, self.val_fraction, self.seed)
        tested = read_split(self.layout, root, self.videos, places["test"], "test", schema) if places["test"] else held
        return {"train": train, "val": held, "test": tested}

    # ----------------------------------------------------------------------------------------------------- batches
    def dataset(self, split: str) -> FileDataset:
        """The clips of a split; with ``cache`` their features, which are made where they are missing."""
        if split not in self.splits:
            raise InputError(f"data.root: no such folder: {self.root} (and {self.cache} has no features for {split})")
        listing = self.splits[split]
        reader, (windows, crops) = self._read_with(listing), self.views[split]
        self._shapes[split] = (windows * crops, self.frames, 3, *self.preprocessing.size)
        dataset: FileDataset
        if split == "train" and self.augment:
            dataset = TrainVideos(listing, reader, TrainView(self.preprocessing, self.augmentation))
        else:
            views = EvalViews(self.preprocessing, crops)
            dataset = EvalVideos(listing, reader, views, windows, substitute=split == "train")
        return dataset if self.cache is None else self._cached(split, listing, dataset, Path(self.cache) / split)

    def files_a_batch(self, split: str) -> int:
        """As many as have ``batch_size`` views, at least one: loaders keep several batches of pixels in memory."""
        windows, crops = self.views[split]
        return max(1, self.batch_size // (windows * crops))

    def _read_with(self, listing: VideoListing) -> VideoReader:
        if self._reader is None:
            decoder = fastest_decoder(listing.paths) if self.decoder == "auto" else self.decoder
            self._reader = VideoReader(self.sampling, decoder, self.max_pixels)
        return self._reader

    def _cached(self, split: str, listing: VideoListing, dataset: FileDataset, folder: Path) -> CachedFeatures:
        root = resolve_root(self.root)
        files = [
            Entry.of(path, root, "" if span is None else str(span))
            for path, span in zip(listing.paths, listing.spans, strict=True)
        ]
        draws = self.cache_draws if split == "train" else 1
        cached = FeatureCache(self, dataset, folder, self._fields(split), files, draws).open()
        self._shapes[split] = cached.store.shape
        if self.processes()[1] == 0:
            save_listing(folder, listing, root)
        return cached

    def _fields(self, split: str) -> dict[str, Any]:
        """What the clips of a split depend on, beside the files."""
        windows, crops = self.views[split]
        fields: dict[str, Any] = {
            "layout": self.layout,
            "sampling": self.sampling.kind,
            "frames": self.sampling.frames,
            "stride": self.sampling.stride,
            "windows": windows,
            "crops": crops,
            "decoder": self.decoder,
            "max_pixels": self.max_pixels,
            "preprocessing": self.preprocessing.as_dict(),
        }
        if split == "train":
            fields["augment"] = self.augment
            if self.augment:
                drawn = {name: value for name, value in vars(self.augmentation).items() if name != "augmentations"}
                own = [repr(transform) for transform in self.augmentation.augmentations]
                fields |= {"seed": self.seed, **drawn, "augmentations": own}
            if self.augment and self.augmentation.horizontal_flip > 0:
                # They say which videos may be mirrored, and so which draws are.
                listing = self.splits[split]
                tables = [table.tolist() for table in flip_table(listing.schema)]
                fields["labels"] = key_of({"labels": listing.labels.tolist(), "mirrored": tables})[:16]
        return fields

    def collate(self, split: str) -> VideoCollate | FeatureCollate:
        """Batches of clips, or of features."""
        kind = VideoCollate if self.cache is None else FeatureCollate
        return kind(self._shapes[split], len(self.schema.names))
