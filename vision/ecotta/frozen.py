"""Running a frozen network inside a trained one: what its operations keep, and the statistics that it uses.

PyTorch's convolution keeps its input even where its weight is frozen, batch normalisation on batch statistics truly
needs its input for the exact gradient, and a rectifier keeps 32 bits where one decides. :class:`FrozenOps` stands
between a network and these functions, whichever modules call them, so that the network itself is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from vision.ecotta.packing import by_numpy, pack_between, unpack
from vision.errors import InputError

Memory = Literal["eager", "memsave", "checkpoint"]
_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default


class _Convolution(Function):
    """A convolution that keeps its weight alone, for the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.like, ctx.options = torch.empty_like(x, device="meta"), options
        if torch.is_autocast_enabled(x.device.type):
            # Autocasting knows the functions that are called from outside, not this one.
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return torch.convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        (weight,) = ctx.saved_tensors
        # The kernel looks at the input's shape only.
        nothing = grad.new_empty(1).expand(ctx.like.shape)
        found = _CONVOLUTION_BACKWARD(grad, nothing, weight.to(grad.dtype), None, *ctx.options, (True, False, False))[0]
        return found.to(ctx.like.dtype), None, None, None


class _Normalisation(Function):
    """A normalisation by constants, which keeps the factor of each channel alone; what it gives was computed before."""

    @staticmethod
    def forward(ctx: Any, _x: Tensor, normalised: list[Tensor], factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return normalised.pop()  # not an argument of its own: it is no input of the network's

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (factor,) = ctx.saved_tensors
        return grad * factor.to(grad.dtype).view(1, -1, *[1] * (grad.dim() - 2)), None, None


def _normalised(
    x: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Normalised by the given statistics or else the batch's; and the factor of each channel."""
    if mean is None or variance is None:
        out, _, factor = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        return out, factor * weight
    factor = torch.rsqrt(variance + eps) * weight
    return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled), factor


class _NormalisedRectifier(Function):
    """A normalisation by constants and the rectifier behind it, of which only the rectifier is still to be done.

    One pass over memory less than the two after each other, and one tensor less in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, _x: Tensor, normalised: list[Tensor], factor: Tensor) -> Tensor:
        out = normalised.pop()
        packed = pack_between(out, 0.0)
        ctx.save_for_backward(packed, factor)
        ctx.like, ctx.numpy = torch.empty_like(out, device="meta"), by_numpy(out)
        return out.relu_()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        packed, factor = ctx.saved_tensors
        factor = factor.to(grad.dtype).view(1, -1, *[1] * (grad.dim() - 2))
        return unpack(packed, ctx.like, ctx.numpy).to(grad.dtype).mul_(grad).mul_(factor), None, None


class _Rectifier(Function):
    """A function with the slope 1 in an interval and another constant outside, which keeps one bit an element."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], low: float, high: float, slope: float, written: bool
    ) -> Tensor:
        # Before the function, which may overwrite its input.
        packed = pack_between(x, low, high)
        out = function(x)
        if written:
            ctx.mark_dirty(x)
        ctx.save_for_backward(packed)
        ctx.like, ctx.numpy, ctx.slope = torch.empty_like(x, device="meta"), by_numpy(x), slope
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        (packed,) = ctx.saved_tensors
        slopes = unpack(packed, ctx.like, ctx.numpy).to(grad.dtype)
        if ctx.slope:
            slopes = slopes.mul_(1 - ctx.slope).add_(ctx.slope)
        return slopes.mul_(grad), None, None, None, None, None


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of ``(B, C, ...)``: two tensors ``(C,)``."""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    precise = x if x.dtype == torch.float64 else x.float()
    variance, mean = torch.var_mean(precise, axes, correction=0)
    return mean, variance


def mixed_statistics(x: Tensor, mean: Tensor, variance: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    """AdaptBN: ``n / (n + N)`` of the batch's statistics and the rest of the source's, ``n`` the number of images.

    Args:
        x: ``(n, C, ...)``.
        mean: of the source, ``(C,)``.
        variance: of the source, ``(C,)``.
        prior: ``N``, how many images the source's statistics count for.
    """
    share = len(x) / (len(x) + prior)
    own_mean, own_variance = batch_statistics(x)
    return share * own_mean + (1 - share) * mean, share * own_variance + (1 - share) * variance


class FrozenOps(TorchFunctionMode):
    """In its ``with`` block, convolutions, batch normalisations and rectifiers hold as little as they may.

    A convolution or a normalisation with trained parameters is PyTorch's own; one that is frozen keeps nothing of its
    input. Batch normalisations in evaluation mode use the statistics that ``prior`` says and never write their
    buffers; those in training mode are left alone. Rectifiers overwrite the output of a normalisation alone, where the
    network asks for that; what they give must be used, and not what they were given. Other functions (smooth
    activations, layer normalisation, attention) are PyTorch's own.

    Args:
        prior: statistics of batch normalisation: 0 for the batch's, infinity for the running ones, between them
            AdaptBN's mixture with ``prior`` images' weight on the running ones.
        memory: ``eager`` for PyTorch's own functions, else those above (``checkpoint`` is the caller's business).
        constant_statistics: gradients take the batch statistics of frozen normalisations for constants; only then
            does a frozen normalisation keep nothing of its input. By default with ``memsave``.
    """

    def __init__(self, prior: float = 0.0, memory: Memory = "eager", constant_statistics: bool | None = None) -> None:
        super().__init__()
        self.prior, self.sparing = prior, memory != "eager"
        # A normalisation's node, input and factors, for a rectifier that comes next; no longer, for memory's sake.
        self._latest: tuple[Any, Tensor, Tensor] | None = None
        self.constant = memory == "memsave" if constant_statistics is None else constant_statistics

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None:
            return func(*args, **(kwargs or {}))
        if handler is not FrozenOps._relu:
            self._latest = None
        return handler(self, func, *args, **(kwargs or {}))

    # ------------------------------------------------------------------------------------------------ convolution
    def _convolution(
        self,
        func: Any,
        input: Tensor,  # noqa: A002 (PyTorch's name)
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or not self._spares(input, weight, bias):
            found: Tensor = func(input, weight, bias, stride, padding, dilation, groups)
            return found
        options = (_pair(stride), _pair(padding), _pair(dilation), False, [0, 0], groups)
        return cast("Tensor", _Convolution.apply(input, weight, bias, options))

    def _spares(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether a convolution need not keep its input: its gradient is asked for, and none of its weights'."""
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        return self.sparing and not trained and _differentiated(x)

    def _transposed(
        self,
        func: Any,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        if not self._spares(input, weight, bias):
            found: Tensor = func(input, weight, bias, stride, padding, output_padding, groups, dilation)
            return found
        options = (_pair(stride), _pair(padding), _pair(dilation), True, _pair(output_padding), groups)
        return cast("Tensor", _Convolution.apply(input, weight, bias, options))

    # ---------------------------------------------------------------------------------------------- normalisation
    def _batch_norm(
        self,
        func: Any,
        input: Tensor,  # noqa: A002
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if training and running_mean is not None:
            found: Tensor = func(input, running_mean, running_var, weight, bias, training, momentum, eps)
            return found
        out = self._normalised(input, running_mean, running_var, weight, bias, eps)
        out.overwritable = True  # type: ignore[attr-defined]
        return out

    def _normalised(
        self,
        x: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        own = self.prior == 0 or mean is None or variance is None
        if own and x.numel() == x.shape[1]:
            raise InputError(
                "one image gives a batch normalisation one value a channel, which has no variance: mix in the "
                "source's statistics (prior=16)"
            )
        trained = weight is not None and weight.requires_grad
        constant = self.constant and not trained
        if constant and self.sparing and _differentiated(x):
            if own:
                mean = variance = None
            elif self.prior != math.inf:
                mean, variance = mixed_statistics(x.detach(), mean, variance, self.prior)  # type: ignore[arg-type]
            ones = x.new_ones(x.shape[1], dtype=torch.float32)
            weight = ones if weight is None else weight
            bias = ones * 0 if bias is None else bias
            with torch.no_grad():
                computed, factor = _normalised(x, mean, variance, weight, bias, eps)
            out = cast("Tensor", _Normalisation.apply(x, [computed], factor))
            self._latest = (out.grad_fn, x, factor)
            return out
        if own and not (constant and _differentiated(x)):
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
        if self.prior != math.inf:
            source = x.detach() if constant else x
            if own:
                mean, variance = batch_statistics(source)
            else:
                mean, variance = mixed_statistics(source, mean, variance, self.prior)  # type: ignore[arg-type]
        assert mean is not None
        assert variance is not None
        if mean.requires_grad:
            # The library's function takes given statistics for constants.
            shape = (1, -1, *[1] * (x.dim() - 2))
            factor = torch.rsqrt(variance + eps) if weight is None else torch.rsqrt(variance + eps) * weight
            out = (x - mean.view(shape)) * factor.view(shape)
            return (out if bias is None else out + bias.view(shape)).to(x.dtype)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    # ------------------------------------------------------------------------------------------------- rectifiers
    def _relu(self, func: Any, input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
        latest, self._latest = self._latest, None
        written = inplace and hasattr(input, "overwritable")
        # Not where something was added to the output in its place: its node is another then.
        if written and latest is not None and latest[0] is input.grad_fn:
            return cast("Tensor", _NormalisedRectifier.apply(latest[1], [input.detach()], latest[2]))
        function = torch.relu_ if written else torch.relu
        return self._rectified(input, function, 0.0, math.inf, 0.0, written)

    def _clipped(
        self,
        func: Any,
        input: Tensor,  # noqa: A002
        min_val: float = -1.0,
        max_val: float = 1.0,
        inplace: bool = False,
    ) -> Tensor:
        written = inplace and hasattr(input, "overwritable")
        clamp = torch.clamp_ if written else torch.clamp
        return self._rectified(input, lambda x: clamp(x, min_val, max_val), min_val, max_val, 0.0, written)

    def _relu6(self, func: Any, input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002
        return self._clipped(func, input, 0.0, 6.0, inplace)

    def _leaky(self, func: Any, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:  # noqa: A002
        return self._rectified(input, lambda x: F.leaky_relu(x, negative_slope), 0.0, math.inf, negative_slope, False)

    def _rectified(
        self, x: Tensor, function: Callable[[Tensor], Tensor], low: float, high: float, slope: float, written: bool
    ) -> Tensor:
        if not self.sparing or not _differentiated(x):
            return function(x)
        if not torch.ops.aten.is_non_overlapping_and_dense(x):
            x = x.contiguous()  # the bits are those of its memory, in which part of a tensor has gaps
        return cast("Tensor", _Rectifier.apply(x, function, low, high, slope, written))


def _differentiated(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


_HANDLERS: dict[Any, Any] = {
    torch.conv2d: FrozenOps._convolution,
    torch.conv_transpose2d: FrozenOps._transposed,
    F.batch_norm: FrozenOps._batch_norm,
    F.relu: FrozenOps._relu,
    torch.relu: FrozenOps._relu,
    Tensor.relu: FrozenOps._relu,
    F.relu6: FrozenOps._relu6,
    F.hardtanh: FrozenOps._clipped,
    F.leaky_relu: FrozenOps._leaky,
}
