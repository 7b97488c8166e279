"""The network, its answers, and its files."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch.testing import assert_close

from tests.reference.cases import fill_state
from vision.errors import InputError
from vision.labels import LabelSchema
from vision.medic.answers import answers, review_ranks, severity
from vision.medic.checkpoint import OFFICIAL_TASKS, load_network, load_official, to_official
from vision.medic.model import MultitaskNetwork, cumulative_logits, decisions, probabilities

MEDIC = LabelSchema.parse(OFFICIAL_TASKS)
# Parameters with MEDIC's 16 outputs, from the specification.
PARAMETERS = {
    "resnet18": 11_184_720,
    "resnet50": 23_540_816,
    "densenet121": 6_970_256,
    "mobilenetv2_100": 2_244_368,
    "efficientvit_m5": 12.09e6,
    "mobilenetv4_conv_small": 2.51e6,
}


@pytest.mark.parametrize("backbone", PARAMETERS)
def test_parameters_of_the_papers_networks_and_others(backbone):
    network = MultitaskNetwork(backbone, MEDIC, (64, 64))
    found = sum(parameter.numel() for parameter in network.parameters())
    assert found == pytest.approx(PARAMETERS[backbone], abs=0 if isinstance(PARAMETERS[backbone], int) else 5e3)


def _official(arch: str) -> tuple[torch.nn.Module, dict]:
    network = getattr(torchvision.models, arch)(weights=None, num_classes=16).eval()
    network.load_state_dict(fill_state({key: value.shape for key, value in network.state_dict().items()}))
    names = [list(of.classes) for of in MEDIC.tasks.values()]
    return network, {"epoch": 3, "lr": 1e-5, "state_dict": network.state_dict(), "class_names": names}


@pytest.mark.parametrize(
    ("backbone", "arch"),
    [("resnet18", "resnet18"), ("mobilenetv2_100", "mobilenet_v2"), ("densenet121", "densenet121")],
)
@torch.no_grad()
def test_official_layout_loads_and_saves(backbone, arch, tmp_path):
    network, content = _official(arch)
    torch.save(content, tmp_path / "best.pth")
    ours, record = load_network(tmp_path / "best.pth", backbone)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = torch.cat(list(ours(images).values()), dim=1)
    assert_close(found, network(images), rtol=0, atol=1e-5 * float(found.abs().max()))
    assert record.schema == MEDIC
    assert record.preprocessing.crop_mode == "squash"
    back = to_official(ours, backbone)
    assert list(back["state_dict"]) == list(content["state_dict"])
    assert all(torch.equal(value, content["state_dict"][key]) for key, value in back["state_dict"].items())
    assert back["class_names"] == content["class_names"]


def test_official_vgg_has_linear_layers_where_timm_has_convolutions():
    network = torchvision.models.vgg11_bn(weights=None, num_classes=16, init_weights=False).eval()
    content = {"state_dict": network.state_dict()}
    ours = load_official(content, "vgg11_bn")
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = torch.cat(list(ours(images).values()), dim=1), network(images)
    assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(
        to_official(ours, "vgg11_bn")["state_dict"]["classifier.0.weight"], content["state_dict"]["classifier.0.weight"]
    )


def test_official_mobilenet_answers_by_the_first_rows_that_imagenet_had():
    """The official code gives MobileNetV2 a second layer that nothing uses, and slices the first one's outputs."""
    network = torchvision.models.mobilenet_v2(weights=None).eval()
    network.fc = torch.nn.Linear(1280, 16)
    ours = load_official({"state_dict": network.state_dict()}, "mobilenetv2_100").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_close(torch.cat(list(ours(images).values()), dim=1), network(images)[:, :16])


def test_official_files_that_do_not_fit():
    _, content = _official("resnet18")
    with pytest.raises(InputError, match=r"the official layout is known for resnet18, .* not for 'resnet34'"):
        load_official(content, "resnet34")
    short = {**content, "state_dict": {k: v for k, v in content["state_dict"].items() if k != "fc.bias"}}
    with pytest.raises(InputError, match=r"missing fc\.bias"):
        load_official(short)
    rows = {**content["state_dict"], "fc.weight": torch.zeros(15, 512)}
    with pytest.raises(InputError, match=r"misshapen fc\.weight \(15, 512\) where the network has \(16, 512\)"):
        load_official({"state_dict": rows})
    blank = [["", *names] for names in content["class_names"]]  # what a file with missing labels leads to there
    load_official({**content, "class_names": blank})
    swapped = [names[::-1] for names in content["class_names"]]
    with pytest.raises(InputError, match="its class names are"):
        load_official({**content, "class_names": swapped})
    with pytest.raises(InputError, match="has no ordinal heads, damage_severity has one"):
        to_official(MultitaskNetwork("resnet18", MEDIC, (64, 64), ordinal=True), "resnet18")


def test_ordinal_head_never_gives_a_negative_probability():
    raw = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 3
    logits = cumulative_logits(raw)
    assert (logits[:, 1:] <= logits[:, :-1]).all()
    shares = probabilities(logits, cumulative=True)
    assert shares.shape == (200, 5)
    assert (shares >= 0).all()
    assert_close(shares.sum(dim=1), torch.ones(200))
    assert torch.equal(decisions(logits, cumulative=True), (logits.sigmoid() > 0.5).sum(dim=1))


def test_answers_by_hand():
    schema = LabelSchema.parse(
        {"damage": {"classes": ["little", "mild", "severe"], "ordinal": True}, "fire": ["no", "yes"]}
    )
    logits = {
        "damage": torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]),
        "fire": torch.tensor([[0.0, math.log(3)]] * 2),
    }
    unsure, sure = answers(schema, set(), logits)
    assert unsure["damage"]["entropy"] == pytest.approx(1)
    assert unsure["fire"]["label"] == "yes"
    assert unsure["fire"]["probability"] == pytest.approx(0.75)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    assert unsure["fire"]["entropy"] == pytest.approx(entropy, rel=1e-5)
    assert review_ranks([sure, unsure]) == [2, 1]
    assert severity(schema, unsure) == pytest.approx(0.5)
    assert severity(schema, sure) < 0.01


def test_a_task_may_be_called_what_a_module_has_already():
    schema = LabelSchema.parse({"type": ["a", "b"], "train": ["c", "d"]})
    network = MultitaskNetwork("timm:test_resnet", schema, (32, 32))
    assert {name: tuple(found.shape) for name, found in network(torch.zeros(2, 3, 32, 32)).items()} == {
        "type": (2, 2),
        "train": (2, 2),
    }
