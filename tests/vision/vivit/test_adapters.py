"""Adapters by their definitions, and what each form can and cannot see."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from vision.vivit.adapters import Adapter, Form, Layout, create_adapter
from vision.vivit.temporal import EPS

LAYOUT = Layout(dim=12, prefix=2, grid=(5, 7), has_class_token=True)
POOLS = ["token", "mean", "max", "sum"]
IDENTITY = ["none", "frame", "token", "conv3d", "grid_residual"]


def tokens(clips: int = 2, tubelets: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, tubelets, 2 + 35, 12, dtype=torch.float64, generator=generator)


def adapter(form: str, pool: str = "mean", stirred: bool = True, **options) -> Adapter:
    """In double precision, with random weights for all that starts at 0 or 1."""
    torch.manual_seed(0)
    made = create_adapter(form, LAYOUT, pool, **{"width": 3, "grid": 3, **options}).double()
    for parameter in made.parameters() if stirred else []:
        nn.init.normal_(parameter)
    return made


def apply(module: Adapter, given: Tensor) -> Tensor:
    return module(module.summarise(given.flatten(0, 1)).unflatten(0, tuple(given.shape[:2])))


def by_hand(given: Tensor, pool: str) -> Tensor:
    patches = given[:, :, 2:]
    return {"token": given[:, :, 0], "mean": patches.mean(2), "max": patches.amax(2), "sum": patches.sum(2)}[pool]


# ------------------------------------------------------------------------------------------------------- at the start
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("form", IDENTITY)
@torch.no_grad()
def test_identity_at_the_start(form, pool):
    new = adapter(form, pool, stirred=False)
    assert_close(apply(new, tokens()), by_hand(tokens(), pool), rtol=0, atol=1e-6)
    if form != "none":
        assert not torch.allclose(apply(adapter(form, pool), tokens()), by_hand(tokens(), pool), atol=0.1)


@pytest.mark.parametrize("form", sorted(set(get_args(Form)) - set(IDENTITY)))
@torch.no_grad()
def test_no_identity_at_the_start(form):
    new = adapter(form, stirred=False)
    assert not any(torch.allclose(apply(new, tokens()), by_hand(tokens(), pool), atol=0.1) for pool in POOLS)


@pytest.mark.parametrize("form", IDENTITY[1:])
def test_identity_forms_learn_from_the_first_step(form):
    """Zero weights that are multiplied by zero weights never move."""
    new = adapter(form, stirred=False)
    for _ in range(2):
        apply(new, tokens()).square().sum().backward()
        with torch.no_grad():
            for parameter in new.parameters():
                parameter -= 1e-3 * parameter.grad
    assert all(bool(parameter.grad.any()) for parameter in new.parameters())


# ------------------------------------------------------------------------------------------------------ definitions
def bottleneck(x: Tensor, module: nn.Module) -> Tensor:
    normed = F.layer_norm(x, (12,), module.norm.weight, module.norm.bias, EPS)
    return module.up(F.gelu(module.down(normed), approximate="tanh"))


@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_bottlenecks_on_the_pooled_vector_and_on_every_token(pool):
    frame, token = adapter("frame", pool), adapter("token", pool)
    pooled = by_hand(tokens(), pool)
    assert_close(apply(frame, tokens()), pooled + bottleneck(pooled, frame.bottleneck))
    assert_close(apply(token, tokens()), by_hand(tokens() + bottleneck(tokens(), token.bottleneck), pool))


def cells(count: int, parts: int) -> list[slice]:
    """Of a side: where it does not divide evenly, neighbours share a row of patches."""
    return [slice(i * count // parts, math.ceil((i + 1) * count / parts)) for i in range(parts)]


def averages(patches: Tensor) -> Tensor:
    """Of ``(..., 35, channels)`` patches over 3x3 cells, row by row: ``(..., 9, channels)``."""
    plane = patches.unflatten(-2, (5, 7))
    found = [plane[..., rows, columns, :].mean(dim=(-3, -2)) for rows in cells(5, 3) for columns in cells(7, 3)]
    return torch.stack(found, dim=-2)


def expanded(reduced: Tensor, module: nn.Module) -> Tensor:
    """All cells of the first channel, then those of the second."""
    joined = torch.cat([averages(reduced)[..., channel] for channel in range(3)], dim=-1)
    return module.expand(F.gelu(joined, approximate="tanh"))


@torch.no_grad()
def test_grid_averages_what_it_has_reduced():
    """Defined the other way round than it is computed, on a raster that does not divide the patches."""
    grid = adapter("grid")
    assert_close(apply(grid, tokens()), expanded(grid.reduce(tokens()[:, :, 2:]), grid))
    summary = grid.summarise(tokens().flatten(0, 1))
    assert summary.shape == (8, 9, 12)


@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_grid_residual_norms_every_token_first(pool):
    """With a trained scale and shift, whose average the cache does not hold."""
    grid = adapter("grid_residual", pool)
    normed = F.layer_norm(tokens(), (12,), grid.norm_weight, grid.norm_bias, EPS)
    assert float((grid.norm_weight - 1).abs().min()) > 0.05
    expected = by_hand(tokens(), pool) + expanded(grid.reduce(normed[:, :, 2:]), grid)
    assert_close(apply(grid, tokens()), expected)


@torch.no_grad()
def test_attention_by_a_loop_over_heads():
    module = adapter("attention", heads=3, queries=2)
    normed = F.layer_norm(tokens(), (12,), module.norm.weight, module.norm.bias, EPS)
    q, k, v = module.q(module.query), module.k(normed), module.v(normed)
    heads = []
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        shares = (q[:, part] @ k[..., part].transpose(-1, -2) / 2).softmax(dim=-1)
        heads.append(shares @ v[..., part])
    assert_close(apply(module, tokens()), module.o(torch.cat(heads, dim=-1)).flatten(1, 2))


# ---------------------------------------------------------------------------------------------- what depends on what
@torch.no_grad()
def changed(module: Adapter, place: tuple) -> list[int]:
    """The vectors of the first clip that depend on some of its tokens."""
    other = tokens()
    other[place] += torch.arange(12)  # a constant would vanish in the norm
    differ = (apply(module, other) - apply(module, tokens())).abs().amax(dim=-1) > 1e-9
    assert not differ[1].any(), "clips have nothing to do with each other"
    return differ[0].nonzero().flatten().tolist()


def test_only_the_convolution_sees_other_tubelets():
    place = (0, 2, 10)  # a patch of the third tubelet
    for form in ("token", "grid", "grid_residual"):
        assert changed(adapter(form), place) == [2]
    assert changed(adapter("conv3d"), place) == [1, 2, 3]
    assert changed(adapter("attention", queries=2), place) == [4, 5]


@torch.no_grad()
def test_the_convolution_leaves_prefix_tokens_among_themselves():
    conv = adapter("conv3d", "token")
    first = tokens()[:, :, 0]
    assert_close(apply(conv, tokens()), first + bottleneck(first, conv.bottleneck))
    assert changed(conv, (0, 2, 0)) == [2]
    assert changed(conv, (0, 2, 10)) == []


@torch.no_grad()
def test_only_the_grid_knows_where_a_patch_is():
    swapped = tokens()
    swapped[:, :, [2, 36]] = swapped[:, :, [36, 2]]  # the corners
    for form, knows in (("token", False), ("attention", False), ("grid", True), ("grid_residual", True)):
        module = adapter(form)
        assert (not torch.allclose(apply(module, swapped), apply(module, tokens()))) == knows, form
