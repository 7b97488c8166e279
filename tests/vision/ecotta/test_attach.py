"""Attaching meta networks to any network: where they go, how many parameters they have, and what cannot be done."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.ecotta import Descent, EcoTTA, WideResNet
from vision.ecotta.frozen import Memory
from vision.errors import InputError
from vision.measure import profile_adaptation

pytestmark = pytest.mark.filterwarnings("ignore:batches of")
ALL = 9.0  # a margin, in ln C, that no entropy reaches
CLASSES = 10


def images(side: int, size: int = 4) -> Tensor:
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(0))


def trained(network: EcoTTA) -> int:
    return sum(parameter.numel() for parameter in network.trained())


def sizes(network: EcoTTA) -> list[int]:
    return [len(names) for names in network.groups]


def attached(model: nn.Module, side: int = 32, **options: Any) -> EcoTTA:
    given = {"input_size": (side, side), "calibrate": False, "margin": ALL, "descent": Descent("sgd", 0.05), **options}
    return EcoTTA.attach(model, **given)


# ------------------------------------------------------------------------------------------------------- any network
# name: image side, form of the meta networks
FAMILIES = {
    "resnet18": (64, "conv"),
    "mobilenetv3_small_100": (64, "conv"),
    "efficientnet_b0": (64, "conv"),
    "convnext_atto": (64, "residual"),
    "vit_tiny_patch16_224": (32, "residual"),
    "swin_tiny_patch4_window7_224": (56, "residual"),
    "densenet121": (32, "conv"),
    "regnety_002": (64, "conv"),
    "efficientvit_b0": (64, "conv"),
    "ghostnet_100": (64, "conv"),
}


def family(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    sized: dict[str, Any] = {"img_size": FAMILIES[name][0]} if name.startswith(("vit", "swin")) else {}
    model: nn.Module = timm.create_model(name, num_classes=CLASSES, **sized)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_all_kinds(name: str) -> None:
    side, form = FAMILIES[name]
    x, model = images(side), family(name).eval()
    with torch.no_grad():
        alone = model(x)
    network = attached(model, side)
    assert (network.form, len(network.metas)) == (form, 4)
    assert torch.equal(network.model(x), alone)

    start = {key: value.detach().clone() for key, value in network.metas.named_parameters()}
    answer = network.adapt(x)
    assert answer.shape == (len(x), CLASSES)
    # A residual's last layer is zero at first, so that gradients reach the others after a step.
    for _ in range(2):
        network.adapt(x)
    unmoved = [key for key, value in network.metas.named_parameters() if torch.equal(value, start[key])]
    assert not unmoved
    assert torch.isfinite(network.adapt(x)).all()
    assert not torch.equal(network.predict(x), answer)

    after = network.predict(x)
    assert torch.equal(copy.deepcopy(network).predict(x), after)
    other = attached(family(name, seed=1), side)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.predict(x), after)
    assert torch.equal(network.model(x), alone), "the network on its own is what it was"


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "convnext_atto"])
def test_all_ways_to_save_memory_predict_alike_and_learn_alike(name: str) -> None:
    """Where no statistics of batches are taken for constants."""
    side, x = 64, images(64)
    modes: tuple[Memory, ...] = ("eager", "memsave", "checkpoint")
    networks = []
    for memory in modes:
        torch.manual_seed(0)
        networks.append(attached(family(name), side, memory=memory, constant_statistics=False))
    first, second = ([network.adapt(x) for network in networks] for _ in range(2))
    for answers in (first, second):
        for answer in answers[1:]:
            torch.testing.assert_close(answer, answers[0], rtol=1e-3, atol=1e-4)
    assert (first[0] - second[0]).abs().max() > 0.01


class Merging(nn.Module):
    """Stages between which something is added, so that none takes what the one before gave."""

    def __init__(self, feature_info: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = self._stage(3, 8)
        self.stage1, self.stage2, self.stage3 = (self._stage(8, 8) for _ in range(3))
        self.fc = nn.Linear(8, CLASSES)
        if feature_info:  # as timm's networks have it
            self.feature_info = [{"module": name} for name in ("stem", "stage1", "stage2", "stage3")]

    @staticmethod
    def _stage(inner: int, outer: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inner, outer, 3, 2, 1), nn.BatchNorm2d(outer), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in (self.stage1, self.stage2, self.stage3):
            x = stage(x + 1)
        out: Tensor = self.fc(x.mean(dim=(2, 3)))
        return out


def test_stages_that_are_in_no_row_are_taken_from_feature_info() -> None:
    network, x = attached(Merging(feature_info=True), 64), images(64)
    assert network.groups == [("stage1",), ("stage2",), ("stage3",)]
    held: list[Tensor] = []
    network.metas[1].register_forward_pre_hook(lambda _, args: held.append(args[0]))
    network.metas[0].register_forward_hook(lambda _, args, out: held.append(out))
    start = [parameter.detach().clone() for parameter in network.trained()]
    network.adapt(x)
    assert held[0] is held[1], "a group takes what the one before gave, whatever is between"
    assert not any(map(torch.equal, network.trained(), start))
    with pytest.raises(InputError, match="'checkpoint' needs blocks in a row"):
        attached(Merging(feature_info=True), 64, memory="checkpoint")


def test_where_no_blocks_are_found_they_are_asked_for() -> None:
    with pytest.raises(InputError, match=r"no blocks in a row were found; name them: partition=\[\['layer1', ...\]"):
        attached(Merging(feature_info=False), 64)
    network = attached(Merging(feature_info=False), 64, partition=[["stage1", "stage2"], ["stage3"]])
    assert network.groups == [("stage1", "stage2"), ("stage3",)]
    assert network.adapt(images(64)).shape == (4, CLASSES)


def test_the_blocks_of_a_backbone_that_gives_a_dictionary_are_found() -> None:
    """Torchvision's networks that label pixels."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            trunk = WideResNet(16, 1)
            self.conv1, self.layer1, self.layer2 = trunk.conv1, trunk.block1.layer, trunk.block2.layer

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.layer2(self.layer1(self.conv1(x)))}

    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.classifier = Backbone(), nn.Conv2d(32, CLASSES, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.classifier(self.backbone(x)["out"])}

    network = attached(Pixels(), groups=2)
    assert [len(names) for names in network.groups] == [2, 2]
    assert network.groups[0][0] == "backbone.layer1.0"
    assert network.adapt(images(32)).shape == (4, CLASSES, 16, 16)


