"""The temporal transformer: a few pre-norm blocks over the vectors of a clip's tubelets."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from timm.layers import DropPath, GELUTanh
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vision.errors import InputError

Pool = Literal["token", "mean", "max", "sum"]
EPS = 1e-6


def pool_tokens(tokens: Tensor, prefix: int, how: Pool) -> Tensor:
    """One vector of ``(..., prefix + n, D)``: the first token, or the mean, maximum or sum behind the prefix."""
    if how == "token":
        return tokens[..., 0, :]
    rest = tokens[..., prefix:, :]
    if how == "mean":
        return rest.mean(dim=-2)
    return rest.amax(dim=-2) if how == "max" else rest.sum(dim=-2)


def set_layer_drop(blocks: nn.Module, rate: float) -> None:
    """Stochastic depth, ``rate * l / (L - 1)`` for block ``l`` of ``L``, branches kept without being scaled up.

    timm scales the branches that are kept; the official code does not.
    """
    layers = list(blocks.children())
    for number, block in enumerate(layers):
        share = rate * number / max(1, len(layers) - 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(share, scale_by_keep=False) if share else nn.Identity())


class TemporalTransformer(nn.Module):
    """Class token, learned positions, blocks and a final norm (the official ``vit_body``, with its tanh GELU).

    Args:
        dim: of the vectors.
        length: vectors of a clip.
        layers: blocks.
        heads: of the attention.
        mlp_ratio: hidden over ``dim``.
        pool: how one vector is made of the tokens; only ``token`` has a class token.
        layer_drop: see :func:`set_layer_drop`.
        pos_std: of the positions' normal distribution at the start.

    Raises:
        InputError: ``heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        length: int,
        layers: int = 4,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        pool: Pool = "token",
        layer_drop: float = 0.0,
        pos_std: float = 0.02,
    ) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise InputError(f"temporal.heads must divide the width {dim}, got {heads}")
        self.pool, self.length = pool, length
        self.prefix = int(pool == "token")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if self.prefix else None
        self.pos_embed = nn.Parameter(torch.randn(1, self.prefix + length, dim) * pos_std)
        norm: Any = partial(nn.LayerNorm, eps=EPS)
        self.blocks = nn.Sequential(
            *[Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=norm, act_layer=GELUTanh) for _ in range(layers)]
        )
        self.norm = norm(dim)
        set_layer_drop(self.blocks, layer_drop)
        for name, module in self.blocks.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if name.endswith("qkv"):
                for third in module.weight.chunk(3):
                    nn.init.xavier_uniform_(third)
            else:
                nn.init.xavier_uniform_(module.weight)
            if ".mlp." in name:
                nn.init.normal_(module.bias, std=1e-6)
            else:
                nn.init.zeros_(module.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """``(N, length, D)`` to the tokens after the final norm, ``(N, prefix + length, D)``."""
        if vectors.shape[1] != self.length:
            raise InputError(
                f"a clip of {vectors.shape[1]} vectors, the temporal transformer has positions for {self.length}"
            )
        if self.cls_token is not None:
            vectors = torch.cat([self.cls_token.expand(len(vectors), -1, -1), vectors], dim=1)
        tokens: Tensor = self.norm(self.blocks(vectors + self.pos_embed))
        return tokens

    def pooled(self, tokens: Tensor) -> Tensor:
        """``(N, D)`` of the tokens."""
        return pool_tokens(tokens, self.prefix, self.pool)
