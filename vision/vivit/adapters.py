"""The adapter between the frozen spatial transformer and the temporal one (arXiv 2306.04822), in several forms.

The paper does not publish its adapter's form. Every form here works in two steps: ``summarise`` keeps of a tubelet's
frozen tokens what the form needs, without any parameter, and ``forward`` makes of that, with parameters, the vectors
that the temporal transformer reads. So the first step runs without a graph, its result is all that training holds on
to, and it is what a feature cache stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.errors import InputError
from vision.vivit.temporal import EPS, Pool, pool_tokens

Form = Literal["none", "frame", "token", "conv3d", "attention", "grid", "grid_residual"]


@dataclass(frozen=True)
class Layout:
    """What the tokens of a tubelet are: ``prefix`` tokens (class token, registers), then patches row by row.

    Attributes:
        dim: of a token.
        prefix: tokens before the patches.
        grid: (rows, columns) of patches.
        has_class_token: whether the first of the prefix is one.
    """

    dim: int
    prefix: int
    grid: tuple[int, int]
    has_class_token: bool


def pool_grid(tokens: Tensor, layout: Layout, grid: int) -> Tensor:
    """Patch tokens averaged over the cells of a ``grid x grid`` raster: ``(M, tokens, D)`` to ``(M, grid**2, D)``."""
    plane = tokens[:, layout.prefix :].unflatten(1, layout.grid).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(plane, grid).flatten(2).transpose(1, 2)


class Adapter(nn.Module):
    """No adapter: the pooled vector as it is, which is naive freezing.

    Args:
        layout: of the tokens.
        pool: how one vector is made of a tubelet's tokens; None for a form that does not pool.

    Raises:
        InputError: ``pool`` asks for a class token that the transformer does not have.
    """

    vectors_per_tubelet: int = 1

    def __init__(self, layout: Layout, pool: Pool | None) -> None:
        super().__init__()
        if pool is not None and pool not in get_args(Pool):
            raise InputError(f"pool must be one of {', '.join(get_args(Pool))}, got {pool}")
        if pool == "token" and not layout.has_class_token:
            raise InputError("this spatial transformer has no class token: set pool to mean, max or sum")
        self.layout, self.pool = layout, pool

    @property
    def kept(self) -> str:
        """What :meth:`summarise` keeps, in words: adapters that say the same can share it."""
        return f"pooled by {self.pool}"

    def pooled(self, tokens: Tensor) -> Tensor:
        """``(..., tokens, D)`` to ``(..., D)``."""
        assert self.pool is not None
        return pool_tokens(tokens, self.layout.prefix, self.pool)

    def summarise(self, tokens: Tensor) -> Tensor:
        """What is kept of the frozen tokens ``(M, tokens, D)`` of ``M`` tubelets: here ``(M, D)``."""
        return self.pooled(tokens)

    def forward(self, summary: Tensor) -> Tensor:
        """Summaries ``(N, t, ...)`` to the vectors ``(N, t * vectors_per_tubelet, D)``."""
        return summary


class Bottleneck(nn.Module):
    """``up(gelu(down(norm(x))))``; ``up`` starts at zero, so that what it is added to is unchanged at the start."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to the same shape."""
        lowered: Tensor = self.down(self.norm(x))
        raised: Tensor = self.up(F.gelu(lowered, approximate="tanh"))
        return raised


class FrameAdapter(Adapter):
    """A bottleneck with a residual on the pooled vector."""

    def __init__(self, layout: Layout, pool: Pool, width: int) -> None:
        super().__init__(layout, pool)
        self.bottleneck = Bottleneck(layout.dim, width)

    def forward(self, summary: Tensor) -> Tensor:
        """``(N, t, D)`` to the same shape."""
        adapted: Tensor = summary + self.bottleneck(summary)
        return adapted


class TokenAdapter(Adapter):
    """The same bottleneck on every token, then the pooling. Needs all tokens."""

    def __init__(self, layout: Layout, pool: Pool, width: int) -> None:
        super().__init__(layout, pool)
        self.bottleneck = Bottleneck(layout.dim, width)

    @property
    def kept(self) -> str:
        """As in :class:`Adapter`."""
        return "tokens"

    def summarise(self, tokens: Tensor) -> Tensor:
        """All tokens."""
        return tokens

    def adapted(self, tokens: Tensor) -> Tensor:
        """The tokens after the residual bottleneck, ``(N, t, tokens, D)``."""
        changed: Tensor = tokens + self.bottleneck(tokens)
        return changed

    def forward(self, summary: Tensor) -> Tensor:
        """``(N, t, tokens, D)`` to ``(N, t, D)``."""
        return self.pooled(self.adapted(summary))


class Conv3dAdapter(TokenAdapter):
    """A depth-wise 3x3x3 convolution over time and patches within the bottleneck, in ST-Adapter's manner.

    Prefix tokens pass the bottleneck without the convolution.
    """

    def __init__(self, layout: Layout, pool: Pool, width: int) -> None:
        super().__init__(layout, pool, width)
        self.conv = nn.Conv3d(width, width, 3, padding=1, groups=width)

    def adapted(self, tokens: Tensor) -> Tensor:
        """As in :class:`TokenAdapter`."""
        lowered = self.bottleneck.down(self.bottleneck.norm(tokens))
        before, patches = lowered[:, :, : self.layout.prefix], lowered[:, :, self.layout.prefix :]
        volume = patches.unflatten(2, self.layout.grid).permute(0, 4, 1, 2, 3)
        mixed = self.conv(volume).permute(0, 2, 3, 4, 1).flatten(2, 3)
        joined = F.gelu(torch.cat([before, mixed], dim=2), approximate="tanh")
        changed: Tensor = tokens + self.bottleneck.up(joined)
        return changed


