"""What is frozen stays as it is, keeps nothing for a backward pass, and computes the same however it is run."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.vision.vivit.networks import clips, fresh, lively, same_weights, weights
from vision.errors import InputError
from vision.measure import SavedActivations
from vision.vivit.model import TemporalOptions

NOISY = {"patch_size": 8, "depth": 2, "pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5}


def train(network, steps: int = 3) -> None:
    """With all parameters in the optimizer, decayed and clipped."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.5)
    network.train()
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(clips(2, 8, seed=step)), torch.tensor([0, 1])).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


def held(network, batch: int = 2) -> int:
    video = clips(batch, 8)
    with SavedActivations(network, video) as saved:
        network(video)
    return saved.bytes


@pytest.mark.parametrize("form", ["grid", "token", "grid_residual"])
def test_training_leaves_frozen_weights_alone(form):
    network = lively(form, backbone_options=NOISY)
    network.freeze_spatial()
    spatial, whole = weights(network.spatial), weights(network)
    train(network)
    assert all(parameter.grad is None for parameter in network.spatial.parameters())
    assert same_weights(weights(network.spatial), spatial)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, whole[name])}
    assert moved == {name for name, _ in network.named_parameters() if not name.startswith("spatial.")}


def test_frozen_part_stays_in_evaluation_mode():
    network = lively("none", backbone_options=NOISY, layer_drop=0.5)
    video = clips(2, 8)
    expected = network.summarise(video)
    network.train()
    assert not torch.equal(network.summarise(video), network.summarise(video)), "without freezing there is noise"
    network.freeze_spatial()
    for mode in (True, False, True):
        network.train(mode)
        assert torch.equal(network.summarise(video), expected)
    read = [network.read(expected) for _ in range(8)]
    assert any(not torch.equal(one, read[0]) for one in read), "the temporal part drops layers in training"


def test_frozen_training_keeps_little():
    network = fresh("token", backbone_options={"patch_size": 8, "depth": 6}, temporal=TemporalOptions(1)).train()
    whole = held(network)
    network.freeze_spatial()
    frozen = held(network)
    # 2 clips of 8 tubelets of 17 tokens, 64 wide: normed and not, and the bottleneck's 8 and 64 channels.
    tokens = 2 * 8 * 17 * 4
    assert frozen < 5 * 64 * tokens
    assert frozen < 0.15 * whole


def test_no_graph_of_the_frozen_part():
    network = fresh("none")
    video = clips(1, 8)
    assert network.summarise(video).requires_grad
    network.freeze_spatial()
    assert not network.summarise(video).requires_grad
    assert not network.summarise(video).is_inference()


def test_a_pass_in_chunks_is_the_same():
    network = lively("conv3d")
    network.freeze_spatial()
    video, passes = clips(2, 8), []
    network.spatial.vit.patch_embed.register_forward_hook(lambda module, given, out: passes.append(len(out)))
    expected = network.summarise(video)
    for chunk, sizes in ((5, [5, 5, 5, 1]), (16, [16]), (1, [1] * 16)):
        network.spatial.configure(chunk=chunk)
        passes.clear()
        assert_close(network.summarise(video), expected, rtol=1e-5, atol=1e-5)
        assert passes == sizes
    network.spatial.requires_grad_(True)
    passes.clear()
    network.summarise(video)
    assert passes == [16], "a graph is kept whole, so there is nothing to save"


