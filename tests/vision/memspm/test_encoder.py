"""Encoders by name and from files: which features they give, what they take, and what of them is trained."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import QuickGELU
from torch import nn
from torch.testing import assert_close

from tests.vision.memspm.test_official import clip, clip_embeddings, dcc, images, trunk, uniot  # noqa: F401
from vision.checkpoints import weights_hash
from vision.classifiers import preprocessing_of
from vision.errors import InputError
from vision.memspm.encoder import create_encoder, encoder_preprocessing, projects, set_trainable
from vision.memspm.official import UNIOT_ENCODER_PREPROCESSING, load_official

CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
SMALL = "vit_base_patch32_clip_quickgelu_224.openai"


def _named(encoder: nn.Module) -> set[str]:
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("backbone", "feature", "projected"),
    [
        (CLIP, "auto", True),
        (CLIP, "projected", True),
        (CLIP, "pooled", False),
        (f"timm:{SMALL}", "auto", True),
        ("resnet50", "auto", False),
        ("test_vit", "pooled", False),
        ("hog_32", "auto", False),
        ("efficientvit_m0", "auto", False),
    ],
)
def test_only_clips_networks_project(backbone, feature, projected):
    assert projects(backbone, feature) == projected


def test_what_has_no_projection_cannot_give_it():
    for backbone in ("resnet50", "hog_32"):
        with pytest.raises(InputError, match=f"'{backbone}' has no projection as CLIP's networks have; take pooled"):
            projects(backbone, "projected")
    with pytest.raises(InputError, match="no network called 'vit_clip'"):
        projects("vit_clip", "auto")


@pytest.mark.parametrize(
    ("backbone", "feature", "width", "numbers"),
    [(CLIP, "auto", 512, 85_799_424 + 768 * 512 + 512), (SMALL, "projected", 512, None)],
)
def test_the_projection_of_clip(backbone, feature, width, numbers):
    """Without memory for the weights, of which only the shapes matter here; the numbers are the published ones."""
    with torch.device("meta"):
        encoder, features = create_encoder(backbone, (224, 224), feature=feature)
        assert encoder(torch.zeros(2, 3, 224, 224)).shape == (2, width)
    assert features == width
    assert isinstance(encoder.blocks[0].mlp.act, QuickGELU)
    if numbers is not None:
        assert sum(parameter.numel() for parameter in encoder.parameters()) == numbers


def test_a_name_without_quickgelu_gives_another_network():
    with torch.device("meta"):
        encoder, _ = create_encoder("vit_base_patch32_clip_224.openai", (224, 224))
    assert not isinstance(encoder.blocks[0].mlp.act, QuickGELU)


@pytest.mark.parametrize(
    ("backbone", "size", "width"), [("test_vit", 160, 64), ("test_resnet", 32, 96), ("hog_32", 32, 324)]
)
def test_pooled_features(backbone, size, width):
    encoder, features = create_encoder(backbone, (size, size))
    assert features == width
    assert encoder.eval()(torch.rand(2, 3, size, size)).shape == (2, width)


@pytest.mark.parametrize("with_head", [False, True])
def test_a_file_of_timms_with_or_without_its_classifier(tmp_path, with_head):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5 if with_head else 0)
    torch.save(network.state_dict(), tmp_path / "network.pt")
    encoder, _ = create_encoder("test_resnet", (32, 32), checkpoint=tmp_path / "network.pt")
    network.reset_classifier(0)
    assert weights_hash(encoder) == weights_hash(network)


def test_an_image_size_that_a_network_does_not_take():
    with pytest.raises(InputError, match="'test_maxvit' does not take images of 40x40 pixels"):
        create_encoder("test_maxvit", (40, 40))
    with pytest.raises(InputError, match="at least 16x16 pixels, got 8x8"):
        create_encoder("hog_32", (8, 8))


# -------------------------------------------------------------------------------------------------- released files
@torch.no_grad()
def test_dccs_encoder(dcc, tmp_path):  # noqa: F811
    torch.save(dcc.state_dict(), tmp_path / "dcc.pth")
    encoder, features = create_encoder("resnet50", (64, 64), checkpoint=tmp_path / "dcc.pth")
    assert features == 2048
    assert_close(encoder.eval()(images()), dcc.features(images()).flatten(1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_uniots_encoder_and_its_preprocessing(uniot, trunk, tmp_path):  # noqa: F811
    torch.save(uniot, tmp_path / "final.pkl")
    assert encoder_preprocessing("resnet50", tmp_path / "final.pkl") == UNIOT_ENCODER_PREPROCESSING
    encoder, _ = create_encoder("resnet50", (64, 64), checkpoint=tmp_path / "final.pkl")
    expected = trunk(images()).flatten(1)
    assert_close(encoder.eval()(images()), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    with pytest.raises(InputError, match=r"final.pkl \(as 'resnet18'\): does not fit the network: unexpected"):
        create_encoder("resnet18", (64, 64), checkpoint=tmp_path / "final.pkl")


@torch.no_grad()
def test_clips_encoder_pooled(clip, tmp_path):  # noqa: F811
    """What the release's projection makes of pooled features is what the release gives."""
    torch.save(clip, tmp_path / "ViT-B-32.pt")
    x = images(1, 224)
    encoder, features = create_encoder(SMALL, (224, 224), checkpoint=tmp_path / "ViT-B-32.pt", feature="pooled")
    assert features == 768
    projected = encoder.eval()(x) @ clip["visual.proj"].float()
    assert_close(projected, clip_embeddings(clip, x), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"ViT-B-32.pt \(as 'test_resnet'\): does not fit the network"):
        create_encoder("test_resnet", (64, 64), checkpoint=tmp_path / "ViT-B-32.pt")


