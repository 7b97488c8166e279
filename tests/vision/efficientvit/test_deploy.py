"""The forms for inference: the outputs of the network that they are made from, at every size and precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.reference.cases import assert_close, fill_state, normal
from tests.vision.efficientvit.weights import lively
from vision.efficientvit import VARIANTS, EfficientViT, build, deploy, fuse
from vision.errors import InputError
from vision.measure import count_macs

TOLERANCE = 1e-5  # of the largest logit
FORMS = pytest.mark.parametrize("form", [fuse, deploy])
MACS = {"m0": 79.2e6, "m1": 167.1e6, "m2": 201.0e6, "m3": 262.7e6, "m4": 299.3e6, "m5": 521.6e6}
TINY = {"num_classes": 7, "embed_dim": (16, 32, 48), "num_heads": (2, 4, 3), "kernels": (7, 5, 3, 3)}


def filled(network: EfficientViT) -> EfficientViT:
    network.load_state_dict(lively(network))
    return network.eval()


def calm(network: EfficientViT) -> EfficientViT:
    """With weights that keep rounding as small as it is."""
    network.load_state_dict(fill_state({key: value.shape for key, value in network.state_dict().items()}))
    return network.eval()


def tiny(**settings) -> EfficientViT:
    return filled(EfficientViT(**{**TINY, **settings}))


def logits(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x)


@FORMS
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_at_its_own_size_and_at_odd_ones(variant, form):
    network = calm(build(variant))
    made = form(network)
    for size in ((224, 224), (200, 130), (97, 63)):
        x = normal((1, 3, *size))
        assert_close("logits", logits(made, x), logits(network, x), TOLERANCE)


@FORMS
@pytest.mark.parametrize("variant", ["efficientvit_m0", "efficientvit_m5"])
def test_weights_that_magnify_every_difference(variant, form):
    """In float64, since these weights magnify float32's rounding to a thousandth of the logits."""
    network = filled(build(variant)).double()
    for size in ((224, 224), (200, 130)):
        x = normal((1, 3, *size)).double()
        assert_close("logits", logits(form(network), x), logits(network, x), 1e-10)


@pytest.mark.parametrize("variant", MACS)
def test_macs_of_variants_and_of_their_deployed_form(variant):
    network, x = build(f"efficientvit_{variant}"), torch.zeros(1, 3, 224, 224)
    assert count_macs(network, x) == pytest.approx(MACS[variant], rel=1e-3)
    assert count_macs(deploy(network), x) == count_macs(network, x)


@pytest.mark.filterwarnings("ignore:EfficientViT at")
@FORMS
@pytest.mark.parametrize("size", [(256, 256), (240, 320), (448, 224), (32, 16)])
def test_sizes_that_the_network_was_built_for(form, size):
    network = tiny(img_size=size).double()
    x = normal((2, 3, *size)).double()
    assert_close("logits", logits(form(network), x), logits(network, x), 1e-10)


@FORMS
def test_nothing_is_left_to_normalise_and_the_source_is_untouched(form):
    network = tiny().train()
    before = copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()
    made = form(network)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in made.modules())
    assert not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)  # a training that goes on draws the same numbers
    for parameter in made.parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@FORMS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.02)])
def test_precision_can_change_afterwards(form, dtype, tolerance):
    network, x = calm(EfficientViT(**TINY)), normal((2, 3, 224, 224))
    made = form(network)
    logits(made, x)
    found = logits(made.to(dtype), x.to(dtype))
    assert found.dtype == dtype
    assert_close("logits", found.double(), logits(network, x), tolerance)


@FORMS
def test_two_heads_become_their_mean(form):
    network, x = tiny(distillation=True), normal((2, 3, 96, 96))
    assert_close("logits", logits(form(network), x), logits(network, x), TOLERANCE)


@FORMS
def test_without_a_head_the_features_come_out(form):
    network, x = tiny(num_classes=0), normal((2, 3, 96, 96))
    assert_close("features", logits(form(network), x), logits(network, x), TOLERANCE)


@FORMS
def test_grayscale_and_channels_last_input(form):
    network, x = tiny(in_chans=1), normal((2, 1, 96, 96)).to(memory_format=torch.channels_last)
    assert_close("logits", logits(form(network), x), logits(network, x), TOLERANCE)


def test_classifier_of_the_fused_network_can_be_had():
    """It raises in timm once a network is fused."""
    assert fuse(tiny()).get_classifier().out_features == TINY["num_classes"]


@pytest.mark.filterwarnings("ignore:EfficientViT at")
def test_what_a_compiler_sees_gives_the_same_outputs():
    """Compiled on a CPU, depthwise convolutions are written out tap by tap; this backend only collects the graph."""
    size = (200, 136)
    network = tiny(img_size=size, depth=(1, 1, 1))
    graphs = []

    def collect(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    x = normal((2, 3, *size))
    compiled = torch.compile(deploy(network), backend=collect, fullgraph=True)
    assert_close("logits", logits(compiled, x), logits(network, x), TOLERANCE)
    (graph,) = graphs
    convolutions = [node for node in graph.graph.nodes if node.target is torch.conv2d]
    assert len(convolutions) == 4  # those of the stem


@FORMS
def test_what_cannot_be_deployed_is_named(form):
    with pytest.raises(InputError, match="has been fused before"):
        form(fuse(tiny()))
    with pytest.raises(InputError, match="takes an EfficientViT, got Linear"):
        form(nn.Linear(2, 2))
    with pytest.raises(
        InputError, match=r"\(batch, 3, height, width\) of at least 16 pixels a side, got \(1, 3, 8, 8\)"
    ):
        form(tiny())(torch.zeros(1, 3, 8, 8))
