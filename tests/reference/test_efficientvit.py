"""EfficientViT against the numbers of the official code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn

from datamodules.sampling import TrainSampler
from tests.reference.cases import Case, assert_close, case_names, fill_state, lists_in, load_case, normal
from vision.distillation import distillation_loss
from vision.efficientvit import EfficientViT, build, load_official, to_official
from vision.efficientvit.attention import (
    CascadedGroupAttention,
    LocalWindowAttention,
    relative_index,
    resize_bias,
)
from vision.efficientvit.checkpoint import from_timm, to_timm_key
from vision.efficientvit.layers import BNLinear, ConvBN, PatchMerging
from vision.schedule import WarmupCosine

# A network that is fed windows with padding warns of it; such cases are wanted here.
pytestmark = pytest.mark.filterwarnings("ignore:EfficientViT at:UserWarning")

INDEX = "attention_bias_idxs"


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A module's state dict by rule, without the index buffers, whose shapes must be those of ours."""
    for key, shape in shapes.items():
        if key.endswith(INDEX):
            side = math.isqrt(shape[0])
            assert tuple(shape) == relative_index(side, side).shape
    return fill_state({key: shape for key, shape in shapes.items() if not key.endswith(INDEX)})


def official_file(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A state dict by rule with the index buffers, as an official file has them."""
    state = weights(shapes)
    for key in shapes:
        if key.endswith(INDEX):
            side = math.isqrt(shapes[key][0])
            state[key] = relative_index(side, side)
    return state


def image(case: Case) -> Tensor:
    return normal(lists_in(case.info["input_rule"])[0])


def shapes_of(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in state.items()}


def outputs_of(network: nn.Module, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Fills itself, at the network's next call, with what the modules give out."""
    outputs: dict[str, Tensor] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _m, _i, output, name=name: outputs.__setitem__(name, output))
    return outputs


