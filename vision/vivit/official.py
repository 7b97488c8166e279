"""The official release's flax parameters of the factorised encoder, to ours and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vision.checkpoints import StateDict, check_finite, check_keys, load_strict
from vision.errors import InputError, shorten
from vision.vivit.flax_file import read_flax
from vision.vivit.model import AdapterOptions, FactorisedViViT, TemporalOptions, ViViTConfig
from vision.vivit.temporal import Pool

PARTS = {"SpatialTransformer": "spatial.vit.", "TemporalTransformer": "temporal."}
_ATTENTION = "MultiHeadDotProductAttention_0"
_PLAIN = {
    "LayerNorm_0/scale": "norm1.weight",
    "LayerNorm_0/bias": "norm1.bias",
    "LayerNorm_1/scale": "norm2.weight",
    "LayerNorm_1/bias": "norm2.bias",
    f"{_ATTENTION}/out/bias": "attn.proj.bias",
    "MlpBlock_0/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_0/Dense_1/bias": "mlp.fc2.bias",
}
_DENSE = {"MlpBlock_0/Dense_0/kernel": "mlp.fc1.weight", "MlpBlock_0/Dense_1/kernel": "mlp.fc2.weight"}


def load_official(
    source: str | Path | Mapping[str, Tensor],
    image_size: tuple[int, int] | None = None,
    frames: int | None = None,
    pool: Pool | None = None,
) -> FactorisedViViT:
    """The official factorised encoder from a file or parameters by their flax names, in evaluation mode.

    Sizes follow from the parameters.

    Args:
        source: a flax checkpoint, an ``.npz`` of flattened names, or parameters by name.
        image_size: (height, width) in pixels; by default square.
        frames: of a clip; by default those that the temporal positions are for.
        pool: how tokens are pooled over space and time: by default by the class token where there is one, else by the
            mean (the parameters do not say whether it was the mean, the maximum or the sum).

    Raises:
        InputError: the file is unreadable, or of another model, or parameters are missing, unexpected or misshapen.
    """
    given = source if isinstance(source, Mapping) else read_flax(source)
    name = "parameters" if isinstance(source, Mapping) else str(source)
    check_finite(given, name)
    config = official_config(given, name, image_size, frames, pool)
    network = FactorisedViViT(config)
    expected = {key: value.shape for key, value in to_official(network).items()}
    check_keys(given, expected, name)
    load_strict(network, from_official(given, name), name)
    return network.eval()


def official_config(
    given: Mapping[str, Tensor],
    name: str,
    image_size: tuple[int, int] | None = None,
    frames: int | None = None,
    pool: Pool | None = None,
) -> ViViTConfig:
    """What the parameters say of the network; arguments as in :func:`load_official`."""
    query = f"SpatialTransformer/encoderblock_0/{_ATTENTION}/query/kernel"
    positions = "SpatialTransformer/posembed_input/pos_embedding"
    first = "SpatialTransformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"
    needed = ("embedding/kernel", query, positions, first, "output_projection/kernel")
    if missing := [key for key in needed if key not in given]:
        hint = ""
        if any(key.startswith("Transformer/") for key in given):
            hint = "; it is of an image transformer or of the joint model, only the factorised encoder is known here"
        raise InputError(f"{name}: not a factorised encoder, it lacks {shorten(missing)}{hint}")
    _check_ranks(given, name)
    kernel, (dim, heads, _) = given["embedding/kernel"], given[query].shape
    patch = tuple(kernel.shape[-4:-2])
    sampled = kernel.ndim == 4
    tubelet = 1 if sampled else int(kernel.shape[0])
    has_class_token = "cls_SpatialTransformer" in given
    patches = int(given[positions].shape[1]) - has_class_token
    if image_size is None:
        side = math.isqrt(patches)
        if side * side != patches:
            raise InputError(f"{name}: its positions are for {patches} patches, no square: give image_size")
        image_size = (side * patch[0], side * patch[1])
    layers = {part: _layers(given, part, name) for part in PARTS}
    steps = given.get("TemporalTransformer/posembed_input/pos_embedding")
    length = int(steps.shape[1]) - has_class_token if steps is not None else 1
    frames = frames if frames is not None else length * tubelet
    pre_logits = given.get("pre_logits/kernel")
    return ViViTConfig(
        backbone="vit_base_patch16_224",
        num_classes=int(given["output_projection/kernel"].shape[1]),
        frames=frames,
        image_size=image_size,
        tubelet=tubelet,
        sampled_frames=length if sampled and steps is not None else None,
        pool=pool or ("token" if has_class_token else "mean"),
        temporal_pool=pool or ("token" if has_class_token else "mean"),
        adapter=AdapterOptions("none"),
        temporal=TemporalOptions(layers["TemporalTransformer"], heads, given[first].shape[1] / dim),
        pre_logits=0 if pre_logits is None else int(pre_logits.shape[1]),
        backbone_options={
            "patch_size": patch,
            "embed_dim": dim,
            "depth": layers["SpatialTransformer"],
            "num_heads": heads,
            "mlp_ratio": given[first].shape[1] / dim,
            "act_layer": "gelu_tanh",
            "class_token": has_class_token,
            "global_pool": "token" if has_class_token else "",
        },
    )


def _layers(given: Mapping[str, Tensor], part: str, name: str) -> int:
    numbers = {int(found[1]) for key in given if (found := re.match(rf"{part}/encoderblock_(\d+)/", key))}
    if missing := [number for number in range(len(numbers)) if number not in numbers]:
        raise InputError(f"{name}: missing {part}/encoderblock_{missing[0]}")
    return len(numbers)


def _check_ranks(given: Mapping[str, Tensor], name: str) -> None:
    wrong = [f"{key} {tuple(value.shape)}" for key, value in given.items() if value.ndim not in _ranks(key, value)]
    if wrong:
        raise InputError(f"{name}: misshapen {shorten(wrong)}")


def _ranks(key: str, value: Tensor) -> tuple[int, ...]:
    """How many axes a parameter may have; any, where the key is none of the encoder's."""
    if key.startswith("cls_") or key.endswith("/pos_embedding"):
        return (3,)
    if f"/{_ATTENTION}/" in key:
        return (3,) if key.endswith("kernel") else (1,) if "/out/" in key else (2,)
    if key.startswith(("embedding/", "pre_logits/", "output_projection/", *PARTS)):
        return (1,) if not key.endswith("kernel") else (4, 5) if key.startswith("embedding/") else (2,)
    return (value.ndim,)


