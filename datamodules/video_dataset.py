"""Videos of a listing as the views of a network: which frames are taken, and how clips become batches."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.decoding import MAX_PIXELS
from datamodules.files import FileDataset, Sample, stack
from datamodules.video_decoding import UnreadableVideoError, read_frames
from datamodules.video_listing import VideoListing, flip_table
from datamodules.video_sampling import dense_indices, random_start, uniform_clip, window_starts
from datamodules.video_transforms import EvalViews, TrainView
from vision.batches import VideoBatch
from vision.errors import InputError
from vision.labels import MISSING

# What is drawn for a clip has a stream each, so that one choice does not depend on whether another was made. The
# geometry and the colours have the seed itself.
_TIME, _MIRROR = 1, 2


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video become a clip.

    Attributes:
        frames: of a clip.
        stride: from one frame to the next, where they are dense.
        kind: ``dense`` or ``uniform``, as in ``VideoFolder``.

    Raises:
        InputError: a number is not positive, or there is no such kind.
    """

    frames: int = 32
    stride: int = 2
    kind: Literal["dense", "uniform"] = "dense"

    def __post_init__(self) -> None:
        for name, number in (("frames", self.frames), ("stride", self.stride)):
            if number < 1:
                raise InputError(f"{name} must be at least 1, got {number}")
        if self.kind not in ("dense", "uniform"):
            raise InputError(f"sampling must be dense or uniform, got {self.kind}")

    @property
    def needed(self) -> int:
        """Frames that a video must have to give a clip without taking one of them twice."""
        return self.frames if self.kind == "uniform" else (self.frames - 1) * self.stride + 1

    def any_clip(self, count: int, random: np.random.Generator) -> NDArray[np.intp]:
        """A clip of the training: ``(frames,)`` in [0, count), ascending where the video is long enough."""
        if self.kind == "uniform":
            places = (np.arange(self.frames) + random.random(self.frames)) * count / self.frames
            return np.minimum(places.astype(np.intp), count - 1)
        return dense_indices(count, self.frames, self.stride, random_start(count, self.frames, self.stride, random))

    def clips(self, count: int, windows: int) -> NDArray[np.intp]:
        """The clips of a test, one behind the other: ``(windows * frames,)`` in [0, count)."""
        if self.kind == "uniform":
            return uniform_clip(count, self.frames)
        starts = window_starts(count, self.frames, self.stride, windows)
        return dense_indices(count, self.frames, self.stride, starts).reshape(-1)


class VideoReader:
    """Frames of listed videos; says once that some are too short.

    Args:
        sampling: says how many frames a clip needs.
        decoder: one of ``datamodules.video_decoding.DECODERS``.
        max_pixels: videos with larger frames count as unreadable.
    """

    def __init__(self, sampling: Sampling, decoder: str, max_pixels: int = MAX_PIXELS) -> None:
        self.sampling, self.decoder, self.max_pixels = sampling, decoder, max_pixels
        self._said = multiprocessing.Value("b", 0)  # the processes of a loader share it

    def read(self, listing: VideoListing, index: int, choose: Callable[[int], NDArray[np.intp]]) -> NDArray[np.uint8]:
        """The frames that ``choose`` takes of a listed video: uint8 ``(n, H, W, 3)``.

        Raises:
            UnreadableVideoError: the video cannot be decoded; the reason names the row that lists it.
        """
        path, span = listing.paths[index], listing.spans[index]
        counts: list[int] = []

        def noted(count: int) -> NDArray[np.intp]:
            counts.append(count)
            return choose(count)

        try:
            frames = read_frames(path, noted, span, self.decoder, self.max_pixels)
        except UnreadableVideoError as error:
            origin = listing.origins[index]
            raise UnreadableVideoError(path, f"{error.reason}, {origin}" if origin else error.reason) from error
        if counts[-1] < self.sampling.needed:
            self._say(path, counts[-1])
        return frames

    def _say(self, path: str, count: int) -> None:
        with self._said.get_lock():
            first, self._said.value = not self._said.value, 1
        if first:
            what = "their frames stand still" if self.sampling.kind == "uniform" else "they are repeated"
            needed = f"where a clip needs {self.sampling.needed}"
            warnings.warn(f"{path} has {count} frames, {needed}; some videos are so short: {what}", stacklevel=2)


