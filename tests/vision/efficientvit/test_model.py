"""The EfficientViT network: sizes, equality with timm's, windows, any input size, modes and errors."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.cases import assert_close, normal
from tests.vision.efficientvit.weights import lively
from vision.efficientvit import VARIANTS, EfficientViT, build, to_official, to_timm, variant_config
from vision.efficientvit.attention import (
    CascadedGroupAttention,
    LocalWindowAttention,
    relative_index,
    resize_bias,
)
from vision.efficientvit.model import EfficientViTBlock
from vision.errors import InputError

TINY: dict[str, Any] = {
    "img_size": 224,
    "num_classes": 5,
    "embed_dim": (16, 32, 48),
    "depth": (1, 1, 2),
    "num_heads": (2, 4, 3),
    "kernels": (5, 3, 3, 3),
}
padding_wanted = pytest.mark.filterwarnings("ignore:EfficientViT at:UserWarning")


def filled(network: Any) -> Any:
    network.load_state_dict(lively(network))
    return network.eval()


def tiny(**settings: Any) -> EfficientViT:
    network: EfficientViT = filled(EfficientViT(**{**TINY, **settings}))
    return network


def resized_tables(source: EfficientViT, target: EfficientViT) -> dict[str, Tensor]:
    """The source's weights with its bias tables interpolated for the target's windows."""
    state = dict(source.state_dict())
    for name, module in source.named_modules():
        if isinstance(module, CascadedGroupAttention):
            key = f"{name}.attention_biases"
            new = target.get_submodule(name)
            assert isinstance(new, CascadedGroupAttention)
            state[key] = resize_bias(state[key], module.grid, new.grid)
    return state


# ------------------------------------------------------------------------------------------------------ variants
@pytest.mark.parametrize(
    ("variant", "parameters", "entries"),
    [
        ("m0", 2_349_436, 699),
        ("m1", 2_980_560, 615),
        ("m2", 4_187_554, 603),
        ("m3", 6_900_722, 675),
        ("m4", 8_804_228, 699),
        ("m5", 12_473_772, 835),
    ],
)
def test_size_of_variants(variant: str, parameters: int, entries: int) -> None:
    network = build(f"efficientvit_{variant}")
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(to_official(network.state_dict())) == entries


@padding_wanted
@pytest.mark.parametrize(
    ("variant", "size"),
    [(variant, 224) for variant in VARIANTS]
    + [(variant, size) for variant in ("efficientvit_m0", "efficientvit_m3") for size in (96, 256, 448)],
)
@torch.no_grad()
def test_same_logits_as_timm(variant: str, size: int) -> None:
    ours = filled(build(variant, img_size=size))
    theirs = timm.create_model(variant, img_size=size).eval()
    theirs.load_state_dict(to_timm(ours.state_dict()))
    x = normal((1, 3, size, size))
    assert_close("logits", ours(x), theirs(x))


def test_unknown_variant_is_answered_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean 'efficientvit_m5'"):
        variant_config("efficientvit_n5")


# ------------------------------------------------------------------------------------------------------- windows
@padding_wanted
@pytest.mark.parametrize("size", [(14, 21), (9, 12), (5, 9), (7, 7), (3, 4)])
@torch.no_grad()
def test_windows_are_attended_one_by_one(size: tuple[int, int]) -> None:
    module = LocalWindowAttention(24, 8, 3, size, 7, (3, 3, 3))
    filled(module)
    x = normal((2, 24, *size))
    height, width = min(7, size[0]), min(7, size[1])
    padded = F.pad(x, (0, -size[1] % width, 0, -size[0] % height))
    expected = torch.zeros_like(padded)
    for top in range(0, padded.shape[2], height):
        for left in range(0, padded.shape[3], width):
            window = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
            expected[window] = module.attn(padded[window])
    assert_close("map", module(x), expected[:, :, : size[0], : size[1]])


@torch.no_grad()
def test_bias_depends_on_the_distance_in_either_direction() -> None:
    attention = CascadedGroupAttention(8, 4, 2, (2, 3), (3, 3))
    table = attention.attention_biases.copy_(normal((2, 6))).view(2, 2, 3)
    places = [(y, x) for y in range(2) for x in range(3)]
    for p, (y1, x1) in enumerate(places):
        for q, (y2, x2) in enumerate(places):
            torch.testing.assert_close(attention.bias(2, 3)[:, p, q], table[:, abs(y1 - y2), abs(x1 - x2)])
    assert relative_index(2, 3).shape == (6, 6)


@torch.no_grad()
def test_heads_are_a_cascade() -> None:
    """A change in the channels of one head reaches that head and those after it, not those before it."""
    attention = CascadedGroupAttention(24, 8, 3, (4, 4), (3, 3, 3))
    filled(attention)
    joined: list[Tensor] = []
    attention.proj.register_forward_pre_hook(lambda _module, inputs: joined.append(inputs[0]))
    x = normal((1, 24, 4, 4))
    changed = x.clone()
    changed[:, 8:16] += 1  # the second head's
    attention(x)
    attention(changed)
    differs = [bool((a != b).any()) for a, b in zip(*(heads.chunk(3, dim=1) for heads in joined), strict=True)]
    assert differs == [False, True, True]


# ---------------------------------------------------------------------------------------------------- input sizes
@pytest.mark.parametrize("size", [(224, 160), (100, 300), (16, 16), (17, 33)])
@torch.no_grad()
def test_any_input_size(size: tuple[int, int]) -> None:
    logits = tiny()(normal((2, 3, *size)))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [(256, 256), (256, 208)])
@torch.no_grad()
def test_sizes_with_the_same_windows_need_no_other_tables(size: tuple[int, int]) -> None:
    """A network made for 224 has windows of 7, 7 and 4 at these sizes too, where timm's agrees with it."""
    ours = filled(build("efficientvit_m0"))
    theirs = timm.create_model("efficientvit_m0").eval()
    theirs.load_state_dict(to_timm(ours.state_dict()))
    x = normal((1, 3, *size))
    assert_close("logits", ours(x), theirs(x))


