"""ViViT against the numbers of the official flax modules; what the kinds of cases hold is said in their files."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules.video_sampling import crop_corners, dense_indices, window_starts
from tests.reference.cases import Case, case_names, load_case, normal
from vision.clips import uniform_indices
from vision.schedule import WarmupCosine
from vision.vivit.adapters import Layout, create_adapter, pool_grid
from vision.vivit.embedding import inflate, resize_positions, resize_temporal_positions
from vision.vivit.official import load_official, to_official
from vision.vivit.scores import joint_scores, mean_over_views, mix, smooth
from vision.vivit.temporal import EPS, TemporalTransformer, pool_tokens

POOLS = {"token": "token", "gap": "mean", "gmp": "max", "gsp": "sum"}


def _filled(case: Case) -> dict[str, Tensor]:
    """Parameters by the case's rule, whose standard deviation it states."""
    std = float(re.search(r"float32\)\*([0-9.]+[0-9])", case.info["fill_rule"])[1])
    filled = {}
    for key, shape in case.info["params"].items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        value = rng.standard_normal(tuple(shape)).astype(np.float32) * std
        one = key.endswith("/scale") or (len(shape) == 1 and key.endswith(".weight"))
        filled[key] = torch.from_numpy(np.asarray(1 + value if one else value, dtype=np.float32))
    return filled


def _video(case: Case) -> Tensor:
    shape = [int(n) for n in re.search(r"shape \[([\d, ]+)\]", case.info["input_rule"])[1].split(",")]
    return normal(shape).permute(0, 1, 4, 2, 3)


def check_factorised_encoder(case: Case) -> None:
    config, given, video = case.info["config"], _filled(case), _video(case)
    size = tuple(video.shape[-2:])
    network = load_official(given, size, video.shape[1], POOLS[config["classifier"]])
    assert {key: value.shape for key, value in to_official(network).items()} == {k: v.shape for k, v in given.items()}
    assert all(torch.equal(value, given[key]) for key, value in to_official(network).items())
    with torch.no_grad():
        clip = network.clip(video)
        tubelets = network.spatial.tubelets(clip)
        tokens = network.spatial(clip)
        features = network.summarise(video)
        results: dict[str, Any] = {
            "tokens": network.spatial.embed(tubelets.flatten(0, 1)).unflatten(0, tuple(tubelets.shape[:2])),
            "spatial_tokens": tokens,
            "spatial_features": features,
            "prelogits": network.features(features),
            "logits": network(video),
            "frame_indices": uniform_indices(video.shape[1], config["n_sampled_frames"] or video.shape[1]),
        }
        if network.temporal is not None:
            results["temporal_tokens"] = network.temporal(features)
    case.compare(results)


def check_init_tubelet(case: Case) -> None:
    kernel = torch.from_numpy(case.arrays["kernel2d_hwio"]).permute(3, 2, 0, 1)
    results: dict[str, Any] = {"kernel2d_hwio": case.arrays["kernel2d_hwio"], "bias": case.arrays["bias"]}
    names = {"central": "central_frame", "average": "average", "arp": "average_arp"}
    for key in case.arrays:
        if found := re.fullmatch(r"(central|average|arp)_t(\d+)", key):
            results[key] = inflate(kernel, int(found[2]), names[found[1]]).permute(2, 3, 4, 1, 0)
        elif key.startswith("scratch_"):  # a fault of the official code, stored as a warning
            results[key] = case.arrays[key]
    case.compare(results)


def check_init_posemb(case: Case) -> None:
    results: dict[str, Any] = {}
    for name, of in case.info["config"].items():
        source, target = (torch.from_numpy(case.arrays[f"{name}_{end}"]) for end in ("from", "to"))
        prefixes = int(of["source_has_cls"]), int(of["target_has_cls"])
        if of["temporal"]:
            found = resize_temporal_positions(source, target, *prefixes)
        else:
            found = resize_positions(source, target, *prefixes, of["size_change"], of["frames"] or 1)
        results |= {f"{name}_from": source, f"{name}_to": target, f"{name}_out": found}
    case.compare(results)


