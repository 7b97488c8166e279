"""Weights for tests."""

from __future__ import annotations

from torch import Tensor, nn

from tests.reference.cases import fill_state


def lively(network: nn.Module) -> dict[str, Tensor]:
    """A state dict by rule in which every part has an effect: answers depend on the image and on the bias tables."""
    state = fill_state({key: value.shape for key, value in network.state_dict().items()})
    for key, value in state.items():
        if key.endswith("attention_biases"):
            value *= 20  # unit variance
        elif value.ndim > 1:
            value *= 20 / value[0].numel() ** 0.5  # what comes out varies as much as what goes in
    return state
