"""Corrupted images on disk, read and written: the layouts of CIFAR-10-C and of ImageNet-C."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from datamodules.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES, Suite, corrupt, image_seed
from datamodules.corruptions.constants import check_severity, level_of
from datamodules.decoding import read_image
from datamodules.listing import Listing, list_class_folders
from vision.errors import InputError, did_you_mean, shorten

LABELS = "labels.npy"
MADE_FROM = "made_from.json"
PARTS = ("blur", "digital", "noise", "weather", "extra")
"""The archives of ImageNet-C, which become folders where they are unpacked as they are."""
QUALITY = 85  # of the published JPEG files

_KNOWN = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)


class CifarC:
    """A folder with ``<corruption>.npy`` files and ``labels.npy``, as CIFAR-10-C and CIFAR-100-C come.

    Of each ``(5 * N, H, W, 3)`` array the first N images have severity 1, the last N severity 5, always the same N
    images in the same order; the labels are ``(5 * N,)``. Files of other names are ignored.

    Attributes:
        folder: the folder.
        names: the corruptions that it has, the 15 in their usual order, then the extra ones.

    Raises:
        InputError: at construction; the folder has no such file, or one that is damaged, of another type or shape, or
            of another number of images than there are labels.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        self.names = tuple(name for name in _KNOWN if (folder / f"{name}.npy").is_file())
        if not self.names:
            raise InputError(f"{folder}: expected files such as {CORRUPTIONS[0]}.npy, found none")
        labels = _open(folder / LABELS)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise InputError(f"{folder / LABELS}: expected whole numbers (5 * N,), found {_kind(labels)}")
        if not len(labels) or len(labels) % len(SEVERITIES):
            raise InputError(f"{folder / LABELS}: expected 5 labels for each image, found {len(labels)} in all")
        self._labels = labels.astype(np.int64)
        self._arrays = {name: self._array(folder / f"{name}.npy") for name in self.names}
        shape = self._arrays[self.names[0]].shape
        for name, array in self._arrays.items():
            if array.shape != shape:
                raise InputError(f"{folder / name}.npy: has the shape {array.shape}, {self.names[0]}.npy has {shape}")

    def _array(self, file: Path) -> NDArray[np.uint8]:
        array = _open(file)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            raise InputError(f"{file}: expected uint8 (5 * N, H, W, 3), found {_kind(array)}")
        if len(array) % len(SEVERITIES):
            raise InputError(f"{file}: expected as many images of each of 5 severities, found {len(array)} in all")
        if len(array) != len(self._labels):
            raise InputError(f"{file}: has {len(array)} images, {LABELS} has {len(self._labels)} labels")
        return array

    def __len__(self) -> int:
        """Images of one corruption and severity."""
        return len(self._labels) // len(SEVERITIES)

    def images(self, corruption: str, severity: int) -> NDArray[np.uint8]:
        """uint8 ``(N, H, W, 3)``, of which only what is looked at is read from the disk.

        Raises:
            InputError: the folder has no such corruption, or there is no such severity.
        """
        _check_has(self.folder, corruption, self.names)
        return self._arrays[corruption][self._rows(severity)]

    def labels(self, severity: int) -> NDArray[np.int64]:
        """Class indices ``(N,)``.

        Raises:
            InputError: there is no such severity.
        """
        return self._labels[self._rows(severity)]

    def _rows(self, severity: int) -> slice:
        check_severity(severity)
        return slice((severity - 1) * len(self), severity * len(self))


