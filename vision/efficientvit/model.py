"""EfficientViT M0-M5: memory-efficient vision transformer with cascaded group attention.

Paper: "EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention" (CVPR 2023,
arXiv 2305.07027). Not the EfficientViT of MIT Han Lab. Attributes carry the names of the official release, so
that its state dicts load as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from vision.efficientvit.attention import LocalWindowAttention
from vision.efficientvit.layers import FFN, BNLinear, ConvBN, PatchMerging, Residual
from vision.errors import InputError, did_you_mean
from vision.preprocessing import Preprocessing

STRIDE = 16  # of the patch embedding; stages 2 and 3 halve the map again


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
