"""Wide residual networks for small images, as RobustBench has them (TRADES form), under its key names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.checkpoints import StateDict, load_strict, read_state_dict
from vision.errors import InputError
from vision.preprocessing import Preprocessing

Normalisation = Literal["auto", "none"] | tuple[tuple[float, ...], tuple[float, ...]]
# name: depth, width, and whether the published network normalises its input by mean and deviation 0.5
VARIANTS = {"wrn_16_1": (16, 1, False), "wrn_28_10": (28, 10, False), "wrn_40_2": (40, 2, True)}
PREPROCESSING = Preprocessing(
    size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear", crop_pct=1.0
)
"""Images in [0, 1]: a network that wants them otherwise does it itself."""


class BasicBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv and a way round them."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inner, outer, 1, stride, bias=False) if inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inner, H, W)`` to ``(B, outer, H / stride, W / stride)``."""
        out = self.relu1(self.bn1(x))
        way_round = x if self.convShortcut is None else self.convShortcut(out)
        out = self.conv2(self.relu2(self.bn2(self.conv1(out))))
        return torch.add(way_round, out)


class _Stage(nn.Module):
    def __init__(self, blocks: int, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(BasicBlock(outer if i else inner, outer, 1 if i else stride) for i in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """WRN-depth-width (arXiv 1605.07146), pre-activation.

    Args:
        depth: 6 n + 4, with n blocks a stage.
        width: factor of the channels 16, 32, 64 of the three stages.
        num_classes: outputs.
        mean: subtracted from images; None where the network takes them as they are.
        std: that they are then divided by.
    """

    # What timm's networks say of themselves.
    pretrained_cfg: ClassVar[dict[str, Any]] = {"input_size": (3, 32, 32), "classifier": "fc"}

    mu: Tensor | None
    sigma: Tensor | None

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        if (depth - 4) % 6 or depth < 10:
            raise InputError(f"depth of a wide residual network must be 6 n + 4, got {depth}")
        self.depth, self.width, self.num_classes = depth, width, num_classes
        blocks, channels = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        # Not persistent: published files lack them.
        for name, values in (("mu", mean), ("sigma", std)):
            self.register_buffer(name, None if values is None else torch.tensor(values).view(1, -1, 1, 1), False)
        self.conv1 = nn.Conv2d(3, channels[0], 3, 1, 1, bias=False)
        self.block1 = _Stage(blocks, channels[0], channels[1], 1)
        self.block2 = _Stage(blocks, channels[1], channels[2], 2)
        self.block3 = _Stage(blocks, channels[2], channels[3], 2)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.relu = nn.ReLU(inplace=True)
        self.fc: nn.Module = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1], of any size, to logits ``(B, classes)``."""
        if self.mu is not None and self.sigma is not None:
            x = (x - self.mu) / self.sigma
        out = self.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        # The published head pools 8x8 and reshapes, which moves the rest of a larger image into the batch.
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))
        return logits

    def reset_classifier(self, num_classes: int) -> None:
        """A new last layer of so many outputs; with 0, the network gives its features ``(B, 64 * width)``."""
        self.num_classes = num_classes
        self.fc = nn.Linear(64 * self.width, num_classes) if num_classes else nn.Identity()


def build(
    name: str,
    num_classes: int = 10,
    distillation: bool = False,
    img_size: tuple[int, int] | None = None,  # noqa: ARG001 (asked of every network of the package)
) -> WideResNet:
    """A network of :data:`VARIANTS` with random weights, for images of any size.

    Raises:
        InputError: it has no second head.
    """
    if distillation:
        raise InputError(f"'{name}' has no distillation head")
    depth, width, normalised = VARIANTS[name]
    half = (0.5, 0.5, 0.5) if normalised else None
    return WideResNet(depth, width, num_classes, half, half)


def load_official(
    source: str | Path | Mapping[str, Any],
    normalisation: Normalisation = "auto",
    img_size: tuple[int, int] | None = None,  # noqa: ARG001
) -> WideResNet:
    """A wide residual network from a RobustBench file, in evaluation mode.

    Args:
        source: a path or a state dict; ``module.`` and ``model.`` before the keys are dropped.
        normalisation: of the images, mean and deviation. ``auto``: the file's ``mu`` and ``sigma`` where it has them;
            else 0.5 for WRN-40-2 (the AugMix network, whose file lacks them), and none for others.
        img_size: makes no difference.

    Raises:
        InputError: the weights do not fit; the keys are named.
    """
    state = {key.removeprefix("model."): value for key, value in read_state_dict(source).items()}
    return from_state(state, normalisation, "state dict" if isinstance(source, Mapping) else str(source))


def from_state(given: StateDict, normalisation: Normalisation, label: str) -> WideResNet:
    """:func:`load_official` of weights whose keys have no prefix; ``label`` names the file in messages."""
    state = {key: value for key, value in given.items() if key not in ("mu", "sigma")}
    depth, width, classes = _sizes(state, label)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    if normalisation == "auto":
        if "mu" in given and "sigma" in given:
            mean, std = (tuple(given[name].flatten().tolist()) for name in ("mu", "sigma"))
        elif (depth, width) == (40, 2):
            mean = std = (0.5, 0.5, 0.5)
    elif normalisation != "none":
        mean, std = normalisation
    model = WideResNet(depth, width, classes, mean, std)
    load_strict(model, state, label)
    return model.eval()


def _sizes(state: StateDict, label: str) -> tuple[int, int, int]:
    """Depth, width and classes of weights."""
    blocks = [int(found[1]) for key in state if (found := re.match(r"block1\.layer\.(\d+)\.", key))]
    head, shortcut = state.get("fc.weight"), state.get("bn1.weight")
    if not blocks or head is None or head.dim() != 2 or shortcut is None or len(shortcut) % 64:
        raise InputError(f"{label}: no wide residual network (expected block1.layer.0..., bn1.*, fc.*)")
    return 6 * (max(blocks) + 1) + 4, len(shortcut) // 64, len(head)
