"""From decoded frames to a network's views, with one draw a clip: every frame is cut, mirrored and coloured alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.transforms import INTERPOLATION, AutoAugment, seed_steps
from datamodules.video_sampling import crop_corners
from vision.errors import InputError
from vision.preprocessing import Preprocessing

Frames = NDArray[np.uint8]

# timm's operations but those that move the picture: rotate, shear and translate.
OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
)


@dataclass(frozen=True)
class Augmentation:
    """What is left to chance when a training clip is made of its frames; arguments as in ``VideoFolder``.

    Raises:
        InputError: a value is out of its range, or two exclude each other.
    """

    scale_jitter: tuple[float, float] | None = (0.9, 1.33)
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (0.75, 4 / 3)
    horizontal_flip: float = 0.5
    colour: bool = False
    rand_augment: tuple[int, int] | None = None
    augmentations: Sequence[A.BasicTransform] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.horizontal_flip <= 1:
            raise InputError(f"horizontal_flip must be in [0, 1], got {self.horizontal_flip}")
        if self.scale_jitter is not None and not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise InputError(f"scale_jitter must be two factors, the smaller first, got {list(self.scale_jitter)}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale must be two shares in (0, 1], the smaller first, got {list(self.scale)}")
        if self.colour and self.rand_augment is not None:
            raise InputError("colour and rand_augment exclude each other: choose one")
        if self.rand_augment is not None and (self.rand_augment[0] < 1 or not 0 <= self.rand_augment[1] <= 30):
            raise InputError(
                f"rand_augment must be [layers, magnitude], at least 1 and in 0 to 30, got {list(self.rand_augment)}"
            )


def resize(frames: Frames, height: int, width: int, preprocessing: Preprocessing) -> Frames:
    """Frames ``(T, H, W, 3)`` at another size, shrunk by area averaging, enlarged as the preprocessing says."""
    before = frames.shape[1:3]
    if before == (height, width):
        return frames
    shrinking = height < before[0] or width < before[1]
    how = cv2.INTER_AREA if shrinking else INTERPOLATION[preprocessing.interpolation]
    resized = np.empty((len(frames), height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        cv2.resize(frame, (width, height), dst=resized[i], interpolation=how)
    return resized


def resized_sides(height: int, width: int, preprocessing: Preprocessing) -> tuple[float, float]:
    """The height and width of a frame before the crop is taken; neither is below the crop's."""
    wanted = [side / preprocessing.crop_pct for side in preprocessing.size]
    if preprocessing.crop_mode == "squash":
        return wanted[0], wanted[1]
    factor = max(wanted[0] / height, wanted[1] / width)
    return height * factor, width * factor


class EvalViews:
    """The views of a test: resize, then one crop in the centre or three along the longer side.

    Args:
        preprocessing: size, interpolation and crop.
        crops: 1 or 3.

    Raises:
        InputError: another number of crops.
    """

    def __init__(self, preprocessing: Preprocessing, crops: int) -> None:
        if crops not in (1, 3):
            raise InputError(f"crops must be 1 or 3, got {crops}")
        self.preprocessing, self.crops = preprocessing, crops

    def __call__(self, clip: Frames) -> Frames:
        """uint8 ``(T, H, W, 3)`` to ``(crops, T, *size, 3)``, from left (top) to right (bottom)."""
        size = self.preprocessing.size
        sides = resized_sides(clip.shape[1], clip.shape[2], self.preprocessing)
        frames = resize(clip, *_at_least(size, sides), self.preprocessing)
        rest = (frames.shape[1] - size[0], frames.shape[2] - size[1])
        # Corners depend on the room that a crop leaves only, which has a meaning where the crop is not square too.
        corners = crop_corners(*rest, 0, self.crops)
        return np.stack([frames[:, y : y + size[0], x : x + size[1]] for y, x in corners])


class TrainView:
    """The view of a training: size and place of the crop, mirroring and colours are drawn once for the clip.

    Args:
        preprocessing: size, interpolation and crop.
        augmentation: what is drawn.
    """

    def __init__(self, preprocessing: Preprocessing, augmentation: Augmentation) -> None:
        self.preprocessing, self.augmentation = preprocessing, augmentation
        steps: list[A.BasicTransform] = []
        if augmentation.scale is not None:
            steps.append(
                A.RandomResizedCrop(
                    preprocessing.size,
                    scale=augmentation.scale,
                    ratio=augmentation.ratio,
                    interpolation=INTERPOLATION[preprocessing.interpolation],
                    area_for_downscale="image",
                )
            )
        if augmentation.colour:
            # ViViT's, but that its brightness is added and not multiplied with.
            bright = 32 / 255
            steps.append(A.ColorJitter((1 - bright, 1 + bright), (0.6, 1.4), (0.6, 1.4), (-0.2, 0.2), p=0.8))
            steps.append(A.ToGray(p=0.1))
        if augmentation.rand_augment is not None:
            layers, magnitude = augmentation.rand_augment
            # timm cuts magnitudes off at 10 unless told; ViViT's recipes have 15 and 20.
            policy = f"rand-m{magnitude}-n{layers}-mmax{max(magnitude, 10)}"
            steps.append(AutoAugment(policy, preprocessing.mean, operations=OPERATIONS))
        self.steps = A.Compose([*steps, *augmentation.augmentations])

    def __call__(self, clip: Frames, seed: int, mirrored: bool) -> Frames:
        """uint8 ``(T, H, W, 3)`` to ``(T, *size, 3)``, a function of its arguments alone."""
        if self.augmentation.scale is None:
            clip = self._crop(clip, np.random.default_rng(seed))
        if mirrored:
            clip = clip[:, :, ::-1]
        seed_steps(self.steps, seed)
        frames: Frames = self.steps(images=np.ascontiguousarray(clip))["images"]
        return frames

    def _crop(self, clip: Frames, random: np.random.Generator) -> Frames:
        size = self.preprocessing.size
        sides = resized_sides(clip.shape[1], clip.shape[2], self.preprocessing)
        if self.augmentation.scale_jitter is not None:
            # Height and width each have their own factor, so that the aspect ratio varies too.
            factors = random.uniform(*self.augmentation.scale_jitter, size=2)
            sides = (sides[0] * factors[0], sides[1] * factors[1])
        frames = resize(clip, *_at_least(size, sides), self.preprocessing)
        y = random.integers(frames.shape[1] - size[0] + 1)
        x = random.integers(frames.shape[2] - size[1] + 1)
        return frames[:, y : y + size[0], x : x + size[1]]


def _at_least(size: tuple[int, int], sides: tuple[float, float]) -> tuple[int, int]:
    return max(size[0], round(sides[0])), max(size[1], round(sides[1]))
