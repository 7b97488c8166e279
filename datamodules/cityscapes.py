"""The folders of Cityscapes: street scenes of many cities, and pictures that label each of their pixels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from datamodules.decoding import UnreadableFileError
from datamodules.listing import find_images
from vision.errors import InputError
from vision.labels import IGNORED

CLASS_NAMES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
PICTURE, LABELS = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"


@dataclass(frozen=True)
class Scenes:
    """Pictures, and the file with the labels of each, which need not exist."""

    paths: list[str]
    targets: list[str]

    def __len__(self) -> int:
        return len(self.paths)


def list_scenes(root: Path, split: str) -> Scenes:
    """``leftImg8bit/<split>/<city>/*_leftImg8bit.png``, with ``gtFine/<split>/<city>/*_gtFine_labelTrainIds.png``.

    Raises:
        InputError: there are no pictures, or no labels of any of them.
    """
    pictures, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    paths = [path for path in find_images(pictures) if path.endswith(PICTURE)]
    if not paths:
        raise InputError(f"{pictures}: expected pictures <city>/*{PICTURE}, found none")
    targets = [str(labels / os.path.relpath(path, pictures).removesuffix(PICTURE)) + LABELS for path in paths]
    if not any(map(os.path.exists, targets)):
        raise InputError(
            f"{labels}: expected labels <city>/*{LABELS}, found none (cityscapesscripts makes them: "
            "csCreateTrainIdLabelImgs)"
        )
    return Scenes(paths, targets)


def list_corrupted(folder: Path, scenes: Scenes) -> Scenes:
    """The same scenes as ``folder/<city>/*_leftImg8bit.png``; the labels are those of the clean pictures.

    Raises:
        InputError: the folder has none of them.
    """
    paths = [str(folder / Path(path).parent.name / Path(path).name) for path in scenes.paths]
    if not any(map(os.path.exists, paths)):
        raise InputError(
            f"{folder}: expected pictures <city>/*{PICTURE} of the same names as the clean ones, found none"
        )
    return Scenes(paths, scenes.targets)


def read_labels(path: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of each pixel.

    Args:
        path: a picture of one channel.
        size: (height, width) of the picture that is labelled.

    Returns:
        uint8 ``(height, width)``, 0 to 18, 255 where there is no label.

    Raises:
        UnreadableFileError: the file is missing, damaged, of several channels or of another size, or has other values.
    """
    labels = _decode(path)
    if labels.ndim != 2:
        raise _unreadable(path, f"expected one channel, found {labels.shape[2]}")
    if labels.shape != size:
        found = f"{labels.shape[1]}x{labels.shape[0]}"
        raise _unreadable(path, f"{found} pixels, the picture has {size[1]}x{size[0]}")
    wrong = labels[(labels >= len(CLASS_NAMES)) & (labels != IGNORED)]
    if wrong.size:
        raise _unreadable(path, f"expected 0 to {len(CLASS_NAMES) - 1} and {IGNORED}, found {wrong[0]}")
    return labels.astype(np.uint8)


def _decode(path: str) -> NDArray[Any]:
    try:
        with PILImage.open(path) as picture:
            return np.asarray(picture)
    except FileNotFoundError as error:
        raise _unreadable(path, "no such file") from error
    # Pillow's readers fail in many ways on damaged data.
    except Exception as error:
        raise _unreadable(path, "not a picture, or damaged") from error


def _unreadable(path: str, why: str) -> UnreadableFileError:
    """For the picture's own entry in the list of unreadable files, hence the name."""
    return UnreadableFileError(path, f"its labels {Path(path).name}: {why}")