class ImageNetC:
    """Folders ``<corruption>/<severity>/<class>`` of images, as ImageNet-C comes.

    They lie in ``root``, or in its folders ``blur``, ``digital``, ``noise``, ``weather`` and ``extra``. The published
    images have their final size, 224 pixels, and must not be resized again.

    Args:
        root: the folder.
        files: a text with one ``<class>/<file>`` a line, to which every corruption and severity is restricted, in
            this order; such as the 5000 images of RobustBench. By default all images, class by class.

    Attributes:
        names: the corruptions that it has, the 15 in their usual order, then the extra ones.

    Raises:
        InputError: at construction; there is no such folder, no corruption in it, or the list cannot be read.
    """

    def __init__(self, root: Path, files: Path | None = None) -> None:
        self.root, self.files = root, files
        if not root.is_dir():
            raise InputError(f"{root}: no such folder")
        places = [(name, root / part / name) for part in ("", *PARTS) for name in _KNOWN]
        found = {name: place for name, place in reversed(places) if place.is_dir()}
        self.names = tuple(name for name in _KNOWN if name in found)
        if not self.names:
            raise InputError(f"{root}: expected folders such as {CORRUPTIONS[0]}/5, there or in {', '.join(PARTS)}")
        self._folders = found
        self._wanted = None if files is None else _read_names(files)

    def listing(self, corruption: str, severity: int, class_names: Sequence[str] | None = None) -> Listing:
        """The images of one corruption and severity.

        Args:
            corruption: one of ``names``.
            severity: 1 to 5.
            class_names: the classes in the order of their indices; by default the folders in alphabetical order.

        Raises:
            InputError: there is no such corruption or severity, a class is not among ``class_names`` or has no images,
                or an image of the list is missing.
        """
        _check_has(self.root, corruption, self.names)
        check_severity(severity)
        folder = self._folders[corruption] / str(severity)
        everything = list_class_folders(folder, class_names)
        if self._wanted is None:
            return everything
        start = len(f"{folder}{os.sep}")
        indices = {path[start:].replace(os.sep, "/"): i for i, path in enumerate(everything.paths)}
        for line, name in self._wanted:
            if name not in indices:
                raise InputError(f"{self.files}:{line}: {folder} has no image '{name}'")
        return everything.subset([indices[name] for _, name in self._wanted])


