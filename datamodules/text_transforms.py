"""From a picture of a word to a network's input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage
from torch import Tensor

from datamodules.text_augment import GREY
from vision.preprocessing import Preprocessing

_PIL_INTERPOLATION = {
    "bicubic": PILImage.Resampling.BICUBIC,
    "bilinear": PILImage.Resampling.BILINEAR,
    "nearest": PILImage.Resampling.NEAREST,
}


class TextTransform:
    """Augment, turn, resize by Pillow, normalise; as CFE and PARSeq do it, whose weights expect Pillow's filters.

    Args:
        preprocessing: size, mean, standard deviation and interpolation; there is no crop.
        keep_aspect: the height becomes the network's and what is missing on the right is grey, unless the picture is
            too long; by default both sides are resized, and the aspect ratio is lost.
        rotation: degrees, counter-clockwise, that every picture is turned by; nothing is cut off.
        augment: takes a picture and a seed.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        keep_aspect: bool = False,
        rotation: float = 0.0,
        augment: Callable[[PILImage.Image, int], PILImage.Image] | None = None,
    ) -> None:
        self.preprocessing, self.keep_aspect, self.rotation, self.augment = (
            preprocessing,
            keep_aspect,
            rotation,
            augment,
        )

    def __call__(self, pixels: NDArray[np.uint8], seed: int = 0) -> Tensor:
        """A picture, uint8 ``(H, W, 3)`` RGB, as float32 ``(3, *size)``; ``seed`` is the augmentation's."""
        picture = PILImage.fromarray(pixels)
        if self.augment is not None:
            picture = self.augment(picture, seed)
        if self.rotation:
            picture = picture.rotate(
                self.rotation, PILImage.Resampling.BICUBIC, expand=True, fillcolor=(GREY, GREY, GREY)
            )
        resized = np.asarray(self._resize(picture), dtype=np.float32) / 255
        mean, std = (np.asarray(values, np.float32) for values in (self.preprocessing.mean, self.preprocessing.std))
        return torch.from_numpy(np.ascontiguousarray(((resized - mean) / std).transpose(2, 0, 1)))

    def _resize(self, picture: PILImage.Image) -> PILImage.Image:
        height, width = self.preprocessing.size
        interpolation = _PIL_INTERPOLATION[self.preprocessing.interpolation]
        if not self.keep_aspect:
            return picture.resize((width, height), interpolation)
        kept = min(width, max(1, round(picture.width * height / picture.height)))
        padded = PILImage.new("RGB", (width, height), (GREY, GREY, GREY))
        padded.paste(picture.resize((kept, height), interpolation))
        return padded