def test_what_is_asked_for_wins() -> None:
    model = timm.create_model("resnet18", num_classes=CLASSES)
    assert sizes(attached(model)) == [2, 1, 3, 2]
    assert sizes(attached(model, groups=2)) == [4, 4]
    assert sizes(attached(model, partition=[1, 5, 2])) == [1, 5, 2]
    network = attached(model, partition=[["layer1.1"], ["layer2", "layer3"]], kernel=1, form="separable")
    assert network.groups == [("layer1.1",), ("layer2", "layer3")]
    conv = network.metas[1].get_submodule("conv_block.conv")
    assert isinstance(conv, nn.Sequential)
    assert [tuple(parameter.shape) for parameter in conv.parameters()] == [(64, 1, 1, 1), (256, 64, 1, 1)]
    assert network.adapt(images(32)).shape == (4, CLASSES)


def test_the_convolution_has_the_stride_of_its_group() -> None:
    network = attached(WideResNet(16, 1, CLASSES), partition=[1, 4, 1])
    convolutions = [meta.get_submodule("conv_block.conv") for meta in network.metas]
    assert [conv.stride for conv in convolutions] == [(1, 1), (4, 4), (1, 1)]


@pytest.mark.parametrize("side", [16, 27, 40])
@pytest.mark.parametrize("form", ["conv", "separable", "residual"])
def test_images_may_have_another_size_than_the_one_at_first(side: int, form: str) -> None:
    network = attached(WideResNet(16, 1, CLASSES), 32, partition=[1, 4, 1], form=form)
    assert network.adapt(torch.rand(4, 3, side, side + 3)).shape == (4, CLASSES)