def from_official(given: Mapping[str, Tensor], name: str = "parameters") -> StateDict:
    """Our state dict of the official parameters, whatever parts of the network they are of.

    Raises:
        InputError: of a part that is there something is missing, or has another number of axes.
    """
    _check_ranks(given, name)
    try:
        return _from_official(given, name)
    except KeyError as error:
        raise InputError(f"{name}: missing {error.args[0]}") from error
    except RuntimeError as error:
        raise InputError(f"{name}: misshapen query, key or value ({str(error).splitlines()[0]})") from error


def _from_official(given: Mapping[str, Tensor], name: str) -> StateDict:
    state: StateDict = {}
    if "embedding/kernel" in given:
        kernel = given["embedding/kernel"]
        order = (4, 3, 0, 1, 2) if kernel.ndim == 5 else (3, 2, 0, 1)
        state["spatial.vit.patch_embed.proj.weight"] = kernel.permute(order)
        state["spatial.vit.patch_embed.proj.bias"] = given["embedding/bias"]
    for part, prefix in PARTS.items():
        for theirs, ours in _outer(part, prefix):
            if theirs in given:
                state[ours] = given[theirs]
        for number in range(_layers(given, part, name)):
            block = _block(given, f"{part}/encoderblock_{number}/")
            state |= {f"{prefix}blocks.{number}.{key}": value for key, value in block.items()}
    for theirs, ours in (("pre_logits", "pre_logits"), ("output_projection", "head")):
        if f"{theirs}/kernel" in given:
            state |= {f"{ours}.weight": given[f"{theirs}/kernel"].T, f"{ours}.bias": given[f"{theirs}/bias"]}
    return {key: value.contiguous() for key, value in state.items()}