@padding_wanted
@pytest.mark.parametrize("size", [(448, 448), (96, 96), (160, 224), (448, 112)])
@torch.no_grad()
def test_other_size_is_as_if_built_for_it_with_interpolated_tables(size: tuple[int, int]) -> None:
    network = tiny()
    built_for_it = EfficientViT(**{**TINY, "img_size": size}).eval()
    built_for_it.load_state_dict(resized_tables(network, built_for_it))
    x = normal((2, 3, *size))
    assert_close("logits", network(x), built_for_it(x))


@torch.no_grad()
def test_constant_tables_stay_constant_at_any_window() -> None:
    table = torch.full((2, 16), 0.7)
    torch.testing.assert_close(resize_bias(table, (4, 4), (7, 3)), torch.full((2, 21), 0.7))


@pytest.mark.parametrize(("size", "share"), [(200, "1.16"), (256, "3.06")])
def test_padding_is_warned_of_with_the_nearest_clean_sizes(size: int, share: str) -> None:
    with pytest.warns(UserWarning, match=rf"at {size}x{size} pads.*{share} times the positions.*: .*\b224\b"):
        EfficientViT(**{**TINY, "img_size": size})


def test_padding_of_one_side_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"at 224x256 pads.*: 224 .*\(height\), 224 or 448 \(width\)"):
        EfficientViT(**{**TINY, "img_size": (224, 256)})


