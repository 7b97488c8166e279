"""Cascaded group attention within windows (section 3.1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.efficientvit.layers import ConvBN
from vision.errors import InputError


@lru_cache(maxsize=64)
def relative_index(height: int, width: int) -> Tensor:
    """Which entry of the bias table serves a pair of positions: ``|y1-y2| * width + |x1-x2|``.

    Returns:
        int64 ``(N, N)``, N = height * width, positions in row-major order. Shared: not to be written to.
    """
    # A tensor made in inference mode stays one, and could not be used in training when the cache gives it again.
    with torch.inference_mode(mode=False):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = y.flatten(), x.flatten()
        return (y[:, None] - y).abs() * width + (x[:, None] - x).abs()


def resize_bias(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], antialias: bool = False) -> Tensor:
    """Bicubic interpolation of bias tables for another window.

    Args:
        table: ``(heads, h*w)``.
        grid: (h, w) of the table.
        new_grid: (h', w') of the result.
        antialias: False is what the official fine-tuning code does, True what timm does. They differ by up to
            one unit on tables of unit variance.

    Returns:
        ``(heads, h'*w')``.
    """
    image = table.reshape(1, table.shape[0], *grid)
    resized = F.interpolate(image.float(), size=new_grid, mode="bicubic", align_corners=False, antialias=antialias)
    return resized.reshape(table.shape[0], -1).to(table.dtype)


class CascadedGroupAttention(nn.Module):
    """Each head attends within its own slice of the channels, and head i adds head i-1's output to its input.

    Section 3.1 of the paper ("Cascaded Group Attention").

    Args:
        dim: channels, a multiple of ``num_heads``.
        key_dim: channels of queries and keys of a head.
        num_heads: number of heads; each has ``dim / num_heads`` value channels.
        grid: (height, width) of the window that the bias table is made for.
        kernels: size of each head's depthwise convolution on the queries; spare entries are ignored.
    """

    def __init__(self, dim: int, key_dim: int, num_heads: int, grid: tuple[int, int], kernels: Sequence[int]) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"num_heads must divide the width: {num_heads} heads of {dim} channels")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise InputError(f"kernels must be odd, got {list(kernels)}")
        if len(kernels) < num_heads:
            raise InputError(f"kernels needs an entry for each of {num_heads} heads, got {list(kernels)}")
        self.key_dim = key_dim
        self.scale = key_dim**-0.5
        self.value_dim = dim // num_heads
        self.grid = grid
        self.qkvs = nn.ModuleList(ConvBN(dim // num_heads, 2 * key_dim + self.value_dim) for _ in range(num_heads))
        self.dws = nn.ModuleList(
            ConvBN(key_dim, key_dim, k, padding=k // 2, groups=key_dim) for k in list(kernels)[:num_heads]
        )
        self.proj = nn.Sequential(nn.ReLU(), ConvBN(dim, dim, bn_weight=0))
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, grid[0] * grid[1]))

    def bias(self, height: int, width: int) -> Tensor:
        """The bias of every head between all positions of a window, ``(heads, N, N)``.

        Computed from the parameter at each call, so that loading weights or changing the precision can never
        leave an old one behind. For a window of another shape than the table's the table is interpolated.
        """
        table: Tensor = self.attention_biases
        if (height, width) != self.grid:
            table = resize_bias(table, self.grid, (height, width))
        return table[:, relative_index(height, width).to(table.device)]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, dim, h, w) -> (B, dim, h, w)``; the map is one window."""
        height, width = int(x.shape[2]), int(x.shape[3])  # int: constants in an exported graph
        bias = self.bias(height, width)
        slices = torch.split(x, self.value_dim, dim=1)
        feature = slices[0]
        outputs = []
        for i, (qkv, dw) in enumerate(zip(self.qkvs, self.dws, strict=True)):
            if i:
                feature = feature + slices[i]
            q, k, v = qkv(feature).split([self.key_dim, self.key_dim, self.value_dim], dim=1)
            # Not flatten: in an exported graph it asks for the shape each time.
            q, k = (channels.reshape(-1, self.key_dim, height * width) for channels in (dw(q), k))
            v = v.reshape(-1, self.value_dim, height * width)
            attention = ((q * self.scale).transpose(1, 2) @ k + bias[i]).softmax(dim=-1)
            feature = (v @ attention.transpose(1, 2)).reshape(-1, self.value_dim, height, width)
            outputs.append(feature)
        out: Tensor = self.proj(torch.cat(outputs, dim=1))
        return out


class LocalWindowAttention(nn.Module):
    """Cascaded group attention within windows.

    A map that is not larger than the window is one window; a larger one is zero-padded at the bottom and right
    to a multiple of the window and cut. Padded positions are not masked: they act as keys and values, as in
    the official code.

    Args:
        resolution: (height, width) of the map that the bias table is made for.
        window: largest side of a window.
    """

    def __init__(
        self,
        dim: int,
        key_dim: int,
        num_heads: int,
        resolution: tuple[int, int],
        window: int,
        kernels: Sequence[int],
    ) -> None:
        super().__init__()
        self.window = window
        grid = (min(window, resolution[0]), min(window, resolution[1]))
        self.attn = CascadedGroupAttention(dim, key_dim, num_heads, grid, kernels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, dim, H, W) -> (B, dim, H, W)``."""
        dim, height, width = (int(size) for size in x.shape[1:])
        wh, ww = min(self.window, height), min(self.window, width)
        if (wh, ww) == (height, width):
            out: Tensor = self.attn(x)
            return out
        if height % wh or width % ww:
            x = F.pad(x, (0, -width % ww, 0, -height % wh))
        rows, columns = -(-height // wh), -(-width // ww)
        x = x.view(-1, dim, rows, wh, columns, ww).permute(0, 2, 4, 1, 3, 5).reshape(-1, dim, wh, ww)
        x = self.attn(x).view(-1, rows, columns, dim, wh, ww).permute(0, 3, 1, 4, 2, 5)
        return x.reshape(-1, dim, rows * wh, columns * ww)[:, :, :height, :width]