def test_a_group_may_lose_a_border_that_a_stride_keeps() -> None:
    """Pooling makes 13 places of 27, a convolution with a stride 14."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)) for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    network = attached(model, 32)
    assert network.groups == [("1",), ("2",), ("3",)]
    assert network.adapt(images(27)).shape == (4, CLASSES)


# ------------------------------------------------------------------------------------------------- the paper's networks
PAPER = {
    # (network, groups): blocks a group, kernel, parameters of the meta networks
    ("wrn_28_10", 4): ([2, 2, 4, 4], 3, 2_562_560),
    ("wrn_28_10", 5): ([2, 2, 2, 2, 4], 3, 3_485_440),
    ("wrn_40_2", 4): ([3, 3, 6, 6], 3, 107_008),
    ("wrn_40_2", 5): ([3, 3, 3, 3, 6], 3, 144_128),
    ("resnet50", 4): ([4, 4, 4, 4], 1, 3_721_216),
    ("resnet50", 5): ([2, 2, 4, 4, 4], 1, 3_836_928),
}


def paper_network(name: str) -> nn.Module:
    if name == "resnet50":
        model: nn.Module = timm.create_model(name)
        return model
    depth, width = map(int, name.removeprefix("wrn_").split("_"))
    return WideResNet(depth, width)


@pytest.mark.parametrize(("name", "groups"), PAPER)
def test_the_papers_partitions_and_parameters(name: str, groups: int) -> None:
    blocks, kernel, parameters = PAPER[name, groups]
    network = attached(paper_network(name), groups=groups)
    assert (sizes(network), network.kernel, trained(network)) == (blocks, kernel, parameters)


@pytest.mark.parametrize(("partition", "percent"), [([18], 0.8), ([9, 9], 3.7), ([6, 6, 6], 4.3)])
def test_the_overhead_that_the_paper_prints(partition: list[int], percent: float) -> None:
    """Fig. 4, of WRN-40-2 with 100 classes."""
    model = WideResNet(40, 2, 100)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert whole == 2_255_156
    assert round(100 * trained(attached(model, partition=partition)) / whole, 1) == percent


def test_a_separable_convolution_has_few_weights() -> None:
    """Of 16 channels nine weights each, then 32 outputs; two normalisations."""
    network = attached(WideResNet(16, 2, CLASSES), groups=1, partition=[6], form="separable")
    assert trained(network) == 16 * 9 + 16 * 128 + 4 * 128


# ---------------------------------------------------------------------------------------------------- within a budget
def test_a_budget_that_suffices_leaves_the_papers_cuts() -> None:
    """The table's 438.54 MB, of ResNet-50 at batches of 32."""
    model = timm.create_model("resnet50")
    network = attached(model, 224, groups=4, partition="auto", memory_budget_mb=440, batch_size=32)
    assert sizes(network) == [4, 4, 4, 4]
    assert profile_adaptation(network, images(224, 1)).paper_mb(32) == pytest.approx(438.54, abs=0.01)


@pytest.mark.parametrize(("groups", "budget"), [(5, 90.0), (4, 70.0)])
def test_a_tight_budget_moves_the_cuts_as_little_as_it_can(groups: int, budget: float) -> None:
    """At batches of 64 the paper's five groups take 92 MB and its four 80; one cut one block deeper is enough."""
    model = WideResNet(40, 2)
    network = attached(model, groups=groups, partition="auto", memory_budget_mb=budget, batch_size=64)
    assert profile_adaptation(network, images(32, 1)).paper_mb(64) <= budget
    cuts, wanted = (np.cumsum(sizes(of)) for of in (network, attached(model, groups=groups)))
    assert np.abs(cuts - wanted).sum() == 1


@pytest.mark.parametrize(("budget", "groups"), [(85.0, 5), (35.0, 3), (20.0, 1)])
def test_a_budget_buys_as_many_groups_as_fit(budget: float, groups: int) -> None:
    model = WideResNet(40, 2)
    options: dict[str, Any] = {"partition": "auto", "memory_budget_mb": budget, "batch_size": 64}
    network = attached(model, **options)
    assert len(network.groups) == groups
    assert profile_adaptation(network, images(32, 1)).paper_mb(64) <= budget
    if groups < 5:
        with pytest.raises(InputError, match="no partition fits"):
            attached(model, groups=groups + 1, **options)