# ------------------------------------------------------------------------------------------- networks and modules
@torch.no_grad()
def check_model(case: Case) -> None:
    network = load_official(official_file(case.info["params"]), **case.info["config"])
    assert shapes_of(to_official(network.state_dict())) == case.info["params"]
    assert sum(p.numel() for p in network.parameters()) == case.info["n_params"]

    stages = {
        "patch_embed": network.patch_embed,
        "stage1": network.blocks1,
        "stage2": network.blocks2,
        "stage3": network.blocks3,
    }
    maps = outputs_of(network, stages)
    logits = network(image(case))
    means = [maps[name].abs().mean() for name in stages]
    pooled = network.forward_head(maps["stage3"], pre_logits=True)
    for name in maps:  # some are stored with every n-th channel only
        if name in case.arrays:
            maps[name] = maps[name][:, :: maps[name].shape[1] // case.arrays[name].shape[1]]
    case.compare({"logits": logits, "pooled": pooled, "stage_mean_abs": torch.stack(means), **maps})


@torch.no_grad()
def check_distilled_heads(case: Case) -> None:
    config = case.info["config"]
    shapes = shapes_of(to_official(EfficientViT(**config).state_dict()))
    assert {key: shapes.get(key) for key in case.info["params"]} == case.info["params"]
    network = load_official(official_file(shapes), **config)
    x = image(case)
    pooled = network.forward_head(network.forward_features(x), pre_logits=True)
    case.compare({"head": network.head(pooled), "head_dist": network.head_dist(pooled), "eval_output": network(x)})


@torch.no_grad()
def check_attention(case: Case) -> None:
    config = case.info["config"]
    heads, key_dim, side = config["num_heads"], config["key_dim"], config["resolution"]
    attention = CascadedGroupAttention(config["dim"], key_dim, heads, (side, side), config["kernels"]).eval()
    attention.load_state_dict(weights(case.info["params"]))
    assert attention.value_dim == int(config["attn_ratio"] * key_dim)

    inside = outputs_of(attention, {f"qkv{i}": module for i, module in enumerate(attention.qkvs)})
    queries = outputs_of(attention, {f"q{i}": module for i, module in enumerate(attention.dws)})
    joined: list[Tensor] = []
    attention.proj.register_forward_pre_hook(lambda _m, inputs: joined.append(inputs[0]))
    results: dict[str, Any] = {"out": attention(image(case)), "bias_idxs": relative_index(side, side)}
    bias = attention.bias(side, side)
    for i, head in enumerate(joined[0].chunk(heads, dim=1)):
        _, k, v = inside[f"qkv{i}"].flatten(2).split([key_dim, key_dim, attention.value_dim], dim=1)
        scores = torch.einsum("bcq,bck->bqk", queries[f"q{i}"].flatten(2), k) / key_dim**0.5
        weights_of_keys = (scores + bias[i]).softmax(dim=-1)
        # Those are the weights that the head used, since they lead from its values to its output.
        assert_close(f"head {i}", torch.einsum("bqk,bck->bcq", weights_of_keys, v), head.flatten(2))
        results |= {f"head{i}": head, f"attn{i}_first_image": weights_of_keys[0], f"bias_h{i}": bias[i]}
    case.compare(results)


@torch.no_grad()
def check_window_attention(case: Case) -> None:
    config = case.info["config"]
    side = config["resolution"]
    module = LocalWindowAttention(
        config["dim"],
        config["key_dim"],
        config["num_heads"],
        (side, side),
        config["window_resolution"],
        config["kernels"],
    ).eval()
    module.load_state_dict(weights(case.info["params"]))
    case.compare({"out": module(image(case))})


@torch.no_grad()
def check_patch_merging(case: Case) -> None:
    config = case.info["config"]
    module = PatchMerging(config["dim"], config["out_dim"]).eval()
    module.load_state_dict(weights(case.info["params"]))
    case.compare({"out": module(image(case))})


@torch.no_grad()
def check_fuse(case: Case) -> None:
    config, shapes = case.info["config"], lists_in(case.info["input_rule"])
    conv, linear = config["conv"], config["linear"]
    modules = {
        "conv": ConvBN(conv["a"], conv["b"], conv["ks"], conv["stride"], conv["pad"], conv["groups"]).eval(),
        "lin": BNLinear(linear["a"], linear["b"]).eval(),
    }
    results = {}
    for (name, module), key, shape in zip(modules.items(), ("conv", "linear"), shapes, strict=True):
        module.load_state_dict(weights(case.info["params"][key]))
        fused, x = module.fuse(), normal(shape)
        results |= {f"{name}_w": fused.weight, f"{name}_b": fused.bias, f"{name}_out": fused(x)}
        assert_close(f"{name}_out unfused", module(x), case.arrays[f"{name}_out"])
    case.compare(results)


def check_bias_resize(case: Case) -> None:
    shape = lists_in(case.info["input_rule"])[0]
    table, side = normal(shape), math.isqrt(shape[1])
    results = {}
    for new in {int(found[1]) for key in case.arrays if (found := re.fullmatch(r"(?:off|timm)(\d+)", key))}:
        for name, antialias in (("off", False), ("timm", True)):
            results[f"{name}{new}"] = resize_bias(table, (side, side), (new, new), antialias)
    case.compare(results)
    for new, difference in case.info["max_diff"].items():
        assert_close(f"max_diff {new}", (results[f"off{new}"] - results[f"timm{new}"]).abs().max(), difference)


# ----------------------------------------------------------------------------------------------------- training
def check_tiny_train(case: Case) -> None:
    shape, labels = lists_in(case.info["input_rule"])
    network = EfficientViT(**case.info["config"]).train()
    official = to_official(network.state_dict())
    assert shapes_of(official) == case.info["params"]
    network.load_state_dict(weights(case.info["params"]))
    logits = network(normal(shape))
    loss = F.cross_entropy(logits, torch.tensor(labels))
    loss.backward()

    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    results = {
        "logits": logits,
        "loss": loss,
        "grad_stem": gradients["patch_embed.0.c.weight"],
        "grad_attention_biases": gradients["blocks2.3.mixer.m.attn.attention_biases"],
        "grad_head_l": gradients["head.l.weight"],
    }
    results |= {f"grad_{name.replace('.', '_')}": gradient for name, gradient in gradients.items()}
    results |= {f"after_{name.replace('.', '_')}": value for name, value in network.state_dict().items()}
    # In float32 these gradients, the reference's too, are up to 3e-5 from those in float64, depending on the number
    # of threads; those of shifts that a normalisation takes away again are nothing but rounding.
    case.compare(results, exceptions=dict.fromkeys((key for key in results if key.startswith("grad_")), 1e-4))
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
    assert norms == pytest.approx(case.info["grad_norms"], rel=1e-4, abs=1e-6)


def check_training(case: Case) -> None:
    """The parts of the recipe, each with the numbers that the case's notes give for it."""
    notes, values = case.info["notes"], dict(case.info["values"])

    def said(words: str, usual: float) -> float:
        """The number at ``#`` in the notes."""
        found = re.search(words.replace("#", r"(\d+(?:\.\d+)?(?:e-?\d+)?)"), notes)
        return float(found[1]) if found else usual

    rates = values.pop("lr_used_in_epoch", {})
    sampler = values.pop("ra_sampler", {})
    clipped = values.pop("agc", {})

    # losses
    logits, student, teacher, soft = (normal((4, 5), seed) for seed in (1, 2, 3, 4))
    labels = torch.tensor(lists_in(notes)[0])
    alpha = said("alpha #", 0.5)
    base = F.cross_entropy(logits, soft.softmax(dim=1))
    for name, expected in values.items():
        smoothing = re.fullmatch(r"label_smoothing_ce_([\d.]+)", name)
        distilled = re.fullmatch(r"distill_(none|soft|hard)_tau([\d.]+)", name)
        if name == "soft_target_ce":
            loss = base
        elif smoothing:
            loss = F.cross_entropy(logits, labels, label_smoothing=float(smoothing[1]))
        elif distilled and distilled[1] == "none":
            loss = base
        elif distilled:
            loss = (1 - alpha) * base + alpha * distillation_loss(student, teacher, distilled[1], float(distilled[2]))
        else:
            pytest.fail(f"value not checked: {name}")
        assert_close(name, loss, expected)

    # learning rate; the official loop sets it after each epoch, so that epoch e runs at the value for e - 1
    peak, warmup = said("base #", 4e-3), said("warm-up # epochs", 5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak)
    start, end = said("epochs from #", 1e-6), said("min #", 1e-5)
    schedule = WarmupCosine(optimizer, warmup, start, end, per="epoch", epochs=300)
    steps = 3
    schedule.bind(epochs=300, steps_per_epoch=steps)
    ours = []
    for _ in range(300 * steps):
        ours.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    for epoch, rate in rates.items():
        of_epoch = max(int(epoch) - 1, 0) * steps
        for step in range(steps):
            assert ours[of_epoch + step] == pytest.approx(rate, rel=1e-9), f"learning rate of epoch {epoch}"

    # repeated augmentation
    length, replicas = int(said("length #", 1000)), int(said("# replicas", 2))
    orders = []
    for rank in range(replicas):
        ours_of_rank = TrainSampler(range(length), replicas, rank, repeats=3)
        ours_of_rank.set_epoch(int(said("epoch #,", 3)))
        orders.append([item for item, _seed in ours_of_rank])
        assert len(orders[-1]) == len(ours_of_rank)
    for name, expected in sampler.items():
        first, unique = re.fullmatch(r"rank(\d+)_first(\d+)", name), re.fullmatch(r"unique_rank(\d+)", name)
        found: Any
        if name == "len":
            found = len(orders[0])
        elif name == "unique_both":
            found = len(set().union(*orders))
        elif first:
            found = orders[int(first[1])][: int(first[2])]
        elif unique:
            found = len(set(orders[int(unique[1])]))
        else:
            pytest.fail(f"value not checked: ra_sampler {name}")
        assert found == expected, f"ra_sampler {name}"

    # adaptive gradient clipping
    factor, eps = said("clip_factor #", 0.02), said("eps #", 1e-3)
    sources = {"w_grad": (5, 6, 0.5), "b_grad": (7, 8, 1.0)}
    for name, expected in clipped.items():
        if name not in sources:
            pytest.fail(f"value not checked: agc {name}")
        weight_seed, gradient_seed, scale = sources[name]
        parameter = nn.Parameter(normal(np.shape(expected), weight_seed))
        parameter.grad = scale * normal(np.shape(expected), gradient_seed)
        adaptive_clip_grad(parameter, clip_factor=factor, eps=eps)
        assert_close(f"agc {name}", parameter.grad, expected)


def check_keymap_timm(case: Case) -> None:
    maps = {key.removeprefix("map_"): value for key, value in case.info.items() if key.startswith("map_")}
    assert maps
    for variant, names in maps.items():
        own = to_official(build(f"efficientvit_{variant}").state_dict())
        assert set(own) == set(names)
        assert {key for key, name in names.items() if name is None} == {key for key in own if key.endswith(INDEX)}
        renamed = {key: name for key, name in names.items() if name is not None}
        assert {key: to_timm_key(key) for key in renamed} == renamed
        back = from_timm({name: own[key] for key, name in renamed.items()})
        assert set(back) == set(renamed)
        assert all(back[key] is own[key] for key in renamed)


CHECKS: dict[str, Callable[[Case], None]] = {
    "model": check_model,
    "distilled_heads": check_distilled_heads,
    "cascaded_group_attention": check_attention,
    "window_attention": check_window_attention,
    "patch_merging": check_patch_merging,
    "fuse": check_fuse,
    "bias_resize": check_bias_resize,
    "tiny_train": check_tiny_train,
    "training": check_training,
    "keymap_timm": check_keymap_timm,
}


@pytest.mark.parametrize("name", case_names("efficientvit"))
def test_efficientvit(name: str) -> None:
    case = load_case("efficientvit", name)
    assert case.kind in CHECKS, f"{name} is of a kind that is not checked: {case.kind}"
    CHECKS[case.kind](case)
