"""What ``--input`` names: files, folders, globs."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from datamodules.decoding import SUFFIXES
from datamodules.listing import find_images
from vision.errors import InputError


def image_files(inputs: Sequence[str]) -> list[str]:
    """The image files that the inputs name, each once, in their order.

    A folder gives the images at any depth below it, by their suffix. A file that is named itself is taken whatever
    its suffix.

    Raises:
        InputError: an input does not exist, or names no images.
    """
    files: list[str] = []
    for given in inputs:
        matches = [given] if Path(given).exists() else sorted(glob.glob(given, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not matches:
            raise InputError(f"--input: no such file, folder or pattern: {given}")
        for match in matches:
            if not Path(match).is_dir():
                files.append(match)
                continue
            found = find_images(match)
            if not found:
                raise InputError(f"--input: no images in {match} ({', '.join(SUFFIXES)})")
            files += found
    return list(dict.fromkeys(files))


def output_folder(path: str) -> Path:
    """The folder that results go to, made where it is missing.

    Raises:
        InputError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be made ({error.strerror})") from error
    return folder
