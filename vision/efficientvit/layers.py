"""EfficientViT's convolutional parts: batch-normalised convolutions, feed-forward layer, patch merging."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from torch import Tensor, nn
from torch.nn.utils import skip_init


def _affine(bn: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch normalisation does in evaluation, in float64: ``x * scale + shift`` by channel."""
    mean, var = cast("Tensor", bn.running_mean).double(), cast("Tensor", bn.running_var).double()
    scale = bn.weight.double() / (var + bn.eps).sqrt()
    return scale, bn.bias.double() - mean * scale


class ConvBN(nn.Module):
    """Convolution without bias, then batch normalisation (official name ``Conv2d_BN``).

    Args:
        bn_weight: initial scale of the normalisation; 0 makes a residual branch start as the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bn_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.constant_(self.bn.weight, bn_weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, out_channels, H', W')``."""
        out: Tensor = self.bn(self.c(x))
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The same map as one convolution with bias; the source is left as it is.

        The product is formed in float64 and then cast, so that folding costs no accuracy.
        """
        scale, shift = _affine(self.bn)
        c = self.c
        # Without initial values, which would use up random numbers of a training that goes on.
        fused: nn.Conv2d = skip_init(
            nn.Conv2d,
            c.in_channels,
            c.out_channels,
            c.kernel_size,
            c.stride,
            c.padding,
            groups=c.groups,
            device=c.weight.device,
            dtype=c.weight.dtype,
        )
        fused.weight.copy_(c.weight.double() * scale[:, None, None, None])
        fused.bias.copy_(shift)  # type: ignore[union-attr]
        return fused


class Residual(nn.Module):
    """``x + m(x)``."""

    def __init__(self, m: nn.Module) -> None:
        super().__init__()
        self.m = m

    def forward(self, x: Tensor) -> Tensor:
        """Shape kept."""
        out: Tensor = x + self.m(x)
        return out


class FFN(nn.Module):
    """Feed-forward layer of 1x1 convolutions, expansion 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pw1 = ConvBN(dim, 2 * dim)
        self.act = nn.ReLU()
        self.pw2 = ConvBN(2 * dim, dim, bn_weight=0)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, dim, H, W)``, shape kept."""
        out: Tensor = self.pw2(self.act(self.pw1(x)))
        return out


class BNLinear(nn.Module):
    """Batch normalisation of the pooled features, then a linear classifier (official name ``BN_Linear``)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_features)
        self.l = nn.Linear(in_features, out_features)
        nn.init.trunc_normal_(self.l.weight, std=0.02)
        nn.init.zeros_(self.l.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_features)`` to ``(B, out_features)``."""
        out: Tensor = self.l(self.bn(x))
        return out

    @torch.no_grad()
    def fuse(self) -> nn.Linear:
        """The same map as one linear layer; the source is left as it is."""
        scale, shift = _affine(self.bn)
        placed = {"device": self.l.weight.device, "dtype": self.l.weight.dtype}
        sizes = self.l.in_features, self.l.out_features
        fused: nn.Linear = skip_init(nn.Linear, *sizes, **placed)
        fused.weight.copy_(self.l.weight.double() * scale)
        fused.bias.copy_(self.l.bias.double() + self.l.weight.double() @ shift)
        return fused


class PatchMerging(nn.Module):
    """Halves the map: inverted residual of expansion 4 with squeeze-and-excitation, no skip."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        hidden = 4 * dim
        self.conv1 = ConvBN(dim, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, stride=2, padding=1, groups=hidden)
        self.se = SqueezeExcite(hidden, 0.25)
        self.conv3 = ConvBN(hidden, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, dim, H, W)`` to ``(B, out_dim, ceil(H/2), ceil(W/2))``."""
        out: Tensor = self.conv3(self.se(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return out