def write_cifar_c(
    images: NDArray[np.uint8],
    labels: NDArray[np.integer],
    folder: Path,
    suite: Suite,
    seed: int,
    corruptions: Sequence[str] = CORRUPTIONS,
    frost_folder: Path | None = None,
) -> list[Path]:
    """Corrupts images of one size at all five severities, as files that :class:`CifarC` reads.

    A file takes its name when it is complete. Those that are there already are kept, so that an interrupted call can
    be repeated, and a call for each corruption in turn leaves its caller time to say how far it is.

    Args:
        images: uint8 ``(N, H, W, 3)`` RGB.
        labels: class indices ``(N,)``.
        folder: made where it does not exist.
        suite: see :func:`~datamodules.corruptions.corrupt`.
        seed: of the whole data.
        corruptions: any of the 15.
        frost_folder: see :func:`~datamodules.corruptions.corrupt`.

    Returns:
        The ``.npy`` files of corruptions that were written now.

    Raises:
        InputError: the arrays do not go together, a corruption is not known, the folder has files that were made
            otherwise, or it cannot be written.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        raise InputError(f"images must be uint8 (N, H, W, 3), got {_kind(images)}")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels must be whole numbers ({len(images)},), got {_kind(labels)}")
    source = zlib.crc32(labels.astype(np.int64).tobytes(), zlib.crc32(np.ascontiguousarray(images).data))
    _claim(folder, suite, seed, source, corruptions)
    shape = (len(SEVERITIES) * len(images), *images.shape[1:])
    written = []
    if not (folder / LABELS).is_file():
        with _replacing(folder / LABELS) as temporary, temporary.open("wb") as stream:
            np.save(stream, np.tile(labels.astype(np.int64), len(SEVERITIES)))
    for name in corruptions:
        if (file := folder / f"{name}.npy").is_file():
            continue
        with _replacing(file) as temporary, temporary.open("wb") as stream:
            # Not through a memory map: a disk that is full would end the process.
            np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for severity in SEVERITIES:
                for index, image in enumerate(images):
                    chance = image_seed(seed, name, index)
                    stream.write(corrupt(image, name, severity, chance, suite, frost_folder).tobytes())
        written.append(file)
    return written


def write_imagenet_c(
    listing: Listing,
    folder: Path,
    suite: Suite,
    seed: int,
    corruptions: Sequence[str] = CORRUPTIONS,
    frost_folder: Path | None = None,
) -> list[Path]:
    """Corrupts image files at all five severities, as files that :class:`ImageNetC` reads.

    They are written as the published ones: JPEG of quality 85 with halved colour, named ``<stem>.JPEG``. For
    interrupted calls and how far they are see :func:`write_cifar_c`.

    Args:
        listing: the images, which are not resized or cropped here.
        folder: made where it does not exist.
        suite: see :func:`~datamodules.corruptions.corrupt`.
        seed: of the whole data; an image's share of it follows from its place in the listing.
        corruptions: any of the 15.
        frost_folder: see :func:`~datamodules.corruptions.corrupt`.

    Returns:
        The files that were written now.

    Raises:
        InputError: two images of a class would become the same file, an image cannot be read or is too small, a
            corruption is not known, the folder has files that were made otherwise, or it cannot be written.
    """
    classes = [listing.class_names[target] for target in listing.targets]
    names = [f"{name}/{Path(path).stem}.JPEG" for name, path in zip(classes, listing.paths, strict=True)]
    first: dict[str, str] = {}
    for name, path in zip(names, listing.paths, strict=True):
        if first.setdefault(name, path) != path:
            raise InputError(f"{path}: would be written as {name}, as {first[name]} is")
    _claim(folder, suite, seed, zlib.crc32("\n".join(names).encode()), corruptions)
    written = []
    for index, (path, name) in enumerate(zip(listing.paths, names, strict=True)):
        wanted = [(folder / how / str(level) / name, how, level) for how in corruptions for level in SEVERITIES]
        missing = [entry for entry in wanted if not entry[0].is_file()]
        image = read_image(path) if missing else np.empty(0, np.uint8)
        for file, corruption, severity in missing:
            corrupted = corrupt(image, corruption, severity, image_seed(seed, corruption, index), suite, frost_folder)
            with _replacing(file) as temporary:
                PILImage.fromarray(corrupted).save(temporary, "JPEG", quality=QUALITY)
            written.append(file)
    return written


def _open(file: Path) -> NDArray[Any]:
    """An array on the disk; one of Python objects, which could run anything, is refused."""
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    # NumPy's reader fails in many ways on a damaged header.
    except Exception as error:
        if not file.stat().st_size:
            raise InputError(f"{file}: empty file (0 bytes)") from error
        raise InputError(f"{file}: not a complete .npy array ({str(error).splitlines()[0]})") from error
    return array


def _kind(array: NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape}"


def _check_has(place: Path, corruption: str, names: Sequence[str]) -> None:
    if corruption not in names:
        raise InputError(
            f"{place}: no corruption '{corruption}'{did_you_mean(corruption, names)}; it has {', '.join(names)}"
        )


def _read_names(file: Path) -> list[tuple[int, str]]:
    """The images of a list, and the line of each."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not a text in UTF-8") from error
    names: dict[str, int] = {}
    for line, text in enumerate(lines, start=1):
        if not (name := text.strip()):
            continue
        if "/" not in name:
            raise InputError(f"{file}:{line}: expected <class>/<file>, found '{name}'")
        if name in names:
            raise InputError(f"{file}:{line}: '{name}' is listed in line {names[name]} too")
        names[name] = line
    if not names:
        raise InputError(f"{file}: the list has no images")
    return [(line, name) for name, line in names.items()]


def _claim(folder: Path, suite: Suite, seed: int, source: int, corruptions: Sequence[str]) -> None:
    """Notes in a folder what its images are made from, or checks that it was the same before."""
    for name in corruptions:
        level_of(name, SEVERITIES[0], suite)
    note = json.dumps({"suite": suite, "seed": seed, "images": f"{source:08x}"})
    file = folder / MADE_FROM
    if file.is_file():
        if (before := file.read_text(encoding="utf-8", errors="replace")) != note:
            raise InputError(f"{folder}: has images made from {before}, not from {note}; name another folder")
        return
    if taken := [name for name in _KNOWN if (folder / name).exists() or (folder / f"{name}.npy").exists()]:
        raise InputError(f"{folder}: has images of {shorten(taken)} that were not made here; name another folder")
    with _replacing(file) as temporary:
        temporary.write_text(note, encoding="utf-8")


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A hidden file beside one, whose place it takes if nothing fails; otherwise it is gone."""
    temporary = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror})") from error
