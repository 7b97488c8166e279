"""Files of DCC, UniOT and CLIP: the answers of the networks that wrote them, and files that are not quite theirs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.testing import assert_close

from vision.errors import InputError
from vision.memspm.official import (
    UNIOT_ENCODER_PREPROCESSING,
    UNIOT_PREPROCESSING,
    DCCNetwork,
    UniOTNetwork,
    encoder_state,
    load_official,
)

State = dict[str, Tensor]
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def images(count: int = 4, size: int = 64) -> Tensor:
    """In [0, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def lively(network: nn.Module) -> nn.Module:
    """With statistics of its own activations, so that what it answers depends on what it sees."""
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.momentum = 1.0
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    with torch.no_grad():
        network.train()(images(8))
    return network.eval()


@pytest.fixture(scope="session")
def trunk() -> nn.Sequential:
    """As both official codes keep their ResNet: torchvision's, without its classifier, in one sequence."""
    torch.manual_seed(0)
    return lively(nn.Sequential(*list(torchvision.models.resnet50().children())[:-1]))


class DCC(nn.Module):
    """The official module's parts by their names, some of which stand in two places."""

    def __init__(self, trunk: nn.Module, classes: int, width: int) -> None:
        super().__init__()
        self.features = trunk
        self.classifer = nn.Module()
        self.classifer.bottleneck = nn.Linear(2048, width)
        self.classifer.bn = nn.BatchNorm1d(width)
        self.classifer.fc = nn.Linear(width, classes)
        self.classifer.main = nn.Sequential(self.classifer.bottleneck, self.classifer.fc, nn.Softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        head = self.classifer
        return head.fc(head.bn(head.bottleneck(self.features(x).flatten(1))))


@pytest.fixture(scope="session")
def dcc(trunk: nn.Module) -> DCC:
    torch.manual_seed(1)
    return lively(DCC(copy.deepcopy(trunk), classes=7, width=24))


@pytest.fixture(scope="session")
def uniot(trunk: nn.Module) -> dict[str, Any]:
    """The content of a final.pkl."""
    torch.manual_seed(2)
    projection = nn.Sequential(nn.Linear(2048, 40), nn.ReLU(), nn.Linear(40, 16))
    extractor = {"mean": MEAN, "std": STD}
    extractor |= {f"feature_extractor.{key}": value for key, value in trunk.state_dict().items()}
    classifier = {f"projection_head.{key}": value for key, value in projection.state_dict().items()}
    classifier["ProtoCLS.fc.weight"] = F.normalize(torch.randn(5, 16))
    clusters = {"fc.weight": F.normalize(torch.randn(11, 16))}
    parts = {"feature_extractor": extractor, "classifier": classifier, "cluster_head": clusters}
    content = {part: {f"module.{key}": value for key, value in state.items()} for part, state in parts.items()}
    return {**content, "K": 11, "beta": torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)}


def refused(source: Mapping[str, Any] | Path) -> str:
    with pytest.raises(InputError) as caught:
        load_official(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(state: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in keys}


# ------------------------------------------------------------------------------------------------------------ DCC
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_dcc_answers_as_the_network_that_was_saved(dcc, prefix):
    network = load_official({prefix + key: value for key, value in dcc.state_dict().items()})
    assert isinstance(network, DCCNetwork)
    assert not network.training
    assert_close(network(images()), dcc(images()), rtol=1e-5, atol=1e-5)


def test_dcc_copies_may_be_left_out_but_not_differ(dcc):
    state = dcc.state_dict()
    copies = [key for key in state if ".main." in key]
    assert copies == [f"classifer.main.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    again = load_official(without(state, *copies)).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in load_official(state).state_dict().items())
    for twin, original in zip(copies, ("bottleneck.weight", "bottleneck.bias", "fc.weight", "fc.bias"), strict=True):
        for other in (state[twin] + 1, state[twin][:-1]):
            assert f"{twin} differs from classifer.{original}," in refused({**state, twin: other})


def test_dcc_errors_speak_of_the_files_own_keys(dcc):
    state = {key: value for key, value in dcc.state_dict().items() if ".main." not in key}
    for key in ("features.5.0.downsample.1.running_var", "classifer.bn.bias"):
        assert f"missing {key}" in refused(without(state, key))
        assert f"misshapen {key} {tuple(state[key][1:].shape)}" in refused({**state, key: state[key][1:]})
    assert "missing classifer.fc.weight" in refused(without(state, "classifer.fc.weight"))
    assert "misshapen classifer.fc.weight (7,)" in refused({**state, "classifer.fc.weight": torch.zeros(7)})
    assert "unexpected features.7.3.conv1.weight" in refused({**state, "features.7.3.conv1.weight": torch.zeros(2)})
    assert "NaN or infinite values in features.1.bias" in refused({**state, "features.1.bias": torch.tensor(torch.nan)})


# ---------------------------------------------------------------------------------------------------------- UniOT
@torch.no_grad()
def test_uniot_answers_as_the_official_code_does(uniot, trunk, tmp_path):
    torch.save(uniot, tmp_path / "final.pkl")
    network = load_official(tmp_path / "final.pkl")
    assert isinstance(network, UniOTNetwork)
    assert not network.training
    once = (images() - MEAN) / STD
    features = trunk((once - MEAN) / STD).flatten(1)
    head = {key.removeprefix("module."): value for key, value in uniot["classifier"].items()}
    hidden = F.relu(F.linear(features, head["projection_head.0.weight"], head["projection_head.0.bias"]))
    projected = F.linear(hidden, head["projection_head.2.weight"], head["projection_head.2.bias"])
    cosines = F.normalize(projected) @ head["ProtoCLS.fc.weight"].T
    assert_close(network(once), cosines / 0.1, rtol=1e-5, atol=1e-4)
    clusters = F.normalize(projected) @ uniot["cluster_head"]["module.fc.weight"].T
    assert_close(network.cluster_head(network.project(once)), clusters / 0.1, rtol=1e-5, atol=1e-4)
    assert network.K == 11
    assert torch.equal(network.beta, uniot["beta"])
    assert_close(load_official(uniot, temperature=0.05)(once), cosines / 0.05, rtol=1e-5, atol=2e-4)


@torch.no_grad()
def test_an_encoder_taken_alone_needs_both_of_uniots_normalisations(uniot, trunk):
    encoder = timm.create_model("resnet50", num_classes=0).eval()
    encoder.load_state_dict(encoder_state(uniot))
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (UNIOT_ENCODER_PREPROCESSING.mean, UNIOT_ENCODER_PREPROCESSING.std)
    )
    twice = ((images() - MEAN) / STD - MEAN) / STD
    expected = trunk(twice).flatten(1)
    assert_close(encoder((images() - mean) / std), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert UNIOT_ENCODER_PREPROCESSING.crop_mode == UNIOT_PREPROCESSING.crop_mode == "squash"


def test_uniot_errors_name_the_part(uniot):
    for part in ("feature_extractor", "classifier", "cluster_head", "K", "beta"):
        assert f"missing {part}" in refused(without(uniot, part))
    assert "unexpected memory" in refused({**uniot, "memory": torch.zeros(2)})
    assert "classifier: expected a state dict, found int" in refused({**uniot, "classifier": 3})
    assert "beta: expected a tensor, found list" in refused({**uniot, "beta": [0.2] * 5})
    assert "misshapen beta (4,)" in refused({**uniot, "beta": torch.ones(4)})
    assert "NaN or infinite values in beta" in refused({**uniot, "beta": torch.full((5,), torch.nan)})
    assert "K is 12, but cluster_head.fc.weight has 11 rows" in refused({**uniot, "K": 12})
    extractor = uniot["feature_extractor"]
    for key in ("mean", "feature_extractor.6.5.bn3.weight"):
        broken = {**uniot, "feature_extractor": without(extractor, f"module.{key}")}
        assert f"missing feature_extractor.{key}" in refused(broken)
    broken = {**uniot, "feature_extractor": {**extractor, "module.fc.bias": torch.zeros(3)}}
    assert "unexpected feature_extractor.fc.bias" in refused(broken)


# ----------------------------------------------------------------------------------------------------------- CLIP
def clip_shapes(patch: int, width: int, positions: int, depth: int, projection: int) -> dict[str, tuple[int, ...]]:
    """The vision part of an OpenAI file."""
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (positions, width),
        "proj": (width, projection),
        "conv1.weight": (width, 3, patch, patch),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for number in range(depth):
        block = f"transformer.resblocks.{number}."
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        for layer, size in (("attn.out_proj", (1, 1)), ("mlp.c_fc", (4, 1)), ("mlp.c_proj", (1, 4))):
            shapes[f"{block}{layer}.weight"] = (size[0] * width, size[1] * width)
            shapes[f"{block}{layer}.bias"] = (size[0] * width,)
    return {f"visual.{key}": shape for key, shape in shapes.items()}


def shapes_only(*sizes: int) -> State:
    """Tensors of one element that all places share, for when nothing but shapes matters."""
    return {key: torch.zeros(()).expand(shape) for key, shape in clip_shapes(*sizes).items()}


@pytest.fixture(scope="session")
def clip() -> State:
    """A ViT-B/32's file: half precision, with a text encoder and what else the release keeps."""
    generator = torch.Generator().manual_seed(4)
    state: State = {}
    for key, shape in clip_shapes(32, 768, 50, 12, 512).items():
        value = torch.empty(shape).uniform_(-0.05, 0.05, generator=generator)
        state[key] = (value + 1 if ".ln_" in key and key.endswith("weight") else value).half()
    text = {"text_projection": (6, 4), "transformer.resblocks.0.ln_1.weight": (6,), "positional_embedding": (9, 6)}
    state |= {key: torch.zeros(shape) for key, shape in text.items()}
    return {**state, "logit_scale": torch.tensor(4.6), "input_resolution": torch.tensor(224)}


def clip_embeddings(state: State, x: Tensor, heads: int = 12) -> Tensor:
    """OpenAI's vision transformer, from its description."""
    of = {key.removeprefix("visual."): value.float() for key, value in state.items() if key.startswith("visual.")}
    patch, (width,) = of["conv1.weight"].shape[-1], of["class_embedding"].shape

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, of[f"{name}.weight"], of[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (width,), of[f"{name}.weight"], of[f"{name}.bias"], eps=1e-5)

    tokens = F.conv2d(x, of["conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    tokens = torch.cat([of["class_embedding"].expand(len(x), 1, -1), tokens], 1)
    tokens = norm("ln_pre", tokens + of["positional_embedding"])
    number = 0
    while f"transformer.resblocks.{number}.ln_1.weight" in of:
        block = f"transformer.resblocks.{number}."
        joint = F.linear(
            norm(block + "ln_1", tokens), of[block + "attn.in_proj_weight"], of[block + "attn.in_proj_bias"]
        )
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joint.chunk(3, -1))
        weights = (query @ key.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
        tokens = tokens + linear(block + "attn.out_proj", (weights @ value).transpose(1, 2).flatten(2))
        hidden = linear(block + "mlp.c_fc", norm(block + "ln_2", tokens))
        tokens = tokens + linear(block + "mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))
        number += 1
    return norm("ln_post", tokens[:, 0]) @ of["proj"]


@torch.no_grad()
def test_clip_embeds_as_its_release_does(clip):
    network = load_official(clip)
    assert not network.training
    assert not network.head.bias.any()
    x = images(2, 224)
    expected = clip_embeddings(clip, x)
    assert expected.std() > 0.05
    assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_clips_encoder_starts_another_network_at_another_size(clip):
    state = encoder_state(clip)
    assert all(value.dtype == torch.float32 for value in state.values())
    small = load_official(clip, img_size=64)
    assert small.pos_embed.shape == (1, 5, 768)
    assert set(small.state_dict()) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in small.state_dict().items() if key != "pos_embed")
    assert small(images(1, 64)).shape == (1, 512)


@pytest.mark.parametrize("sizes", [(32, 768, 50, 12, 512), (16, 768, 197, 12, 512), (14, 1024, 257, 24, 768),
                                   (14, 1024, 577, 24, 768)])  # fmt: skip
def test_every_size_of_the_release_is_known(sizes):
    state = shapes_only(*sizes)
    message = refused(without(state, "visual.ln_post.bias"))
    assert message == "state dict: does not fit the network: missing visual.ln_post.bias"


def test_clip_errors_speak_of_the_files_own_keys():
    clip = shapes_only(32, 768, 50, 12, 512)
    key = "visual.transformer.resblocks.11.attn.in_proj_weight"
    assert f"missing {key}" in refused(without(clip, key))
    assert f"misshapen {key} (2303, 768) where the network has (2304, 768)" in refused({**clip, key: clip[key][1:]})
    assert "unexpected visual.attnpool.weight" in refused({**clip, "visual.attnpool.weight": torch.zeros(2)})
    keys = [f"visual.{key}" for key in ("class_embedding", "conv1.weight", "positional_embedding", "proj")]
    sizes = {key: clip[key] for key in keys}
    for key in keys:
        assert f"missing {key}" in refused({**without(sizes, key), "visual.ln_pre.bias": torch.zeros(768)})
        assert f"misshapen {key} ()" in refused({**sizes, key: torch.zeros(())})
    other = {**sizes, "visual.positional_embedding": torch.zeros(65, 768)}
    assert "patches of 32 pixels, width 768 and 65 positions" in refused(other)
    assert "one of CLIP's ResNets" in refused({"visual.layer1.0.conv1.weight": torch.zeros(2)})


# --------------------------------------------------------------------------------------------------- other files
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    message = refused(path)
    assert message.startswith(f"{path}: a TorchScript archive")
    assert "torch.save(torch.jit.load(FILE, 'cpu').state_dict(), NEW_FILE)" in message


def test_files_of_none_of_them(tmp_path):
    message = refused({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)})
    assert message.startswith("state dict: of neither DCC")
    assert message.endswith("it has conv1.weight, fc.bias")
    assert "nowhere.pkl: no such checkpoint file" in refused(tmp_path / "nowhere.pkl")
    (tmp_path / "cut.pkl").write_bytes(b"PK\3\4 and no more")
    assert "cut.pkl: not a readable PyTorch checkpoint" in refused(tmp_path / "cut.pkl")
