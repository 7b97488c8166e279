"""Parameters and multiply-accumulates."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vision.measure.state import unchanged


class Parameters(NamedTuple):
    """Numbers of parameters; one that several modules share counts once."""

    total: int
    trainable: int


def count_parameters(model: nn.Module) -> Parameters:
    """The parameters of a module, and those among them that a training would change (``requires_grad``)."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Parameters(sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained))


def count_macs(model: nn.Module, *inputs: Any) -> int:
    """Multiply-accumulates of one forward pass over ``inputs``, in evaluation mode.

    Counted are the convolutions, matrix products and attentions, as PyTorch carries them out (half of what its own
    counter of floating-point operations finds), so padding that is computed with is in the count. Additions,
    normalisations and activations are not, nor are recurrent layers (``nn.LSTM`` and its like), which the counter does
    not know. The model is left as it was.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    # PyTorch's fused attention layers are one operation, which the counter does not know.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with unchanged(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