def test_a_pass_in_bfloat16_is_close_and_leaves_the_weights_alone():
    network = lively("grid")
    network.freeze_spatial()
    video, before = clips(2, 8), weights(network)
    expected = network.summarise(video)
    network.spatial.configure(bfloat16=True)
    found = network.summarise(video)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert float((found - expected).norm() / expected.norm()) < 2e-2
    assert same_weights(weights(network), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_another_precision_take_uint8_frames(dtype):
    network = lively("grid_residual", tubelet=2).to(dtype)
    for freeze in (False, True):
        if freeze:
            network.freeze_spatial()
        assert network.summarise(clips(1, 8)).dtype == dtype
        assert network(clips(1, 8)).dtype == dtype


def test_autocast_around_it_reaches_the_frozen_part():
    network = lively("none")
    network.freeze_spatial()
    dtypes = []
    network.spatial.vit.blocks[0].attn.qkv.register_forward_hook(lambda module, given, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(clips(1, 8)).sum().backward()
    network(clips(1, 8))
    assert dtypes == [torch.bfloat16, torch.float32]


# ------------------------------------------------------------------------------------------------ the last blocks
@pytest.mark.parametrize("backbone", ["test_vit", "test_vit4"])  # the second has its final norm under another name
def test_last_blocks_and_the_final_norm_are_trained(backbone):
    network = lively("none", backbone=backbone, backbone_options={"patch_size": 8, "depth": 3}, pool="mean")
    network.freeze_spatial(trained_blocks=1)
    norm = "norm" if backbone == "test_vit" else "fc_norm"
    kept = []
    for block in network.spatial.vit.blocks:
        block.register_forward_hook(lambda module, given, out: kept.append(out.requires_grad))
    before = weights(network.spatial)
    train(network)
    assert kept == [False, False, True] * 3
    names = {name for name, parameter in network.spatial.named_parameters() if parameter.grad is not None}
    moved = {name for name, value in network.spatial.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in names} == {"blocks", norm}
    assert all(name.startswith(("vit.blocks.2.", f"vit.{norm}.")) for name in names)
    last = {name for name in before if name.startswith(("vit.blocks.2.", f"vit.{norm}."))}
    assert names == moved == last
    assert network.spatial.trained_before_frozen() == []


def test_each_trained_block_holds_its_own_activations():
    network = fresh(backbone_options={"patch_size": 8, "depth": 4})
    figures = []
    for trained in range(5):
        network.freeze_spatial(trained)
        figures.append(held(network))
    steps = [after - before for before, after in pairwise(figures)]
    assert min(steps) > figures[0]
    assert steps[1] == steps[2] == steps[3]


def test_dropout_of_trained_blocks_only():
    network = lively("none", backbone_options={**NOISY, "pos_drop_rate": 0.9})
    network.freeze_spatial(trained_blocks=1)
    first, last = [], []
    network.spatial.vit.blocks[0].register_forward_hook(lambda module, given, out: first.append(out))
    network.spatial.vit.blocks[1].register_forward_hook(lambda module, given, out: last.append(out))
    network.train()
    for _ in range(2):
        network.summarise(clips(1, 8))
    assert torch.equal(*first)
    assert not torch.equal(*last)


def test_what_is_trained_before_frozen_blocks_is_found():
    network = fresh(tubelet=2, backbone_options={"patch_size": 8, "depth": 3})
    assert network.spatial.trained_before_frozen() == [], "end to end nothing is frozen"
    network.freeze_spatial()
    assert network.spatial.trained_before_frozen() == []
    network.spatial.vit.patch_embed.requires_grad_(True)
    network.spatial.vit.blocks[0].norm1.weight.requires_grad_(True)
    network.spatial.vit.norm.requires_grad_(True)  # behind the blocks: nothing is kept for its sake
    assert network.spatial.trained_before_frozen() == [
        "vit.patch_embed.proj.weight",
        "vit.patch_embed.proj.bias",
        "vit.blocks.0.norm1.weight",
    ]
    network.freeze_spatial()
    network.spatial.vit.blocks[1].mlp.fc1.bias.requires_grad_(True)
    assert network.spatial.trained_before_frozen() == ["vit.blocks.1.mlp.fc1.bias"], "the third block is frozen"


@pytest.mark.parametrize("number", [-1, 3])
def test_no_such_number_of_blocks(number):
    with pytest.raises(InputError, match=rf"trained_blocks must be in 0 \.\.\. 2, got {number}"):
        fresh().freeze_spatial(number)


@pytest.mark.parametrize("backbone", ["test_vit", "vit_small_patch16_dinov3"])
def test_training_after_a_validation_in_inference_mode(backbone):
    """What a network caches in between, such as rotary positions, must not spoil the backward pass."""
    options = {"depth": 1, "embed_dim": 48, "num_heads": 4, "patch_size": 8}
    network = fresh(backbone=backbone, backbone_options=options)
    with torch.inference_mode():
        network(clips(1, 8))
    train(network, steps=1)
    assert all(parameter.grad is not None for parameter in network.spatial.vit.blocks.parameters())
