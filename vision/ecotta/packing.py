"""One bit for a truth value: what a rectifier has to remember of its input, in an eighth of a byte mask's memory.

On a CPU NumPy's functions do it, several times as fast as PyTorch's comparisons and conversions are there.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Eight bytes that are 0 or 1, read as one integer and multiplied by the first number, have their bits in the topmost
# byte. The second one spreads a byte over eight, the third leaves a bit in each; adding the fourth moves each of these
# to the top of its byte, and the fifth leaves it at the bottom, seven places further down.
_GATHER = 0x0102040810204080
_SPREAD = 0x0101010101010101
_SELECT = 0x8040201008040201 - 2**64  # as a signed integer
_RAISE = sum((0x80 - (1 << bit)) << 8 * bit for bit in range(8))
_LOWER = 0x0101010101010101


def by_numpy(x: Tensor) -> bool:
    """Whether NumPy packs this tensor: a real one (no stand-in for one) on a CPU, of a type that NumPy has."""
    return x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter) and x.dtype != torch.bfloat16


def pack_between(x: Tensor, low: float, high: float = math.inf) -> Tensor:
    """Where ``low < x < high``, a bit an element.

    Args:
        x: of any shape and strides without gaps.
        low: the lower bound.
        high: the upper bound.

    Returns:
        uint8 ``(ceil(n / 8),)``, in the order of the memory of ``x``.
    """
    flat = x.detach().as_strided((x.numel(),), (1,))
    if by_numpy(x):
        values = flat.numpy()
        inside = values > low if high == math.inf else (values > low) & (values < high)
        return torch.from_numpy(np.packbits(inside))
    inside_ = flat > low if high == math.inf else (flat > low) & (flat < high)
    bytes_ = inside_.view(torch.uint8)
    if rest := -len(bytes_) % 8:
        bytes_ = torch.nn.functional.pad(bytes_, (0, rest))
    # An arithmetic shift repeats the sign, which the conversion cuts off.
    return bytes_.view(torch.int64).mul(_GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(packed: Tensor, like: Tensor, numpy: bool) -> Tensor:
    """The bits as uint8, 0 or 1, in the shape and strides of ``like`` (a tensor on the meta device will do).

    ``numpy`` is what :func:`by_numpy` told of the tensor when it was packed: the order of the bits differs.
    """
    if numpy:
        flat = torch.from_numpy(np.unpackbits(packed.numpy(), count=like.numel()))
    else:
        spread = packed.to(torch.int64).mul_(_SPREAD).bitwise_and_(_SELECT)
        flat = spread.add_(_RAISE).bitwise_right_shift_(7).bitwise_and_(_LOWER).view(torch.uint8)
    return flat.as_strided(like.shape, like.stride())