def test_a_budget_that_is_too_small_is_told_the_least() -> None:
    model = WideResNet(40, 2)
    least = profile_adaptation(attached(model, partition=[18]), images(32, 1)).paper_mb(64)
    message = rf"no partition fits into 15 MB; one group takes {least:.1f} MB at batches of 64"
    with pytest.raises(InputError, match=re.escape(message)):
        attached(model, partition="auto", memory_budget_mb=15)


# ------------------------------------------------------------------------------------------------- what cannot be done
class Plain(nn.Module):
    """Without a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.relu(self.conv(x)).mean(dim=(2, 3)))
        return out


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "more groups than blocks": ({"groups": 9}, "9 groups of 8 blocks; groups must be from 1 to 8"),
    "no groups": ({"groups": 0}, "0 groups of 8 blocks"),
    "too few blocks": ({"partition": [2, 2, 2]}, r"partition \[2, 2, 2\] must be positive numbers that add up to 8"),
    "an empty group": ({"partition": [8, 0]}, "must be positive numbers"),
    "no numbers": ({"partition": []}, "must be positive numbers"),
    "two numbers of groups": ({"groups": 3, "partition": [4, 4]}, "the partition has 2 groups, groups is 3"),
    "an unknown name": ({"partition": [["layer1"], ["layer9"]]}, "calls no module named layer9"),
    "names in disorder": ({"partition": [["layer2"], ["layer1"]]}, "in the order layer1, layer2"),
    "a name twice": ({"partition": [["layer1"], ["layer1"]]}, "layer1 is named 2 times"),
    "a part of a block": ({"partition": [["layer1"], ["layer1.1"]]}, "layer1.1 lies within layer1"),
    "a group without names": ({"partition": [["layer1"], []]}, "must list the names of each group"),
    "names without groups": ({"partition": ["layer1", "layer2"]}, "must list the names of each group"),
    "another word": ({"partition": "deep"}, "partition must be default, auto, or lists, got 'deep'"),
    "auto without a budget": ({"partition": "auto"}, "need each other"),
    "a budget without auto": ({"memory_budget_mb": 100.0}, "need each other"),
    "an even kernel": ({"kernel": 2}, "kernel must be an odd number, got 2"),
    "another form": ({"form": "attention"}, "form must be auto, conv, separable or residual, got attention"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_told_in_a_line(what: str) -> None:
    options, message = WRONG[what]
    model = timm.create_model("resnet18", num_classes=CLASSES).train()
    with pytest.raises(InputError, match=message) as caught:
        attached(model, **options)
    assert "\n" not in str(caught.value)
    assert all(module.training for module in model.modules()), "the network is as it was"
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_network_without_normalisations_has_nothing_to_adapt_by() -> None:
    with pytest.raises(InputError, match="neither batch nor layer normalisation"):
        attached(Plain())


def test_tokens_take_no_convolutions() -> None:
    with pytest.raises(InputError, match=r"form 'conv' takes feature maps, the blocks give \(1, 5, 192\)"):
        attached(family("vit_tiny_patch16_224"), 32, form="conv")


@pytest.mark.parametrize(("name", "side"), [("vit_tiny_patch16_224", 48), ("resnet18", 0)])
def test_images_that_the_network_does_not_take(name: str, side: int) -> None:
    with pytest.raises(InputError, match=rf"does not take images of 3x{side}x{side} \(.+\)"):
        attached(family(name), side)


def test_a_block_that_is_called_twice_is_none() -> None:
    class Twice(Merging):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stage2(self.stage1(self.stage1(self.stem(x))))
            out: Tensor = self.fc(x.mean(dim=(2, 3)))
            return out

    with pytest.raises(InputError, match="calls stage1 2 times"):
        attached(Twice(feature_info=False), 64, partition=[["stage1"], ["stage2"]])
    with pytest.raises(InputError, match="no blocks in a row"):
        attached(Twice(feature_info=False), 64)