class EvalVideos(FileDataset):
    """Videos as the views of a test: ``windows`` clips along time, and of each ``views.crops`` crops.

    Args:
        listing: the videos.
        reader: reads them.
        views: makes the crops.
        windows: clips of a video; the crops of the first come first.
        substitute: as in :class:`~datamodules.files.FileDataset`.
    """

    def __init__(
        self, listing: VideoListing, reader: VideoReader, views: EvalViews, windows: int, substitute: bool = False
    ) -> None:
        super().__init__(listing, substitute)
        self.videos, self.reader, self.views, self.windows = listing, reader, views, windows

    def load(self, index: int, seed: int) -> Tensor:
        """uint8 ``(windows * crops, T, 3, H, W)``."""
        sampling = self.reader.sampling
        frames = self.reader.read(self.videos, index, lambda count: sampling.clips(count, self.windows))
        clips = frames.reshape(self.windows, -1, *frames.shape[1:])
        return _tensor(np.concatenate([self.views(clip) for clip in clips]))


class TrainVideos(FileDataset):
    """Videos as augmented clips of the training; unreadable ones are replaced.

    A clip that is mirrored has the classes that its own become in a mirror, and is never mirrored where one of them
    has no such class (:func:`~datamodules.video_listing.flip_table`).

    Args:
        listing: the videos.
        reader: reads them.
        view: makes a view of a clip.
    """

    def __init__(self, listing: VideoListing, reader: VideoReader, view: TrainView) -> None:
        super().__init__(listing, substitute=True)
        self.videos, self.reader, self.view = listing, reader, view
        labels = listing.labels
        self.mirrored = np.full_like(labels, MISSING)
        for column, table in enumerate(flip_table(listing.schema)):
            given = labels[:, column] != MISSING
            self.mirrored[given, column] = table[labels[given, column]]
        self.may_mirror = ((labels == MISSING) | (self.mirrored != MISSING)).all(axis=1)

    def _mirrors(self, index: int, seed: int) -> bool:
        probability = self.view.augmentation.horizontal_flip
        drawn = np.random.default_rng((seed, _MIRROR)).random() < probability
        return bool(drawn and self.may_mirror[index])

    def target(self, index: int, seed: int) -> NDArray[np.int64]:
        """The labels ``(sets,)``, those of the mirrored video where it is mirrored."""
        labels: NDArray[np.int64] = (self.mirrored if self._mirrors(index, seed) else self.videos.labels)[index]
        return labels

    def load(self, index: int, seed: int) -> Tensor:
        """uint8 ``(1, T, 3, H, W)``."""

        def choose(count: int) -> NDArray[np.intp]:
            # A generator of its own for each call: a reader may ask again with another count.
            return self.reader.sampling.any_clip(count, np.random.default_rng((seed, _TIME)))

        frames = self.reader.read(self.videos, index, choose)
        return _tensor(self.view(frames, seed, self._mirrors(index, seed))[None])


def _tensor(views: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(views.transpose(0, 1, 4, 2, 3)))


class VideoCollate:
    """Samples to a :class:`~vision.batches.VideoBatch`.

    Args:
        shape: (V, T, 3, H, W) of a sample, for a batch in which nothing could be read.
        sets: how many label sets there are.
    """

    def __init__(self, shape: Sequence[int], sets: int) -> None:
        self.shape, self.sets = shape, sets

    def __call__(self, samples: Sequence[Sample]) -> VideoBatch:
        """The readable samples as a batch, with what could not be read."""
        read, video = stack(samples, self.shape, torch.uint8)
        labels = np.array([sample.target for sample in read], np.int64).reshape(-1, self.sets)
        return {
            "video": video,
            "labels": torch.from_numpy(labels),
            "path": [sample.path for sample in read],
            "unreadable": [entry for sample in samples for entry in sample.unreadable],
        }
