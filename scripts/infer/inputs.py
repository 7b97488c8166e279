"""What ``--input`` names: files, folders, globs."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch.utils.data import DataLoader
from tqdm import tqdm

from datamodules.decoding import MAX_PIXELS, SUFFIXES
from datamodules.image_folder import Collate
from datamodules.images import ImageDataset
from datamodules.listing import Listing, find_images
from datamodules.sampling import EvalSampler
from datamodules.transforms import eval_transform
from datamodules.video_decoding import VIDEO_SUFFIXES
from datamodules.video_listing import find_videos
from vision.batches import ImageBatch
from vision.errors import InputError
from vision.preprocessing import Preprocessing


def image_files(inputs: Sequence[str], argument: str = "--input") -> list[str]:
    """The image files that the inputs name, each once, in their order.

    A folder gives the images at any depth below it, by their suffix. A file that is named itself is taken whatever
    its suffix. ``argument`` is the flag that they were given with, for the errors.

    Raises:
        InputError: an input does not exist, or names no images.
    """
    return _files(inputs, argument, find_images, f"images in {{}} ({', '.join(SUFFIXES)})")


def video_files(inputs: Sequence[str]) -> list[str]:
    """The same for videos; a folder that holds images and no video is one video, of frames."""

    def found(folder: str) -> list[str]:
        return find_videos(folder) or ([folder] if find_images(folder) else [])

    return _files(inputs, "--input", found, f"videos or frames in {{}} ({', '.join(VIDEO_SUFFIXES)})")


def _files(inputs: Sequence[str], argument: str, find: Callable[[str], list[str]], none: str) -> list[str]:
    files: list[str] = []
    for given in inputs:
        matches = [given] if Path(given).exists() else sorted(glob.glob(given, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise InputError(f"{argument}: no such file, folder or pattern: {given}")
        for match in matches:
            if not Path(match).is_dir():
                files.append(match)
                continue
            found = find(match)
            if not found:
                raise InputError(f"{argument}: no {none.format(match)}")
            files += found
    return list(dict.fromkeys(files))


def image_batches(
    files: Sequence[str], preprocessing: Preprocessing, batch_size: int, num_workers: int = 0
) -> Iterator[ImageBatch]:
    """The images as a network takes them, in their order; unreadable ones are left out and named in the batch."""
    listing = Listing(list(files), [0] * len(files), [""])
    dataset = ImageDataset(listing, eval_transform(preprocessing), MAX_PIXELS, substitute=False)
    yield from DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EvalSampler(dataset, 1, 0),
        collate_fn=Collate(preprocessing.size),
        num_workers=num_workers,
    )


def readable_batches(
    files: Sequence[str], preprocessing: Preprocessing, batch_size: int, num_workers: int, unreadable: dict[str, str]
) -> Iterator[ImageBatch]:
    """The batches of :func:`image_batches` that hold an image, with a progress bar on a terminal.

    Args:
        files: images.
        preprocessing: the network's.
        batch_size: images at a time.
        num_workers: processes that decode.
        unreadable: is given the reason for every file that cannot be read.

    Raises:
        InputError: ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {batch_size}")
    # disable=None: no bar where the output is not a terminal.
    with tqdm(total=len(files), unit="image", disable=None) as progress:
        for batch in image_batches(files, preprocessing, batch_size, num_workers):
            unreadable.update(batch["unreadable"])
            progress.update(len(batch["path"]) + len(batch["unreadable"]))
            if batch["path"]:
                yield batch


def output_folder(path: str) -> Path:
    """The folder that results go to, made where it is missing; tried before anything is computed for it.

    Raises:
        InputError: it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be made or written to ({error.strerror})") from error
    return folder
