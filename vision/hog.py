"""Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) as a backbone: features without any weights."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.checkpoints import StateDict, load_strict
from vision.errors import InputError
from vision.preprocessing import Preprocessing

VARIANTS = {"hog_32": 32}
PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_pct=1.0)
BINS = 9
CELL = 8
EPS = 1e-5
CLIP = 0.2


class HOG(nn.Module):
    """Gradients' directions in cells of 8x8 pixels, normalised in blocks of 2x2 cells; then a linear classifier.

    The features are those of ``skimage.feature.hog`` with 9 unsigned directions, 8x8 cells, 2x2 blocks and L2-Hys, of
    the picture's channels' mean: 324 of 32x32 pixels. They have no parameters, so that the classifier is all there is
    to train; light on dark and dark on light are the same to them.

    Args:
        num_classes: outputs; 0 gives the features.
        img_size: (height, width) in pixels, at least 16 each.

    Raises:
        InputError: it is smaller.
    """

    pretrained_cfg: ClassVar = {"classifier": "head"}

    def __init__(self, num_classes: int, img_size: tuple[int, int]) -> None:
        super().__init__()
        if min(img_size) < 2 * CELL:
            height, width = img_size
            raise InputError(f"HOG takes pictures of at least {2 * CELL}x{2 * CELL} pixels, got {height}x{width}")
        rows, columns = (side // CELL - 1 for side in img_size)
        self.num_features, self.num_classes = rows * columns * 4 * BINS, num_classes
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier of so many outputs, or none with 0."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] to ``(B, features)``."""
        grey = images.float().mean(dim=1)  # EPS squared is 0 in float16
        down, right = torch.zeros_like(grey), torch.zeros_like(grey)
        down[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
        right[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
        angle = torch.rad2deg(torch.atan2(down, right)) % 180
        place = (angle / (180 / BINS)).long().clamp(max=BINS - 1)
        votes = F.one_hot(place, BINS).movedim(-1, 1) * torch.hypot(down, right)[:, None]
        cells = F.avg_pool2d(votes, CELL)
        blocks = F.unfold(cells, 2).unflatten(1, (BINS, 4)).permute(0, 3, 2, 1)  # (B, blocks, cells, directions)
        blocks = blocks.flatten(2)
        blocks = blocks / (blocks.square().sum(dim=2, keepdim=True) + EPS**2).sqrt()
        blocks = blocks.clamp(max=CLIP)
        blocks = blocks / (blocks.square().sum(dim=2, keepdim=True) + EPS**2).sqrt()
        features: Tensor = blocks.flatten(1).to(images.dtype)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] to ``(B, num_classes)`` logits, or ``(B, features)`` without a classifier."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits


def build(name: str, num_classes: int = 1000, distillation: bool = False, **settings: Any) -> HOG:
    """The variant ``hog_32`` (the only one; its size is whatever ``img_size`` says)."""
    assert name in VARIANTS
    assert not distillation
    return HOG(num_classes, **settings)


def load_official(source: StateDict, img_size: tuple[int, int] = (32, 32)) -> HOG:
    """A classifier of these features from its weights.

    Raises:
        InputError: they do not fit.
    """
    classes = len(source["head.bias"]) if "head.bias" in source else 0
    model = HOG(classes, img_size)
    load_strict(model, source, "HOG")
    return model