class AttentionAdapter(Adapter):
    """Learned queries that read the tokens by multi-head attention, in EVL's manner; a vector for each query."""

    def __init__(self, layout: Layout, heads: int, queries: int) -> None:
        super().__init__(layout, None)
        dim = layout.dim
        if dim % heads:
            raise InputError(f"adapter.heads must divide the width {dim}, got {heads}")
        self.heads, self.vectors_per_tubelet = heads, queries
        self.query = nn.Parameter(torch.randn(queries, dim) * 0.02)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

    @property
    def kept(self) -> str:
        """As in :class:`Adapter`."""
        return "tokens"

    def summarise(self, tokens: Tensor) -> Tensor:
        """All tokens."""
        return tokens

    def forward(self, summary: Tensor) -> Tensor:
        """``(N, t, tokens, D)`` to ``(N, t * queries, D)``."""
        tokens = self.norm(summary)
        shape = (*summary.shape[:2], self.vectors_per_tubelet, self.layout.dim)
        q = self.q(self.query).expand(shape)
        split = [x.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for x in (q, self.k(tokens), self.v(tokens))]
        read = F.scaled_dot_product_attention(*split).transpose(-2, -3).flatten(-2)
        vectors: Tensor = self.o(read).flatten(1, 2)
        return vectors


class GridAdapter(Adapter):
    """Keeps where things are: reduces the tokens, averages them over a raster, and mixes its cells.

    ``expand(gelu(concat(average(reduce(token)))))``, with the cells of a channel side by side. Averaging and reducing
    are both linear, so the average is taken first, which is all that a cache has to hold. Neither norm nor residual, so
    it is no identity at the start.
    """

    def __init__(self, layout: Layout, pool: Pool | None, width: int, grid: int) -> None:
        super().__init__(layout, pool)
        if not 1 <= grid <= min(layout.grid):
            raise InputError(
                f"adapter.grid must be in 1 ... {min(layout.grid)} with {layout.grid[0]}x{layout.grid[1]} "
                f"patches, got {grid}"
            )
        self.grid = grid
        self.reduce = nn.Linear(layout.dim, width)
        self.expand = nn.Linear(grid * grid * width, layout.dim)

    @property
    def kept(self) -> str:
        """As in :class:`Adapter`."""
        return f"{self.grid}x{self.grid} grid"

    def summarise(self, tokens: Tensor) -> Tensor:
        """``(M, grid**2, D)``."""
        return pool_grid(tokens, self.layout, self.grid)

    def _mixed(self, cells: Tensor) -> Tensor:
        channels = self.reduce(cells).transpose(-1, -2).flatten(-2)
        mixed: Tensor = self.expand(F.gelu(channels, approximate="tanh"))
        return mixed

    def forward(self, summary: Tensor) -> Tensor:
        """``(N, t, grid**2, D)`` to ``(N, t, D)``."""
        return self._mixed(summary)


class GridResidualAdapter(GridAdapter):
    """The pooled vector, plus the grid of the normed tokens through an ``expand`` that starts at zero.

    The norm's scale and shift are per channel and so commute with the average: they are applied behind it, and remain
    trainable with a cache too.
    """

    def __init__(self, layout: Layout, pool: Pool, width: int, grid: int) -> None:
        super().__init__(layout, pool, width, grid)
        self.norm_weight = nn.Parameter(torch.ones(layout.dim))
        self.norm_bias = nn.Parameter(torch.zeros(layout.dim))
        nn.init.zeros_(self.expand.weight)
        nn.init.zeros_(self.expand.bias)

    @property
    def kept(self) -> str:
        """As in :class:`Adapter`."""
        return f"pooled by {self.pool}, and {self.grid}x{self.grid} grid of normed tokens"

    def summarise(self, tokens: Tensor) -> Tensor:
        """``(M, 1 + grid**2, D)``: the pooled vector, and the grid of the tokens normed without scale and shift."""
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=EPS)
        return torch.cat([self.pooled(tokens)[:, None], super().summarise(normed)], dim=1)

    def forward(self, summary: Tensor) -> Tensor:
        """``(N, t, 1 + grid**2, D)`` to ``(N, t, D)``."""
        return summary[:, :, 0] + self._mixed(summary[:, :, 1:] * self.norm_weight + self.norm_bias)


def create_adapter(
    form: Form, layout: Layout, pool: Pool, width: int | None = None, grid: int = 4, heads: int = 4, queries: int = 1
) -> Adapter:
    """An adapter by its form.

    Args:
        form: ``none``, ``frame``, ``token``, ``conv3d``, ``attention``, ``grid`` or ``grid_residual``.
        layout: of the tokens.
        pool: of the forms that pool.
        width: channels of the bottleneck or of the reduced tokens; a quarter of ``layout.dim`` by default.
        grid: cells a side.
        heads: of the attention.
        queries: of the attention, a vector each.

    Raises:
        InputError: an unknown form, or a number that is out of range.
    """
    width = width if width is not None else max(1, layout.dim // 4)
    for name, value in (("width", width), ("queries", queries), ("heads", heads)):
        if value < 1:
            raise InputError(f"adapter.{name} must be at least 1, got {value}")
    if form == "none":
        return Adapter(layout, pool)
    if form == "attention":
        return AttentionAdapter(layout, heads, queries)
    if form == "grid":
        return GridAdapter(layout, None, width, grid)
    if form == "grid_residual":
        return GridResidualAdapter(layout, pool, width, grid)
    bottlenecks = {"frame": FrameAdapter, "token": TokenAdapter, "conv3d": Conv3dAdapter}
    if form not in bottlenecks:
        raise InputError(f"adapter.form must be one of {', '.join(get_args(Form))}, got {form}")
    return bottlenecks[form](layout, pool, width)
