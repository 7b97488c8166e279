"""EfficientViT M0-M5: memory-efficient vision transformer with cascaded group attention.

Paper: "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention" (CVPR 2023,
arXiv 2305.07027). Not the EfficientViT of MIT Han Lab. Attributes carry the names of the official release, so
that its state dicts load as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import SqueezeExcite
from torch import Tensor, nn
from torch.nn.utils import skip_init

from vision.errors import InputError, did_you_mean
from vision.preprocessing import Preprocessing

STRIDE = 16  # of the patch embedding; stages 2 and 3 halve the map again


# ---------------------------------------------------------------------------------------------- small modules
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
        fused: nn.Conv2d = skip_init(  # type: ignore[no-untyped-call]
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
        fused: nn.Linear = skip_init(nn.Linear, *sizes, **placed)  # type: ignore[no-untyped-call]
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


# -------------------------------------------------------------------------------------------------- attention
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


class EfficientViTBlock(nn.Module):
    """The sandwich block: depthwise convolution and FFN on either side of one attention, all residual."""

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
        self.dw0 = Residual(ConvBN(dim, dim, 3, padding=1, groups=dim, bn_weight=0))
        self.ffn0 = Residual(FFN(dim))
        self.mixer = Residual(LocalWindowAttention(dim, key_dim, num_heads, resolution, window, kernels))
        self.dw1 = Residual(ConvBN(dim, dim, 3, padding=1, groups=dim, bn_weight=0))
        self.ffn1 = Residual(FFN(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, dim, H, W)``, shape kept."""
        out: Tensor = self.ffn1(self.dw1(self.mixer(self.ffn0(self.dw0(x)))))
        return out