@pytest.mark.parametrize("size", [96, 112, 224, 448, (224, 448)])
def test_no_warning_without_padding(size: int | tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EfficientViT(**{**TINY, "img_size": size})


# ------------------------------------------------------------------------------------- initial state, modes, heads
@pytest.mark.parametrize("mode", [True, False])
@torch.no_grad()
def test_blocks_start_as_the_identity(mode: bool) -> None:
    blocks = [m for m in build("efficientvit_m0").train(mode).modules() if isinstance(m, EfficientViTBlock)]
    assert len(blocks) == 6
    for block in blocks:
        x = normal((2, block.dw0.m.c.in_channels, 7, 7))
        assert torch.equal(block(x), x)


@torch.no_grad()
def test_two_heads_give_a_pair_in_training_and_their_mean_in_evaluation() -> None:
    network = tiny(distillation=True)
    x = normal((4, 3, 64, 64))
    single = tiny()
    state = network.state_dict()
    logits = []
    for head in ("head.", "head_dist."):
        kept = {key: value for key, value in state.items() if not key.startswith(("head.", "head_dist."))}
        kept |= {key.replace(head, "head."): value for key, value in state.items() if key.startswith(head)}
        single.load_state_dict(kept)
        logits.append(single(x))
    assert (logits[0] - logits[1]).abs().max() > 0.1
    assert_close("mean of the heads", network(x), (logits[0] + logits[1]) / 2)

    pair = network.train()(x)
    assert isinstance(pair, tuple)
    assert [part.shape for part in pair] == [(4, 5), (4, 5)]
    network.head_dist.l.weight.zero_()
    network.head_dist.l.bias.fill_(3)
    student, taught = network(x)
    assert torch.equal(taught, torch.full((4, 5), 3.0))
    assert student.std() > 0.01


def test_heads_can_be_replaced_or_left_out() -> None:
    network = tiny(distillation=True)
    x = normal((2, 3, 64, 64))
    features = tiny(num_classes=0)(x)
    assert features.shape == (2, 48)
    assert_close("features", network.forward_head(network.forward_features(x), pre_logits=True), features)
    network.double().reset_classifier(9)
    assert network(x.double()).shape == (2, 9)
    assert network.get_classifier().out_features == 9
    network.reset_classifier(0)
    assert_close("features", network(x.double()), features)


def test_only_bias_tables_are_spared_weight_decay_by_name() -> None:
    names = tiny().no_weight_decay()
    assert len(names) == sum(TINY["depth"])
    assert all(name.endswith("attention_biases") for name in names)


# ---------------------------------------------------------------------------------- no bias table is ever left behind
@torch.no_grad()
def test_weights_loaded_after_a_forward_pass_in_evaluation_take_effect() -> None:
    network, x = tiny(), normal((2, 3, 224, 224))
    before = network(x)
    state = network.state_dict()
    new = {key: normal(v.shape, 5) if key.endswith("attention_biases") else v for key, v in state.items()}
    network.load_state_dict(new)
    fresh = EfficientViT(**TINY)
    fresh.load_state_dict(new)
    after = network(x)
    assert (after - before).abs().max() > 0.01 * before.abs().max()
    assert torch.equal(after, fresh.eval()(x))


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_precision_can_change_after_a_forward_pass_in_evaluation(
    dtype: torch.dtype, tolerance: float, size: int
) -> None:
    """Within the rounding of the coarser of the two: float32's is some 1e-5 of the largest logit after all layers."""
    network, x = tiny(), normal((2, 3, size, size))
    expected = network(x)
    logits = network.to(dtype)(x.to(dtype))
    assert logits.dtype == dtype
    assert_close("logits", logits.double(), expected, tolerance)


@padding_wanted
def test_every_parameter_learns() -> None:
    """At a size with padding and interpolated tables too, every parameter gets a gradient."""
    network = tiny(distillation=True).train()
    first, second = network(normal((2, 3, 192, 128)))
    (first.square().sum() + second.square().sum()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert without == []


@torch.no_grad()
def test_copies_share_nothing() -> None:
    network, x = tiny(), normal((1, 3, 64, 64))
    expected = network(x)
    for parameter in copy.deepcopy(network).parameters():
        parameter.zero_()
    assert torch.equal(network(x), expected)


# --------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": (2, 3, 3)}, "num_heads must divide the width: 3 heads of 32 channels"),
        ({"num_heads": (0, 4, 3)}, "num_heads"),
        ({"kernels": (5, 3)}, r"kernels needs an entry for each of 4 heads, got \[5, 3\]"),
        ({"embed_dim": (16, 32)}, r"embed_dim needs one entry for each of the three stages, got \[16, 32\]"),
        ({"depth": (1, 2, 3, 4)}, "depth needs one entry"),
        ({"num_heads": (2, 4)}, "num_heads needs one entry"),
        ({"key_dim": (16,)}, "key_dim needs one entry"),
        ({"window_size": (7, 7)}, "window_size needs one entry"),
        ({"embed_dim": (20, 32, 48)}, r"embed_dim\[0\] must be a multiple of 8.*got 20"),
        ({"patch_size": 8}, "patch_size of EfficientViT is 16, got 8"),
        ({"img_size": 8}, "img_size must be at least 16 pixels a side, got 8x8"),
        ({"img_size": (224, 8)}, "got 224x8"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EfficientViT(**{**TINY, **settings})


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 4, 64, 64), (3, 64, 64), (1, 3, 15, 64), (1, 3, 64, 15)])
def test_impossible_inputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"takes \(batch, 3, height, width\) of at least 16 pixels a side, got \(\d"):
        tiny()(torch.zeros(shape))
