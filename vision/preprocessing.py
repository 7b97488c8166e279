"""How an image becomes a network's input: size, interpolation, crop, mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from vision.errors import InputError

Interpolation = Literal["bicubic", "bilinear", "nearest"]
CropMode = Literal["center", "squash"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation preprocessing that a network expects.

    The short side is resized so that the centre crop of ``size`` covers ``crop_pct`` of it (with ``squash`` both sides
    are, and the aspect ratio is lost), the crop is taken, values are scaled to [0, 1] and normalised by channel.

    Attributes:
        size: (height, width) of the network's input in pixels.
        mean: of the RGB channels, on the [0, 1] scale.
        std: of the RGB channels, on the [0, 1] scale.
        interpolation: used where the image is enlarged; shrinking averages over areas.
        crop_pct: share of the resized side that the centre crop keeps, in [0.01, 1].
        crop_mode: ``center`` keeps the aspect ratio and cuts off what is too long; ``squash`` shows the whole width
            and height.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 0.875
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise InputError(f"image size must be positive, got {self.size[0]}x{self.size[1]}")
        if not 0.01 <= self.crop_pct <= 1:
            raise InputError(f"crop_pct must be in [0.01, 1], got {self.crop_pct}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = isinstance(values, Sequence) and all(isinstance(v, int | float) for v in values)
            if not numbers or len(values) != 3 or not all(map(math.isfinite, values)):
                raise InputError(f"{name} must be three numbers, one a channel, got {values}")
        if min(self.std) <= 0:
            raise InputError(f"std must be positive, got {self.std}")
        for name, choices, value in (
            ("interpolation", get_args(Interpolation), self.interpolation),
            ("crop_mode", get_args(CropMode), self.crop_mode),
        ):
            if value not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {value}")

    @classmethod
    def from_timm(cls, cfg: Mapping[str, Any]) -> Preprocessing:
        """From a timm ``pretrained_cfg`` dictionary (a network of three input channels)."""
        interpolation = cfg.get("interpolation") or "bicubic"
        if interpolation not in ("bicubic", "bilinear", "nearest"):
            interpolation = "bicubic"
        return cls(
            size=cast("tuple[int, int]", tuple(cfg.get("input_size", (3, 224, 224))[-2:])),
            mean=cast("tuple[float, float, float]", tuple(cfg.get("mean") or IMAGENET_MEAN)),
            std=cast("tuple[float, float, float]", tuple(cfg.get("std") or IMAGENET_STD)),
            interpolation=cast("Interpolation", interpolation),
            crop_pct=float(cfg.get("crop_pct") or 0.875),
            # timm's third mode, border, pads; it has no counterpart here.
            crop_mode="squash" if cfg.get("crop_mode") == "squash" else "center",
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`as_dict`; lists are accepted where JSON has made them of tuples."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)
