"""Batches of pictures of domains, from files that are decoded or from features that were made of them before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.decoding import UnreadableFileError, read_image
from datamodules.domain_sampling import Picks, Rows, Step
from datamodules.feature_store import DONE, FeatureStore
from datamodules.files import SUBSTITUTES, FileDataset, Listed
from datamodules.images import ImageDataset
from datamodules.sampling import Draw
from datamodules.transforms import apply_seeded
from vision.batches import DomainBatch, DomainImages


def make_thumbnail(image: NDArray[np.uint8], side: int) -> Tensor:
    """uint8 ``(H, W, 3)`` to uint8 ``(3, side, side)``: the whole picture, squashed by area averaging."""
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))


class DomainReader(ABC):
    """Makes batches of the rows of a domain; called with draws, as an evaluation's loader does, it makes one of them.

    Args:
        listing: the rows.
    """

    opens_files: bool
    """Whether there is work that processes of a loader may share."""

    def __init__(self, listing: Listed) -> None:
        self.listing = listing
        self.classes = np.asarray(listing.targets, np.int64)

    @abstractmethod
    def read(self, picks: Picks, substitute: bool) -> DomainImages:
        """The rows that can be read.

        Args:
            picks: the rows.
            substitute: take the next readable file for an unreadable one; not together with groups, to which that file
                need not belong.
        """

    def __call__(self, draws: Sequence[Draw]) -> DomainImages:
        """The rows that can be read of those that are drawn; others are left out."""
        return self.read(Picks(*np.array(draws, np.int64).reshape(-1, 2).T), substitute=False)


class PictureReader(DomainReader):
    """Pictures that are decoded and transformed.

    Args:
        pictures: of the domain.
        size: (height, width) after the transform.
        side: of thumbnails, 0 for none.
    """

    opens_files = True

    def __init__(self, pictures: ImageDataset, size: tuple[int, int], side: int) -> None:
        super().__init__(pictures.listing)
        self.pictures, self.size, self.side = pictures, size, side

    def read(self, picks: Picks, substitute: bool) -> DomainImages:
        """The pictures ``(B, 3, H, W)``; thumbnails are of the whole, whatever the transform cuts off."""
        media, thumbnails = [torch.zeros(0, 3, *self.size)], [torch.zeros(0, 3, self.side, self.side).byte()]
        index, groups, unreadable = list[int](), list[int](), list[tuple[str, str]]()
        for number, (first, seed) in enumerate(zip(picks.rows.tolist(), picks.seeds.tolist(), strict=True)):
            for row in islice(self.pictures._one_a_file(first), 1 + SUBSTITUTES if substitute else 1):
                try:
                    image = read_image(self.listing.paths[row], self.pictures.max_pixels)
                except UnreadableFileError as error:
                    unreadable.append((self.listing.paths[row], error.reason))
                    continue
                media.append(apply_seeded(self.pictures.transform, image, seed)[None])
                if self.side:
                    thumbnails.append(make_thumbnail(image, self.side)[None])
                index.append(row)
                groups.append(int(self.classes[row] if picks.groups is None else picks.groups[number]))
                break
        return {
            "media": torch.cat(media),
            "index": torch.tensor(index, dtype=torch.long),
            "group": torch.tensor(groups, dtype=torch.long),
            "thumbnail": torch.cat(thumbnails) if self.side else torch.zeros(len(index), 0, dtype=torch.uint8),
            "path": [self.listing.paths[row] for row in index],
            "unreadable": unreadable,
        }


class FeatureReader(DomainReader):
    """Features that were made before, all rows of a batch taken from the array at once.

    Args:
        listing: the rows.
        places: ``(rows,)``, where in the stores each is.
        features: of which a row is ``(1, D)``.
        thumbnails: of which a row is ``(1, 3, side, side)``; None for none.
    """

    opens_files = False

    def __init__(self, listing: Listed, places: Rows, features: FeatureStore, thumbnails: FeatureStore | None) -> None:
        super().__init__(listing)
        self.places, self.features, self.thumbnails = places, features, thumbnails
        self.stores = [features] if thumbnails is None else [features, thumbnails]
        self.readable = np.all([store.status[places] == DONE for store in self.stores], axis=0)
        count = len(places)
        # Of each row the first at or behind it that can be read, the first row following the last.
        twice = np.where(np.tile(self.readable, 2), np.arange(2 * count), 2 * count)
        self.instead = np.minimum.accumulate(twice[::-1])[::-1][:count] % count

    def read(self, picks: Picks, substitute: bool) -> DomainImages:
        """The features ``(B, D)``."""
        good = self.readable[picks.rows]
        rows = self.instead[picks.rows] if substitute and self.readable.any() else picks.rows[good]
        given = None if picks.groups is None else picks.groups[good]
        places = self.places[rows]
        thumbnail = np.zeros((len(rows), 0), np.uint8)
        if self.thumbnails is not None:
            thumbnail = np.asarray(self.thumbnails.array[places][:, 0])
        return {
            "media": torch.from_numpy(np.asarray(self.features.array[places][:, 0], np.float32)),
            "index": torch.from_numpy(rows),
            "group": torch.from_numpy(self.classes[rows] if given is None else given),
            "thumbnail": torch.from_numpy(thumbnail),
            "path": [self.listing.paths[row] for row in rows.tolist()],
            "unreadable": [(self.listing.paths[row], self._reason(row)) for row in picks.rows[~good].tolist()],
        }

    def _reason(self, row: int) -> str:
        place = int(self.places[row])
        return next((store.reasons[place] for store in self.stores if place in store.reasons), "cannot be read")


class StepReader:
    """Makes the batch of a step.

    Args:
        source: reads the source.
        target: reads the target, of which it knows no labels.
    """

    def __init__(self, source: DomainReader, target: DomainReader) -> None:
        self.source, self.target = source, target
        self.opens_files = source.opens_files

    def __call__(self, steps: Sequence[Step]) -> DomainBatch:
        """The one step that is asked for."""
        (step,) = steps
        batch: DomainBatch = {
            "source": self.source.read(step.source, substitute=True),
            "target": self.target.read(step.target, substitute=True),
            "aligned_source": self.source.read(step.aligned_source, substitute=False),
            "aligned_target": self.target.read(step.aligned_target, substitute=False),
            "clustered": self.target.read(step.clustered, substitute=False),
            "grouping": step.grouping,
            "unreadable": [],
        }
        parts = (batch["source"], batch["target"], batch["aligned_source"], batch["aligned_target"], batch["clustered"])
        batch["unreadable"] += [entry for part in parts for entry in part["unreadable"]]
        return batch


class OneView(ImageDataset):
    """Pictures as a cache of features takes files: ``(1, 3, H, W)``, of one view."""

    def load(self, index: int, seed: int) -> Tensor:
        """The picture as the transform gives it."""
        return super().load(index, seed)[None]


class Thumbnails(FileDataset):
    """Thumbnails, uint8 ``(1, 3, side, side)``; and the network that a cache of them goes through.

    Args:
        listing: the files.
        side: in pixels.
        max_pixels: larger images count as unreadable.
    """

    def __init__(self, listing: Listed, side: int, max_pixels: int) -> None:
        super().__init__(listing, substitute=False)
        self.side, self.max_pixels = side, max_pixels

    def load(self, index: int, seed: int) -> Tensor:
        """The thumbnail of a file."""
        return make_thumbnail(read_image(self.listing.paths[index], self.max_pixels), self.side)[None]

    def frozen_features(self, media: Tensor) -> Tensor:
        """They are kept as they are."""
        return media

    def cache_fields(self) -> Mapping[str, Any]:
        """Their size."""
        return {"thumbnail": self.side, "dtype": "uint8"}