def check_views_sampling(case: Case) -> None:
    results: dict[str, Any] = {}
    logits = normal((2, 12, 7)) * 3
    results |= {"view_logits": logits, "mean_logits": mean_over_views(logits)}
    results["mean_softmax"] = mean_over_views(logits, "softmax")
    for key, array in case.arrays.items():
        if found := re.fullmatch(r"(offsets|frames)_n(\d+)_T(\d+)_s(\d+)_w(\d+)", key):
            count, frames, stride, windows = (int(number) for number in found.groups()[1:])
            starts = window_starts(count, frames, stride, windows)
            rows = np.stack([dense_indices(count, frames, stride, int(start)) for start in starts])
            results[key] = (starts if found[1] == "offsets" else rows).astype(np.int32)
        elif found := re.fullmatch(r"crops_h(\d+)_w(\d+)_s(\d+)", key):
            height, width, size = (int(number) for number in found.groups())
            results[key] = np.asarray(crop_corners(height, width, size, 3), dtype=np.int32)
        elif found := re.fullmatch(r"uniform_n(\d+)_k(\d+)", key):
            results[key] = uniform_indices(int(found[1]), int(found[2])).astype(np.int32)
        elif found := re.fullmatch(r"droplayer_rates_L(\d+)_r(\d)(\d)", key):
            rate = float(f"{found[2]}.{found[3]}")
            blocks = TemporalTransformer(8, 2, int(found[1]), 2, layer_drop=rate).blocks
            results[key] = np.array([getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks], np.float32)
        elif found := re.fullmatch(r"smooth_(\d)(\d)", key):
            results[key] = smooth(torch.from_numpy(case.arrays["mixup_labels"]), float(f"{found[1]}.{found[2]}"))
        elif key in ("nounverb_logits", "nounverb_onehot", "mixup_in", "mixup_labels", "lr_steps"):
            results[key] = array
    logits, onehot = (torch.from_numpy(case.arrays[f"nounverb_{of}"]) for of in ("logits", "onehot"))
    pairs = case.arrays["joint_scores"].shape[1]
    nouns = next(
        n for n in range(1, logits.shape[1]) if n * (logits.shape[1] - n) == pairs and onehot[:, :n].sum() == 3
    )
    results["joint_scores"] = joint_scores(logits[:, :nouns], logits[:, nouns:])
    results["joint_labels"] = (onehot[:, :nouns, None] * onehot[:, None, nouns:]).flatten(1)
    share = case.info["config"]["mixup_lambda"]
    results["mixup_out"] = mix(torch.from_numpy(case.arrays["mixup_in"]), share)
    results["mixup_labels_out"] = mix(torch.from_numpy(case.arrays["mixup_labels"]), share)
    rate = case.info["config"]["lr"]
    schedule = WarmupCosine(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate["base"]),
        warmup_epochs=rate["warmup_steps"],
        warmup_lr=0.0,
        min_lr=0.0,
        warmup_prefix=True,
        epochs=rate["total_steps"],
    )
    results["lr_values"] = np.array([schedule.rate(float(t), rate["base"]) for t in case.arrays["lr_steps"]])
    case.compare(results)


def _tokens(case: Case) -> tuple[Tensor, Layout]:
    config = case.info["config"]
    grid = tuple(config.get("token_grid") or config["grid"])
    tokens = normal((config["B"], config["T"], 1 + math.prod(grid), config["dim"])) * 3
    return tokens, Layout(config["dim"], 1, grid, has_class_token=True)


def _load(module: nn.Module, given: dict[str, Tensor], names: dict[str, str]) -> nn.Module:
    module.load_state_dict({ours: given[theirs] for ours, theirs in names.items()})
    return module


def _apply(adapter: Any, tokens: Tensor) -> Tensor:
    return adapter(adapter.summarise(tokens.flatten(0, 1)).unflatten(0, tuple(tokens.shape[:2])))


