"""A small network with meta networks, and what tests ask of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vision.ecotta import EcoTTA, WideResNet

CLASSES = 6
ALL = 9.0  # a margin, in ln C, that no entropy reaches


def images(seed: int = 0, size: int = 8, side: int = 16) -> Tensor:
    return torch.rand(size, 3, side, side, generator=torch.Generator().manual_seed(seed))


def source(seed: int = 0) -> WideResNet:
    """Six blocks, whose running statistics are no batch's."""
    torch.manual_seed(seed)
    network = WideResNet(16, 1, CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"), -0.3, 0.3)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    nn.init.normal_(network.get_parameter("fc.weight"))  # predictions that differ
    return network


def attached(seed: int = 0, **options: Any) -> EcoTTA:
    given: dict[str, Any] = {"calibrate": False, "input_size": (16, 16), "margin": ALL, **options}
    return EcoTTA.attach(source(seed), **given)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def step_of(network: EcoTTA, x: Tensor) -> list[Tensor]:
    """How a step changes the parameters."""
    before = [parameter.detach().clone() for parameter in network.trained()]
    network.adapt(x)
    return [after.detach() - start for after, start in zip(network.trained(), before, strict=True)]