# ---------------------------------------------------------------------------------------------------- network
def stage_resolutions(img_size: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of the maps of the three stages, for an input of ``img_size`` pixels."""
    height, width = (-(-side // STRIDE) for side in img_size)
    sizes = [(height, width)]
    for _ in range(2):
        height, width = (height - 1) // 2 + 1, (width - 1) // 2 + 1
        sizes.append((height, width))
    return sizes


def padded_share(img_size: tuple[int, int], window_size: Sequence[int] = (7, 7, 7)) -> float:
    """How many times as many positions as the maps have go through attention (1.0: no padding), worst stage."""
    worst = 1.0
    for (height, width), window in zip(stage_resolutions(img_size), window_size, strict=True):
        wh, ww = min(window, height), min(window, width)
        worst = max(worst, (height + -height % wh) * (width + -width % ww) / (height * width))
    return worst


def _warn_of_padding(img_size: tuple[int, int], window_size: Sequence[int]) -> None:
    share = padded_share(img_size, window_size)
    if share == 1.0:
        return
    clean = []
    for side in img_size:
        sizes = [s for s in range(STRIDE, 2 * side + 8 * STRIDE, STRIDE) if padded_share((s, s), window_size) == 1.0]
        smaller, larger = [s for s in sizes if s <= side], [s for s in sizes if s > side]
        clean.append(" or ".join(str(s) for s in smaller[-1:] + larger[:1]))
    nearest = clean[0] if img_size[0] == img_size[1] else f"{clean[0]} (height), {clean[1]} (width)"
    warnings.warn(
        f"EfficientViT at {img_size[0]}x{img_size[1]} pads its attention windows (up to {share:.2f} times the "
        f"positions in a stage), and the padding takes part in the attention; the nearest sizes without padding: "
        f"{nearest}",
        stacklevel=3,
    )


def check_images(x: Tensor, in_chans: int) -> None:
    """Raises :class:`InputError` unless ``x`` is a batch of images that the network takes."""
    if x.ndim != 4 or x.shape[1] != in_chans or min(x.shape[2:]) < STRIDE:
        raise InputError(
            f"EfficientViT takes (batch, {in_chans}, height, width) of at least {STRIDE} pixels a side, "
            f"got {tuple(x.shape)}"
        )


class EfficientViT(nn.Module):
    """EfficientViT (M0-M5 are its registered settings, see :data:`VARIANTS`).

    Any input of at least 16 pixels a side may be given to ``forward``, rectangular too: windows follow the size
    of the maps, and where a window then differs from the one that the tables were made for (``img_size``), the
    tables are interpolated (bicubic, as in the official fine-tuning code).

    Args:
        img_size: pixels, one side or (height, width), that the bias tables are made for.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 leaves the pooled features.
        embed_dim: channels of the three stages.
        key_dim: channels of queries and keys of a head, by stage.
        depth: blocks by stage.
        num_heads: heads by stage.
        window_size: largest window side by stage.
        kernels: query convolution of each head, shared by the stages.
        distillation: a second head for a teacher's decision (DeiT). In training the forward pass then returns
            the pair (head, head_dist), in evaluation their mean.
        patch_size: accepted because official configurations carry it; only 16 exists.

    Raises:
        InputError: lengths that do not agree, heads that do not divide a width, another patch size.
    """

    preprocessing = Preprocessing()

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: Sequence[int] = (64, 128, 192),
        key_dim: Sequence[int] = (16, 16, 16),
        depth: Sequence[int] = (1, 2, 3),
        num_heads: Sequence[int] = (4, 4, 4),
        window_size: Sequence[int] = (7, 7, 7),
        kernels: Sequence[int] = (5, 5, 5, 5),
        distillation: bool = False,
        patch_size: int = STRIDE,
    ) -> None:
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(size) != 2:
            raise InputError(f"img_size must be one side or (height, width), got {img_size}")
        if patch_size != STRIDE:
            raise InputError(f"patch_size of EfficientViT is {STRIDE}, got {patch_size}")
        if min(size) < STRIDE:
            raise InputError(f"img_size must be at least {STRIDE} pixels a side, got {size[0]}x{size[1]}")
        for name, values in (
            ("embed_dim", embed_dim),
            ("key_dim", key_dim),
            ("depth", depth),
            ("num_heads", num_heads),
            ("window_size", window_size),
        ):
            if len(values) != 3:
                raise InputError(f"{name} needs one entry for each of the three stages, got {list(values)}")
            if min(values) < 1:
                raise InputError(f"{name} must be positive, got {list(values)}")
        if in_chans < 1 or num_classes < 0:
            raise InputError(
                f"in_chans must be positive and num_classes not negative, got {in_chans} and {num_classes}"
            )
        if embed_dim[0] % 8:
            raise InputError(
                f"embed_dim[0] must be a multiple of 8 (the stem starts with an eighth), got {embed_dim[0]}"
            )
        _warn_of_padding(size, window_size)

        self.img_size = size
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = embed_dim[-1]
        self.distillation = distillation

        widths = [in_chans, embed_dim[0] // 8, embed_dim[0] // 4, embed_dim[0] // 2, embed_dim[0]]
        stem: list[nn.Module] = []
        for in_width, out_width in pairwise(widths):
            stem += [ConvBN(in_width, out_width, 3, stride=2, padding=1), nn.ReLU()]
        self.patch_embed = nn.Sequential(*stem[:-1])

        resolutions = stage_resolutions(size)
        stages = []
        for i, dim in enumerate(embed_dim):
            blocks: list[nn.Module] = []
            if i:
                before = embed_dim[i - 1]
                blocks = [self._mixing(before), PatchMerging(before, dim), self._mixing(dim)]
            blocks += [
                EfficientViTBlock(dim, key_dim[i], num_heads[i], resolutions[i], window_size[i], kernels)
                for _ in range(depth[i])
            ]
            stages.append(nn.Sequential(*blocks))
        self.blocks1, self.blocks2, self.blocks3 = stages
        self.head = self._classifier()
        self.head_dist = self._classifier() if distillation else None

    @staticmethod
    def _mixing(dim: int) -> nn.Sequential:
        return nn.Sequential(Residual(ConvBN(dim, dim, 3, padding=1, groups=dim)), Residual(FFN(dim)))

    def _classifier(self) -> nn.Module:
        return BNLinear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head, or both heads, by new ones of ``num_classes`` outputs (0: none)."""
        self.num_classes = num_classes
        weight = next(self.parameters())
        self.head = self._classifier().to(weight.device, weight.dtype)
        self.head_dist = self._classifier().to(weight.device, weight.dtype) if self.distillation else None

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits (as in timm)."""
        return self.head.l if isinstance(self.head, BNLinear) else self.head

    def no_weight_decay(self) -> set[str]:
        """Parameters that take no weight decay although they have two dimensions: the bias tables."""
        return {name for name, _ in self.named_parameters() if name.endswith("attention_biases")}

    def forward_features(self, x: Tensor) -> Tensor:
        """``(B, in_chans, H, W) -> (B, embed_dim[2], h, w)``, the map of the last stage (stride 64).

        Raises:
            InputError: the input is not a batch of images of ``in_chans`` channels and at least 16 pixels a side.
        """
        check_images(x, self.in_chans)
        out: Tensor = self.blocks3(self.blocks2(self.blocks1(self.patch_embed(x))))
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Pools a map of :meth:`forward_features` to ``(B, embed_dim[2])`` and, unless ``pre_logits``, classifies."""
        x = x.mean(dim=(2, 3))
        if pre_logits:
            return x
        out: Tensor = self.head(x)
        if self.head_dist is None:
            return out
        teacher: Tensor = self.head_dist(x)
        return (out, teacher) if self.training else (out + teacher) / 2

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """``(B, in_chans, H, W) -> (B, num_classes)`` logits; a pair of them in training with ``distillation``."""
        return self.forward_head(self.forward_features(x))


VARIANTS: dict[str, dict[str, Any]] = {
    "efficientvit_m0": {"embed_dim": (64, 128, 192), "num_heads": (4, 4, 4), "kernels": (5, 5, 5, 5)},
    "efficientvit_m1": {"embed_dim": (128, 144, 192), "num_heads": (2, 3, 3), "kernels": (7, 5, 3, 3)},
    "efficientvit_m2": {"embed_dim": (128, 192, 224), "num_heads": (4, 3, 2), "kernels": (7, 5, 3, 3)},
    "efficientvit_m3": {"embed_dim": (128, 240, 320), "num_heads": (4, 3, 4), "kernels": (5, 5, 5, 5)},
    "efficientvit_m4": {"embed_dim": (128, 256, 384), "num_heads": (4, 4, 4), "kernels": (7, 5, 3, 3)},
    "efficientvit_m5": {
        "embed_dim": (192, 288, 384),
        "depth": (1, 3, 4),
        "num_heads": (3, 3, 4),
        "kernels": (7, 5, 3, 3),
    },
}
"""Table 1 of the paper: what each variant sets; the rest are :class:`EfficientViT`'s defaults."""


def variant_config(name: str) -> dict[str, Any]:
    """The settings of ``efficientvit_m0`` ... ``efficientvit_m5``.

    Raises:
        InputError: there is no variant of that name.
    """
    if name not in VARIANTS:
        raise InputError(
            f"no EfficientViT variant '{name}'{did_you_mean(name, VARIANTS)}; there are {', '.join(VARIANTS)}"
        )
    return VARIANTS[name]


def build(name: str, **settings: Any) -> EfficientViT:
    """A new network of the named variant; ``settings`` are further arguments of :class:`EfficientViT`."""
    return EfficientViT(**{**variant_config(name), **settings})