@torch.no_grad()
def test_clips_encoder_projected_at_another_size(clip, tmp_path):  # noqa: F811
    torch.save(clip, tmp_path / "ViT-B-32.pt")
    encoder, features = create_encoder(SMALL, (64, 64), checkpoint=tmp_path / "ViT-B-32.pt")
    assert features == 512
    x = images(1, 64)
    assert_close(encoder.eval()(x), load_official(clip, img_size=64)(x), rtol=1e-4, atol=1e-4)


def test_the_preprocessing_of_other_networks_is_their_own(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "file.pt")
    for backbone in ("test_resnet", "hog_32"):
        assert encoder_preprocessing(backbone, None) == preprocessing_of(backbone)
        assert encoder_preprocessing(backbone, tmp_path / "file.pt") == preprocessing_of(backbone)


# ------------------------------------------------------------------------------------------------------- freezing
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_what_is_trained(backbone):
    size = (160, 160)
    encoder, _ = create_encoder(backbone, size)
    every = {name for name, _ in encoder.named_parameters()}
    set_trainable(encoder, "all")
    assert _named(encoder) == every
    set_trainable(encoder, "none")
    assert _named(encoder) == set()
    set_trainable(encoder, "norm")
    norms = {
        f"{module_name}.{name}"
        for module_name, module in encoder.named_modules()
        if type(module).__name__.startswith(("BatchNorm", "LayerNorm"))
        for name, _ in module.named_parameters(recurse=False)
    }
    assert _named(encoder) == norms != set()
    set_trainable(encoder, "last")
    last = _named(encoder)
    (prefix,) = {".".join(name.split(".")[:1]) for name in last}
    numbers = {name.split(".")[1] for name in every if name.startswith(f"{prefix}.")}
    if prefix == "layer4":
        assert last == {name for name in every if name.startswith("layer4.")}
    else:
        assert last == {name for name in every if name.startswith(f"{prefix}.{max(map(int, numbers))}.")}


def test_nothing_to_train():
    encoder, _ = create_encoder("hog_32", (32, 32))
    set_trainable(encoder, "none")
    for trainable in ("norm", "last", "all"):
        with pytest.raises(InputError, match=f"HOG has nothing to train as '{trainable}'"):
            set_trainable(encoder, trainable)
