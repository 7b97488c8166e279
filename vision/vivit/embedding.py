"""How a video becomes tokens, and how an image transformer's weights become a video's (arXiv 2103.15691, sec. 3.4)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from vision.errors import InputError

Inflation = Literal["central_frame", "average", "average_arp"]
SizeChange = Literal["resize", "tile", "resize_tile"]


class TubeletEmbed(nn.Module):
    """Tubelets to tokens by a 3-D convolution whose stride is its kernel, in the place of a patch embedding.

    Args:
        patches: the image transformer's embedding; its kernel starts this one by the central frame.
        frames: depth of a tubelet.
    """

    def __init__(self, patches: PatchEmbed, frames: int) -> None:
        super().__init__()
        self.patch_size, self.grid_size, self.num_patches = patches.patch_size, patches.grid_size, patches.num_patches
        flat = patches.proj
        height, width = flat.kernel_size
        size = (frames, height, width)
        self.proj = nn.Conv3d(flat.in_channels, flat.out_channels, size, size, bias=flat.bias is not None)
        self.norm = patches.norm
        self.flatten = patches.flatten  # networks that take images of any size want rows and columns
        with torch.no_grad():
            self.proj.weight.copy_(inflate(flat.weight, frames))
            if flat.bias is not None:
                self.proj.bias.copy_(flat.bias)  # type: ignore[union-attr]

    def forward(self, tubelets: Tensor) -> Tensor:
        """``(N, 3, frames, H, W)`` to ``(N, patches, D)``, row by row, or ``(N, rows, columns, D)``."""
        plane = self.proj(tubelets).squeeze(2).permute(0, 2, 3, 1)
        tokens: Tensor = self.norm(plane.flatten(1, 2) if self.flatten else plane)
        return tokens


def inflate(kernel: Tensor, frames: int, how: Inflation = "central_frame") -> Tensor:
    """A 3-D kernel from an image transformer's, so that training starts from what the image transformer sees.

    Args:
        kernel: ``(D, C, h, w)``.
        frames: depth of a tubelet.
        how: ``central_frame`` looks at frame ``frames // 2`` alone; ``average`` at the mean of the frames
            ("filter inflation"); ``average_arp`` weighs them by approximate rank pooling.

    Returns:
        ``(D, C, frames, h, w)``.

    Raises:
        InputError: ``how`` is none of these.
    """
    if how not in get_args(Inflation):
        raise InputError(f"inflation must be one of {', '.join(get_args(Inflation))}, got {how}")
    if how == "central_frame":
        weights = torch.zeros(frames)
        weights[frames // 2] = 1.0
    elif how == "average":
        weights = torch.full((frames,), 1 / frames)
    else:
        # alpha_i = 2 (t - i + 1) - (t + 1) (H_t - H_{i-1}), i = 1 ... t, with the harmonic numbers H
        harmonic = [math.fsum(1 / j for j in range(1, i + 1)) for i in range(frames + 1)]
        alpha = [
            2 * (frames - i + 1) - (frames + 1) * (harmonic[frames] - harmonic[i - 1]) for i in range(1, frames + 1)
        ]
        weights = torch.tensor(alpha) / frames
    return kernel[:, :, None] * weights.to(kernel)[None, None, :, None, None]


def resize_positions(
    source: Tensor,
    target: Tensor,
    source_prefix: int,
    target_prefix: int,
    size_change: SizeChange = "resize",
    frames: int = 1,
) -> Tensor:
    """Positions of a square grid of patches for another grid, as the official code starts from an image model.

    The grid is resized linearly with its corners aligned (``scipy.ndimage.zoom`` of order 1), unlike timm's
    antialiased bicubic resampling. A prefix (the class token's position) is copied, never interpolated; where only the
    target has one, it keeps its own.

    Args:
        source: ``(1, source_prefix + n, D)``, n a square unless it is that of the target.
        target: ``(1, target_prefix + m, D)``, of which the prefix may be kept.
        source_prefix: positions before the grid.
        target_prefix: the same of the target.
        size_change: ``resize``; ``tile`` repeats the grid for each of ``frames`` (a joint model's tokens);
            ``resize_tile`` does both.
        frames: how often the grid is repeated.

    Returns:
        Positions shaped as ``target``.

    Raises:
        InputError: a grid that would have to be resized is not square, or the numbers do not come out even.
    """
    grid, wanted = source[:, source_prefix:], target.shape[1] - target_prefix
    if size_change != "resize":
        if wanted % frames:
            raise InputError(f"{wanted} positions cannot be shared by {frames} frames")
        wanted //= frames
    if size_change != "tile" and grid.shape[1] != wanted:
        old, new = math.isqrt(grid.shape[1]), math.isqrt(wanted)
        if old * old != grid.shape[1] or new * new != wanted:
            raise InputError(f"positions are resized for square grids only, not from {grid.shape[1]} to {wanted}")
        plane = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
        plane = F.interpolate(plane, (new, new), mode="bilinear", align_corners=True)
        grid = plane.permute(0, 2, 3, 1).reshape(1, wanted, -1)
    if grid.shape[1] != wanted:
        raise InputError(f"{grid.shape[1]} positions cannot be repeated to {target.shape[1] - target_prefix}")
    if size_change != "resize":
        grid = grid.repeat(1, frames, 1)
    return torch.cat([_prefix(source, target, source_prefix, target_prefix), grid], dim=1)


def resize_temporal_positions(source: Tensor, target: Tensor, source_prefix: int, target_prefix: int) -> Tensor:
    """Positions of tubelets in time for another number of tubelets: linear, ends aligned, prefixes as above.

    Args:
        source: ``(1, source_prefix + t, D)``.
        target: ``(1, target_prefix + T, D)``, of which the prefix may be kept.
        source_prefix: positions before the first tubelet's.
        target_prefix: the same of the target.
    """
    line, wanted = source[:, source_prefix:], target.shape[1] - target_prefix
    if line.shape[1] != wanted:
        line = F.interpolate(line.transpose(1, 2), wanted, mode="linear", align_corners=True).transpose(1, 2)
    return torch.cat([_prefix(source, target, source_prefix, target_prefix), line], dim=1)


def _prefix(source: Tensor, target: Tensor, source_prefix: int, target_prefix: int) -> Tensor:
    return source[:, :target_prefix] if source_prefix >= target_prefix else target[:, :target_prefix]
