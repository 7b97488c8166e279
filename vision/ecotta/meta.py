"""Meta networks: what is trained beside each group of frozen blocks (Sec. 3.1, Fig. 3)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.errors import InputError

Form = Literal["conv", "separable", "residual"]


def _spatial(shape: torch.Size, channels_last: bool) -> tuple[int, int]:
    return (shape[1], shape[2]) if channels_last else (shape[2], shape[3])


class MetaConv(nn.Module):
    """``BN(x_k) + ReLU(BN'(Conv(x_{k-1})))``, of feature maps ``(B, C, H, W)``.

    Without a warm-up on source data, or :meth:`calibrate`, an attached network is useless: nothing in it begins as
    the identity.

    Args:
        before: shape of the group's input, ``(B, C, H, W)``.
        after: shape of its output; the convolution's stride is what the group's is.
        kernel: 3, or 1 for networks of bottlenecks.
        separable: a depthwise and a pointwise convolution in the place of a full one (ours).
    """

    def __init__(self, before: torch.Size, after: torch.Size, kernel: int = 3, separable: bool = False) -> None:
        super().__init__()
        stride = tuple(max(1, round(b / a)) for b, a in zip(before[2:], after[2:], strict=True))
        options = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "bias": False}
        self.meta_bn = nn.BatchNorm2d(after[1])
        conv: nn.Module = nn.Conv2d(before[1], after[1], **options)  # type: ignore[arg-type]
        if separable:
            depthwise = nn.Conv2d(before[1], before[1], groups=before[1], **options)  # type: ignore[arg-type]
            conv = nn.Sequential(depthwise, nn.Conv2d(before[1], after[1], 1, bias=False))
        self.conv_block = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(after[1])))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """``x_{k-1}`` and ``x_k`` to the adapted output, of the shape of ``x_k``."""
        branch = F.relu(self.conv_block(before))
        if branch.shape[2:] != after.shape[2:]:  # the group's stride is not its sizes' ratio
            branch = F.adaptive_avg_pool2d(branch, _spatial(after.shape, channels_last=False))
        out: Tensor = self.meta_bn(after) + branch
        return out

    @torch.no_grad()
    def calibrate(self, after: Tensor) -> None:
        """Makes it nearly the identity on these features: without source data, in the place of the warm-up (ours).

        The branch begins small instead of at zero, where its rectifier would let no gradient through.
        """
        variance, mean = torch.var_mean(after.float(), (0, 2, 3), correction=0)
        bn = self.conv_block.bn
        assert isinstance(bn, nn.BatchNorm2d)
        self.meta_bn.weight.copy_(torch.sqrt(variance + self.meta_bn.eps))
        self.meta_bn.bias.copy_(mean)
        for buffer, value in ((self.meta_bn.running_mean, mean), (self.meta_bn.running_var, variance)):
            assert buffer is not None
            buffer.copy_(value)
        bn.weight.fill_(0.05)
        bn.bias.zero_()


class MetaResidual(nn.Module):
    """``x_k + Linear(GELU(Linear(LN(x_{k-1}))))``, the last layer zero at first (ours).

    For networks without batch normalisation: nothing in it depends on the other images of a batch, and it begins as
    the identity. Takes tokens ``(B, N, C)`` and feature maps, with their channels last or second.

    Args:
        before: shape of the group's input.
        after: shape of its output; where it has fewer places, the input's are averaged.
        channels_last: of feature maps.
    """

    def __init__(self, before: torch.Size, after: torch.Size, channels_last: bool = True) -> None:
        super().__init__()
        self.channels_last = channels_last or len(before) == 3
        if len(before) != len(after) or (len(before) == 3 and before[1] != after[1]):
            raise InputError(
                f"attach: a group of blocks makes features {tuple(after)} of {tuple(before)}; cut where tokens keep "
                "their number (partition=[[names], ...])"
            )
        inner, outer = (shape[-1] if self.channels_last else shape[1] for shape in (before, after))
        self.norm = nn.LayerNorm(inner)
        self.fc1 = nn.Linear(inner, max(8, inner // 4))
        self.fc2 = nn.Linear(max(8, inner // 4), outer)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """``x_{k-1}`` and ``x_k`` to the adapted output, of the shape of ``x_k``."""
        if before.dim() == 4:
            size = _spatial(after.shape, self.channels_last)
            if _spatial(before.shape, self.channels_last) != size:
                mapped = before.movedim(3, 1) if self.channels_last else before
                before = F.adaptive_avg_pool2d(mapped, size)
                before = before.movedim(1, 3) if self.channels_last else before
            if not self.channels_last:
                return after + self._branch(before.movedim(1, 3)).movedim(3, 1)
        return after + self._branch(before)

    def _branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out

    def calibrate(self, after: Tensor) -> None:
        """Nothing: it is the identity already."""


def make_meta(form: Form, before: torch.Size, after: torch.Size, kernel: int, channels_last: bool) -> nn.Module:
    """The meta network of a group of blocks whose features are of these shapes.

    Raises:
        InputError: the form takes feature maps only, or the shapes do not fit.
    """
    if form == "residual":
        return MetaResidual(before, after, channels_last)
    if len(before) != 4 or len(after) != 4:
        raise InputError(f"attach: form '{form}' takes feature maps, the blocks give {tuple(after)}: use 'residual'")
    return MetaConv(before, after, kernel, separable=form == "separable")
