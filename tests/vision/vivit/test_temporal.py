"""The temporal transformer, layer drop and what is made of a clip."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch.testing import assert_close

from tests.vision.vivit.networks import clips, fresh, lively
from vision.vivit.model import TemporalOptions
from vision.vivit.temporal import TemporalTransformer

MANY = 4000


def transformer(**options) -> TemporalTransformer:
    torch.manual_seed(0)
    return TemporalTransformer(16, 6, 2, 4, **options)


@torch.no_grad()
def test_dropped_branches_are_not_made_up_for():
    """Each branch of the last block is there as it is or not at all, one time out of two."""
    block = transformer(layer_drop=0.5).blocks[1]
    x = torch.randn(1, 3, 16)
    attended = block.attn(block.norm1(x))
    ways = torch.cat([
        x, x + attended, x + block.mlp(block.norm2(x)), x + attended + block.mlp(block.norm2(x + attended)),
    ])  # fmt: skip
    found = block.train()(x.expand(MANY, -1, -1))
    distances = (found[:, None] - ways).flatten(2).norm(dim=2)
    assert float(distances.amin(dim=1).max()) < 1e-4
    shares = torch.bincount(distances.argmin(dim=1), minlength=4) / MANY
    assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.03)
    assert_close(block.eval()(x), ways[3:])


@torch.no_grad()
def test_layer_drop_ramps_up_in_both_parts_and_not_in_evaluation():
    network, plain = lively(layer_drop=0.6), lively()
    assert torch.equal(network(clips(2, 8)), plain(clips(2, 8)))
    for blocks in (network.spatial.vit.blocks, network.temporal.blocks):
        first, last = blocks.train()
        x = torch.randn(1, 3, 64).expand(MANY, -1, -1)
        whole = first.eval()(x[:1])
        assert_close(first.train()(x), whole.expand(MANY, -1, -1))
        kept = (last(x) - last.eval()(x[:1])).flatten(1).norm(dim=1) < 1e-4
        assert float(kept.float().mean()) == pytest.approx(0.4**2, abs=0.03)


@torch.no_grad()
def test_timms_own_drop_path_would_scale():
    """Why there is a rule of our own."""
    assert_close(DropPath(0.5).train()(torch.ones(8, 1)).unique(), torch.tensor([0.0, 2.0]))


@torch.no_grad()
def test_the_start():
    torch.manual_seed(0)
    stack = TemporalTransformer(192, 32, 2, 4, pos_std=0.5)
    assert float(stack.pos_embed.std()) == pytest.approx(0.5, rel=0.05)
    assert float(fresh(temporal=TemporalOptions()).temporal.pos_embed.std()) == pytest.approx(0.02, rel=0.1)
    assert not stack.cls_token.any()
    for block in stack.blocks:
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        assert not bias.any()
        # Query, key and value are xavier-uniform each on its own, not as one matrix of three times the height.
        assert float(weight.abs().max()) == pytest.approx((6 / (192 + 192)) ** 0.5, rel=1e-3)
        assert float(block.mlp.fc1.weight.abs().max()) == pytest.approx((6 / (192 + 768)) ** 0.5, rel=1e-3)
        assert float(block.mlp.fc1.bias.std()) == pytest.approx(1e-6, rel=0.2)
    logits = fresh()(clips(1, 8))
    assert torch.equal(logits, torch.zeros(1, 5)), "the head starts at zero"


@pytest.mark.parametrize("pool", ["token", "mean", "max", "sum"])
@torch.no_grad()
def test_pooling_over_time(pool):
    stack = transformer(pool=pool)
    tokens = stack(torch.randn(2, 6, 16))
    assert tokens.shape == (2, 7 if pool == "token" else 6, 16)
    assert (stack.cls_token is not None) == (pool == "token")
    expected = {"token": tokens[:, 0], "mean": tokens.mean(1), "max": tokens.amax(1), "sum": tokens.sum(1)}[pool]
    assert torch.equal(stack.pooled(tokens), expected)


@torch.no_grad()
def test_gelu_is_the_tanh_form():
    block = transformer().blocks[0]
    x = torch.randn(1, 5, 16)
    hidden = block.mlp.fc1(x)
    assert_close(block.mlp(x), block.mlp.fc2(F.gelu(hidden, approximate="tanh")), rtol=0, atol=1e-6)
    assert not torch.allclose(block.mlp(x), block.mlp.fc2(F.gelu(hidden)), rtol=0, atol=1e-6)


@torch.no_grad()
def test_order_in_time_is_seen_by_the_temporal_transformer_alone():
    video = clips(1, 8)
    network, average = lively("none"), lively("none", layers=0)
    assert average.temporal is None
    backwards = video.flip(1)
    assert_close(average(backwards), average(video))
    assert_close(average.features(average.summarise(video)), average.summarise(video).mean(dim=1))
    assert not torch.allclose(network(backwards), network(video), atol=1e-2)


@torch.no_grad()
def test_a_dense_layer_with_tanh_before_the_head():
    network = lively("none", pre_logits=7)
    vectors = network.summarise(clips(1, 8))
    pooled = network.temporal(vectors)[:, 0]
    assert_close(network.read(vectors), network.head(torch.tanh(network.pre_logits(pooled))))
    assert network.head.in_features == 7