def _zeroed(adapter: nn.Module, *layers: str) -> nn.Module:
    for layer in layers:
        nn.init.zeros_(adapter.get_submodule(layer).weight)
        nn.init.zeros_(adapter.get_submodule(layer).bias)
    return adapter


@torch.no_grad()
def check_adapter_forms(case: Case) -> None:
    given, config, (tokens, layout) = _filled(case), case.info["config"], _tokens(case)
    results: dict[str, Any] = {"tokens": tokens}
    width = config["reduction"]
    if "adapter.reduce.weight" in given:
        linear = {f"{of}.{part}": f"adapter.{of}.{part}" for of in ("reduce", "expand") for part in ("weight", "bias")}
        grid = config["grid"]
        plain = _load(create_adapter("grid", layout, "token", width, grid), given, linear)
        results["grid_plain"] = _apply(plain, tokens)
        normed = torch.nn.functional.layer_norm(
            tokens, tokens.shape[-1:], given["adapter.norm.weight"], given["adapter.norm.bias"], EPS
        )
        cells = pool_grid(normed.flatten(0, 1), layout, grid).unflatten(0, tuple(tokens.shape[:2]))
        results["cacheable_normed_grid"] = cells.unflatten(2, (grid, grid))
        own = {"norm_weight": "adapter.norm.weight", "norm_bias": "adapter.norm.bias", **linear}
        results["grid_pooled_before_gelu"] = plain.reduce(cells).transpose(-1, -2).flatten(-2)
        for name, pool in (("cls", "token"), ("mean", "mean")):
            residual = _load(create_adapter("grid_residual", layout, pool, width, grid), given, own)
            results[f"grid_residual_{name}"] = _apply(residual, tokens)
            results[f"identity_{name}"] = _apply(_zeroed(residual, "expand"), tokens)
        case.compare(results)
        return
    layers = [f"{of}.{part}" for of in ("norm", "down", "up") for part in ("weight", "bias")]
    names = {f"bottleneck.{layer}": f"adapter.{layer}" for layer in layers}
    results["frame_cls"] = _apply(_load(create_adapter("frame", layout, "token", width), given, names), tokens)
    for name, pool in (("cls", "token"), ("mean", "mean")):
        results[f"token_{name}"] = _apply(_load(create_adapter("token", layout, pool, width), given, names), tokens)
    same = _zeroed(create_adapter("token", layout, "mean", width), "bottleneck.up")
    results["identity_init_mean"] = _apply(same, tokens)
    convolved = {**names, "conv.weight": "adapter.dw.weight", "conv.bias": "adapter.dw.bias"}
    conv = _load(create_adapter("conv3d", layout, "mean", width), given, convolved)
    results["conv3d_tokens"], results["conv3d_mean"] = conv.adapted(tokens), _apply(conv, tokens)
    heads, queries = config["heads"], config["queries"]
    attention = create_adapter("attention", layout, "token", heads=heads, queries=queries)
    _load(attention, given, {key: f"pool.{key}" for key in attention.state_dict()})
    results["attnpool"] = _apply(attention, tokens).unflatten(1, (config["T"], queries))
    for key in case.arrays:
        if found := re.fullmatch(r"grid(\d+)", key):
            cells = pool_grid(tokens.flatten(0, 1), layout, int(found[1]))
            results[key] = cells.unflatten(0, tuple(tokens.shape[:2]))
    assert torch.equal(pool_tokens(tokens, 1, "mean"), tokens[:, :, 1:].mean(dim=2))
    case.compare(results)


CHECKS: dict[str, Callable[[Case], None]] = {
    "factorised_encoder": check_factorised_encoder,
    "init_tubelet": check_init_tubelet,
    "init_posemb": check_init_posemb,
    "views_sampling": check_views_sampling,
    "adapter_forms": check_adapter_forms,
}


@pytest.mark.parametrize("name", case_names("vivit"))
def test_case(name):
    case = load_case("vivit", name)
    assert case.kind in CHECKS, f"{name}: no check for cases of kind '{case.kind}'"
    CHECKS[case.kind](case)
