"""Images of one class each, and streams of them with corruptions: noise, blur, weather and others."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from datamodules.corruption_files import CifarC, ImageNetC
from datamodules.decoding import UnreadableImageError, read_image
from datamodules.image_folder import ImageFolder
from datamodules.listing import Listing
from datamodules.stream import RUNS, VALIDATION, Corruptor, Pictures, Stream, stored_split
from datamodules.stream_order import Items, Order, Stretch, class_runs
from vision.errors import InputError
from vision.preprocessing import Preprocessing


class LiveImages(Pictures):
    """Images that are corrupted as they are loaded.

    Args:
        listing: the clean ones.
        preprocessing: of the network.
        max_pixels: larger images count as unreadable.
        corruptor: corrupts them once they have the network's size.
    """

    def __init__(self, listing: Listing, preprocessing: Preprocessing, max_pixels: int, corruptor: Corruptor) -> None:
        super().__init__(listing.targets, preprocessing)
        self.paths, self.max_pixels, self.corruptor = listing.paths, max_pixels, corruptor

    def path(self, index: int, corruption: str, severity: int) -> str:
        """The file of the clean image."""
        return self.paths[index]

    def load(self, index: int, corruption: str, severity: int) -> Tensor:
        """An image, resized and cropped as in evaluation before it is corrupted."""
        pixels = self.to_size(image=read_image(self.paths[index], self.max_pixels))["image"]
        image: Tensor = self.to_tensor(image=self.corruptor(pixels, index, corruption, severity))["image"]
        return image


class ArrayImages(Pictures):
    """Images in the layout of CIFAR-10-C.

    Args:
        arrays: the folder.
        preprocessing: of the network.
        class_names: of the training images.

    Raises:
        InputError: the images have another size than the network takes, or other classes.
    """

    def __init__(self, arrays: CifarC, preprocessing: Preprocessing, class_names: list[str]) -> None:
        targets = arrays.labels(1).tolist()
        super().__init__(targets, preprocessing)
        self.arrays = arrays
        _check_size(str(arrays.folder), arrays.images(arrays.names[0], 1).shape[1:3], self.size)
        if (found := max(targets) + 1) != len(class_names):
            raise InputError(
                f"{arrays.folder}: labels of {found} classes, but the training images have {len(class_names)}"
            )

    def path(self, index: int, corruption: str, severity: int) -> str:
        """The file of a corruption, and the row in it, counted from 0."""
        return f"{self.arrays.folder / corruption}.npy:{(severity - 1) * len(self.arrays) + index}"

    def load(self, index: int, corruption: str, severity: int) -> Tensor:
        """An image as it is in the file."""
        pixels = np.array(self.arrays.images(corruption, severity)[index])
        image: Tensor = self.to_tensor(image=pixels)["image"]
        return image


class FileImages(Pictures):
    """Images in the layout of ImageNet-C.

    Args:
        listings: by corruption and severity, the same images in all.
        preprocessing: of the network.
        max_pixels: larger images count as unreadable.

    Raises:
        InputError: the images have another size than the network takes, or a corruption has others than another.
    """

    def __init__(self, listings: Mapping[Stretch, Listing], preprocessing: Preprocessing, max_pixels: int) -> None:
        first, *others = listings.values()
        super().__init__(first.targets, preprocessing)
        self.listings, self.max_pixels = listings, max_pixels
        for other in others:
            if other.targets != first.targets:
                raise InputError(
                    f"expected the same images of every corruption, found {len(first)} like {first.paths[0]} "
                    f"and {len(other)} like {other.paths[0]}, or other classes"
                )
        with suppress(UnreadableImageError):
            _check_size(first.paths[0], read_image(first.paths[0], max_pixels).shape[:2], self.size)

    def path(self, index: int, corruption: str, severity: int) -> str:
        """The file of the corrupted image."""
        return self.listings[corruption, severity].paths[index]

    def load(self, index: int, corruption: str, severity: int) -> Tensor:
        """An image as it is in the file."""
        path = self.path(index, corruption, severity)
        pixels = read_image(path, self.max_pixels)
        if pixels.shape[:2] != self.size:
            raise UnreadableImageError(path, _other_size(pixels.shape[:2], self.size))
        image: Tensor = self.to_tensor(image=pixels)["image"]
        return image


def _check_size(where: str, found: tuple[int, ...], expected: tuple[int, int]) -> None:
    if found != expected:
        raise InputError(
            f"{where}: {_other_size(found, expected)}; corrupted images are not resized, so set data.image_size"
        )


def _other_size(found: tuple[int, ...], expected: tuple[int, int]) -> str:
    return f"{found[1]}x{found[0]} pixels, the network takes {expected[1]}x{expected[0]}"


class CorruptionStream(Stream, ImageFolder):
    """Class-per-folder images or lists of them, and a stream of the test images with corruptions.

    Training and validation images are those of :class:`~datamodules.image_folder.ImageFolder`: the source data, for
    whatever comes before the deployment. The stream is continual test-time adaptation's: one corruption after the
    other, without a word when the next begins.

    Args:
        root: folder of the data; ``builtin:digit_pairs`` needs no files.
        corrupted: folder in the layout of CIFAR-10-C (a ``.npy`` file for each corruption) or ImageNet-C (a folder for
            each, of which each severity has a folder with class folders). Its images must have the network's size,
            for they are neither resized nor cropped; the numbers in CIFAR-10-C's labels must be those of the classes
            of ``root`` in alphabetical order, as they are in CIFAR-10 and CIFAR-100. The clean probes are the test
            images of ``root``. By default those are corrupted as they are loaded, after they are resized.
        corrupted_list: a text file with a line ``<class folder>/<image>`` for each image that is used of folders in
            the layout of ImageNet-C, such as RobustBench's list of 5000. By default all are.
        order: ``continual`` shows one corruption after the other; ``gradual`` lets the severity of each rise from 1 to
            ``severity`` and fall back to 1; with ``mixed``, each image has one corruption, drawn by ``seed``;
            ``correlated`` is continual, and the images of a class come in runs within each stretch.
        concentration: of ``correlated``, positive: the smaller, the longer the runs. RoTTA and NOTE take 0.1; see
            :func:`~datamodules.stream_order.class_runs`.
        kwargs: see :class:`~datamodules.stream.Stream` and :class:`~datamodules.image_folder.ImageFolder`.

    Raises:
        InputError: at construction, ``setup`` or the request for the stream, for whatever a user can put right.
    """

    orders = get_args(Order)

    def __init__(
        self,
        root: str,
        corrupted: str | None = None,
        corrupted_list: str | None = None,
        order: Order = "continual",
        concentration: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, corrupted=corrupted, order=order, **kwargs)
        if corrupted_list is not None and (corrupted is None or _has_arrays(corrupted)):
            raise InputError("corrupted_list: is of folders in the layout of ImageNet-C, which corrupted must name")
        self.corrupted_list = Path(corrupted_list) if corrupted_list is not None else None
        if not concentration > 0:
            raise InputError(f"concentration must be positive, got {concentration}")
        self.concentration = concentration

    def read_splits(self, root: Path) -> dict[str, Listing]:
        """Lists the images of ``root``, and those of the stream where they are files."""
        splits = super().read_splits(root)
        # Of networks that use a batch's own statistics, a batch of one class would measure something else.
        splits["val"] = splits["val"].subset(self._random(VALIDATION).permutation(len(splits["val"])))
        if self.corrupted is not None and not _has_arrays(self.corrupted):
            files = ImageNetC(Path(self.corrupted), self.corrupted_list)
            for stretch in self.shown():
                splits[stored_split(*stretch)] = files.listing(*stretch, splits["train"].class_names)
        return splits

    def pictures(self) -> tuple[Pictures, Pictures]:
        """Of the stream, and of the clean probes."""
        clean = LiveImages(self.splits["test"], self.preprocessing, self.max_pixels, self.corruptor)
        if self.corrupted is None:
            return clean, clean
        if _has_arrays(self.corrupted):
            arrays = CifarC(Path(self.corrupted))
            for stretch in self.shown():
                arrays.images(*stretch)
            return ArrayImages(arrays, self.preprocessing, self.class_names), clean
        listings = {stretch: self.splits[stored_split(*stretch)] for stretch in self.shown()}
        return FileImages(listings, self.preprocessing, self.max_pixels), clean

    def arrange(self, items: Items, stretch: int) -> Items:
        """Runs of a class where that is asked for, others for each stretch."""
        if self.order != "correlated":
            return items
        labels = np.asarray(self.stream.targets)[items]
        return items[class_runs(labels, self.concentration, self._random(RUNS, stretch))]


def _has_arrays(folder: str) -> bool:
    """Whether a folder has the layout of CIFAR-10-C; else it is taken for one in ImageNet-C's."""
    return any(Path(folder).glob("*.npy"))
