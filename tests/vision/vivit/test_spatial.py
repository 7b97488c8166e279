"""The spatial transformer: timm's networks over single tubelets, as they are."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from tests.vision.vivit.networks import clips, config, lively
from vision.errors import InputError
from vision.preprocessing import Preprocessing
from vision.vivit.adapters import Layout, create_adapter
from vision.vivit.model import AdapterOptions, FactorisedViViT, TemporalOptions, ViViTConfig
from vision.vivit.spatial import SpatialTransformer, create_vit

NARROW = {"depth": 2, "embed_dim": 48, "num_heads": 4}
# Prefix tokens of timm's families, and one that has its final norm under another name.
PREFIX = {
    "vit_base_patch16_siglip_224": 0,
    "vit_relpos_small_patch16_224": 0,
    "vit_tiny_patch16_224": 1,
    "vit_base_patch16_clip_224": 1,
    "eva02_tiny_patch14_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_small_patch16_dinov3": 5,
}


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --------------------------------------------------------------------------------------------------- parameters
@pytest.mark.parametrize(
    ("backbone", "spatial", "temporal", "head", "total"),
    [
        ("vit_base_patch16_224", 86_388_480, 28_366_848, 307_600, 115_062_928),
        ("vit_large_patch16_224", 304_088_064, 50_405_376, 410_000, 354_903_440),
        ("vit_huge_patch14_224", 631_517_440, 78_735_360, 512_400, 710_765_200),
    ],
)
def test_parameters_of_the_published_sizes(backbone, spatial, temporal, head, total):
    with torch.device("meta"):
        network = FactorisedViViT(ViViTConfig(backbone, 400, 32, tubelet=2, adapter=AdapterOptions("none")))
    assert (count(network.spatial), count(network.temporal), count(network.head)) == (spatial, temporal, head)
    assert count(network) == total


@pytest.mark.parametrize(("size", "expected"), [
    ("tiny", 5_524_416), ("small", 21_665_664), ("base", 85_798_656), ("large", 303_301_632),
])  # fmt: skip
def test_parameters_of_frames_embedded_on_their_own(size, expected):
    with torch.device("meta"):
        vit = create_vit(f"vit_{size}_patch16_224", (224, 224), False, {})
        assert count(SpatialTransformer(vit, (224, 224))) == expected


@pytest.mark.parametrize(("form", "dim", "expected"), [
    ("token", 768, 297_408), ("token", 1024, 527_616), ("token", 1280, 823_360),
    ("grid", 768, 2_507_712), ("grid", 1024, 4_457_728),
])  # fmt: skip
def test_parameters_of_adapters(form, dim, expected):
    with torch.device("meta"):
        assert count(create_adapter(form, Layout(dim, 1, (14, 14), has_class_token=True), "token")) == expected


# ----------------------------------------------------------------------------------------------- timm's families
def small(backbone, **options) -> FactorisedViViT:
    """Two narrow blocks of a family, with weights that all have an effect."""
    side = 56 if "patch14" in backbone else 64
    settings = {"image_size": (side, side), "frames": 2, "pool": "mean", "backbone_options": NARROW}
    return lively(layers=1, backbone=backbone, **{**settings, **options})


@pytest.mark.parametrize("backbone", PREFIX)
@torch.no_grad()
def test_tokens_are_timms_and_prefix_tokens_are_cut_before_the_grid(backbone):
    network = small(backbone)
    spatial, side = network.spatial, network.config.image_size[0]
    theirs = timm.create_model(backbone, num_classes=0, img_size=side, **NARROW).eval()
    theirs.load_state_dict(spatial.vit.state_dict(), strict=False)  # without attention pooling
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    expected = theirs.forward_features(images)
    if spatial.final_norm is spatial.vit.norm:
        found = spatial(images[None])[0]
        assert_close(found, expected)
    else:
        found = spatial(images[None])[0]
        assert_close(found, theirs.fc_norm(expected))
    prefix = PREFIX[backbone]
    assert found.shape == (2, prefix + 16, 48)

    other = found.clone()
    other[:, :prefix] = 1e6
    assert torch.equal(network.adapter.summarise(other), network.adapter.summarise(found))
    layout = network.adapter.layout
    assert_close(network.adapter.summarise(found)[:, 5], found[:, prefix + 5])  # a cell of one patch: row 1, column 1
    assert layout.grid == (4, 4)


@pytest.mark.parametrize("backbone", PREFIX)
@torch.no_grad()
def test_final_norm_is_applied_once(backbone):
    network = small(backbone)
    caught = []
    network.spatial.vit.blocks[-1].register_forward_hook(lambda module, given, out: caught.append(out))
    norm, tokens = network.spatial.final_norm, network.spatial(clips(1, 2, size=network.config.image_size))
    assert_close(tokens[0], F.layer_norm(caught[0], (48,), norm.weight, norm.bias, norm.eps))


def test_clips_norm_before_the_blocks_is_kept():
    vit = small("vit_base_patch16_clip_224").spatial.vit
    caught = []
    vit.blocks[0].register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    with torch.no_grad():
        vit(torch.randn(1, 3, 64, 64))
    normed = (caught[0] - vit.norm_pre.bias) / vit.norm_pre.weight
    assert_close(normed.mean(dim=-1), torch.zeros(1, 17), atol=1e-5, rtol=0)
    assert_close(normed.var(dim=-1, correction=0), torch.ones(1, 17), atol=1e-3, rtol=0)


@pytest.mark.parametrize("backbone", ["vit_base_patch16_siglip_224", "test_vit2"])
def test_no_class_token_to_pool(backbone):
    """SigLIP has no prefix at all, the other one a register, which is no class token."""
    options = {"adapter": AdapterOptions("frame"), "image_size": (64, 64), "backbone_options": {"depth": 1}}
    with pytest.raises(InputError, match="this spatial transformer has no class token: set pool to mean, max or sum"):
        lively(backbone=backbone, pool="token", **options)
    network = lively(backbone=backbone, pool="mean", **options)
    assert network(clips(1, 8, size=(64, 64))).shape == (1, 5)


@pytest.mark.parametrize("backbone", ["vit_small_patch16_dinov3", "vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_tubelets_in_every_family(backbone):
    """Among them those that take images of any size, and so keep rows and columns apart at first."""
    network = small(backbone, tubelet=2, frames=4, image_size=(64, 32), adapter=AdapterOptions("grid", grid=2))
    video = clips(1, 5, size=(64, 32))
    found = network.spatial(video)
    assert found.shape == (1, 2, network.spatial.prefix + 8, 48)
    video[:, 4] = 0
    assert torch.equal(network.spatial(video), found), "the fifth frame is a rest, which is left out"
    video[:, 2] = 0
    again = network.spatial(video)
    assert torch.equal(again[:, 0], found[:, 0])
    assert network.spatial.embed(network.spatial.tubelets(video)[0]).shape == (2, 8, 48)


@torch.no_grad()
def test_uint8_frames_are_normalised_by_the_networks_mean_and_deviation():
    preprocessing = Preprocessing(mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.1))
    network, video = FactorisedViViT(config(), preprocessing).eval(), clips(1, 8)
    by_hand = torch.stack([
        (video[:, :, 0] / 255 - 0.2) / 0.5, (video[:, :, 1] / 255 - 0.4) / 0.25, (video[:, :, 2] / 255 - 0.6) / 0.1,
    ], dim=2)  # fmt: skip
    assert_close(network.summarise(video), network.summarise(by_hand), rtol=1e-5, atol=1e-5)


def test_sampled_frames_are_the_inner_points():
    network = lively("none", frames=10, sampled_frames=3)
    video = clips(1, 10)
    chosen = video[:, [2, 5, 8]]  # 0, 2.5, 5, 7.5, 10 without the ends, halves to the even one
    assert torch.equal(network.summarise(video), network.spatial(chosen, network.adapter.summarise))
    assert network.temporal.length == 3


# ---------------------------------------------------------------------------------------------------- refused
@pytest.mark.parametrize("backbone", [
    "resnet18", "swin_tiny_patch4_window7_224", "samvit_base_patch16", "xcit_nano_12_p8_224", "vit_tiny_r_s16_p8_224",
    "vit_bose_patch16_224", "efficientvit_m0",
])  # fmt: skip
def test_other_networks_are_refused(backbone):
    with torch.device("meta"), pytest.raises(InputError, match=backbone) as caught:
        create_vit(backbone, (224, 224), False, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": (36, 32)}, "image_size must be a multiple of the 8x8 pixels of a patch, got 36x32"),
        ({"temporal": TemporalOptions(heads=5)}, "temporal.heads must divide the width 64, got 5"),
        ({"adapter": AdapterOptions("attention", heads=5)}, "adapter.heads must divide the width 64, got 5"),
        ({"adapter": AdapterOptions("grid", grid=5)}, r"adapter.grid must be in 1 \.\.\. 4 with 4x4 patches, got 5"),
        ({"adapter": AdapterOptions("frame", width=0)}, "adapter.width must be at least 1, got 0"),
        ({"adapter": AdapterOptions("gird")}, "adapter.form must be one of none, frame, .*, got gird"),
        ({"frames": 1, "tubelet": 2}, "a clip of 1 frames is shorter than a tubelet of 2"),
        ({"frames": 8, "sampled_frames": 1, "tubelet": 2}, "a clip of 1 frames is shorter than a tubelet of 2"),
        ({"tubelet": 0}, "tubelet must be at least 1, got 0"),
        ({"temporal": TemporalOptions(layers=-1)}, "temporal.layers must be at least 0, got -1"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"layer_drop": 1.0}, r"layer_drop must be in \[0, 1\), got 1.0"),
        ({"backbone_options": {"dept": 2}}, "'test_vit' cannot be made with .*dept"),
        ({"backbone_options": {"embed_dim": 63}}, "'test_vit' cannot be made with .*63"),
        ({"adapter": AdapterOptions("none"), "pool": "first"}, "pool must be one of token, mean, max, sum, got first"),
    ],
)  # fmt: skip
def test_impossible_networks(options, words):
    with pytest.raises(InputError, match=words) as caught:
        FactorisedViViT(config(**options))
    assert "\n" not in str(caught.value)


def test_clips_that_do_not_fit():
    network = lively(tubelet=2)
    for video, words in (
        (clips(1, 1), "a clip of 1 frames is shorter than a tubelet of 2"),
        (clips(1, 8, size=(40, 32)), "frames of 40x32 pixels, the network takes 32x32"),
        (clips(1, 6), "a clip of 3 vectors, the temporal transformer has positions for 4"),
    ):
        with pytest.raises(InputError, match=words):
            network(video)