def _outer(part: str, prefix: str) -> Iterator[tuple[str, str]]:
    yield f"cls_{part}", f"{prefix}cls_token"
    yield f"{part}/posembed_input/pos_embedding", f"{prefix}pos_embed"
    yield f"{part}/encoder_norm/scale", f"{prefix}norm.weight"
    yield f"{part}/encoder_norm/bias", f"{prefix}norm.bias"


def _block(given: Mapping[str, Tensor], at: str) -> StateDict:
    state = {ours: given[at + theirs] for theirs, ours in _PLAIN.items()}
    state |= {ours: given[at + theirs].T for theirs, ours in _DENSE.items()}
    parts = [f"{at}{_ATTENTION}/{part}" for part in ("query", "key", "value")]
    state["attn.qkv.weight"] = torch.cat([given[f"{part}/kernel"].flatten(1).T for part in parts])
    state["attn.qkv.bias"] = torch.cat([given[f"{part}/bias"].flatten() for part in parts])
    state["attn.proj.weight"] = given[f"{at}{_ATTENTION}/out/kernel"].flatten(0, 1).T
    return state


def to_official(network: FactorisedViViT) -> StateDict:
    """The parameters of a network without adapter by their flax names, the inverse of :func:`from_official`.

    Raises:
        InputError: the network has parts that the official one does not have.
    """
    state = network.state_dict()
    heads = {"SpatialTransformer": network.spatial.vit.blocks[0].attn.num_heads}
    if network.temporal is not None:
        heads["TemporalTransformer"] = network.temporal.blocks[0].attn.num_heads  # type: ignore[union-attr]
    kernel = state.pop("spatial.vit.patch_embed.proj.weight")
    found = {
        "embedding/kernel": kernel.permute((2, 3, 4, 1, 0) if kernel.ndim == 5 else (2, 3, 1, 0)),
        "embedding/bias": state.pop("spatial.vit.patch_embed.proj.bias"),
    }
    for part in heads:
        prefix = PARTS[part]
        for theirs, ours in _outer(part, prefix):
            if ours in state:
                found[theirs] = state.pop(ours)
        blocks = network.spatial.vit.blocks if part == "SpatialTransformer" else network.temporal.blocks  # type: ignore[union-attr]
        for number in range(len(blocks)):
            place = f"{prefix}blocks.{number}."
            of = {key: state.pop(key) for key in list(state) if key.startswith(place)}
            of = {key.removeprefix(place): value for key, value in of.items()}
            block = _block_to_official(of, heads[part])
            found |= {f"{part}/encoderblock_{number}/{key}": value for key, value in block.items()}
    for theirs, ours in (("pre_logits", "pre_logits"), ("output_projection", "head")):
        if f"{ours}.weight" in state:
            found |= {f"{theirs}/kernel": state.pop(f"{ours}.weight").T, f"{theirs}/bias": state.pop(f"{ours}.bias")}
    if state:
        raise InputError(f"the official layout has no place for {shorten(list(state))}")
    return {key: value.contiguous() for key, value in found.items()}


def _block_to_official(of: Mapping[str, Tensor], heads: int) -> StateDict:
    state = {theirs: of[ours] for theirs, ours in _PLAIN.items()}
    state |= {theirs: of[ours].T for theirs, ours in _DENSE.items()}
    for part, weight, bias in zip(
        ("query", "key", "value"), of["attn.qkv.weight"].chunk(3), of["attn.qkv.bias"].chunk(3), strict=True
    ):
        state[f"{_ATTENTION}/{part}/kernel"] = weight.T.unflatten(1, (heads, -1))
        state[f"{_ATTENTION}/{part}/bias"] = bias.unflatten(0, (heads, -1))
    state[f"{_ATTENTION}/out/kernel"] = of["attn.proj.weight"].T.unflatten(0, (heads, -1))
    return state
