"""Official and timm checkpoints of EfficientViT, read strictly, and the way back to either."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision.checkpoints import StateDict, load_strict, read_state_dict
from vision.efficientvit.attention import relative_index, resize_bias
from vision.efficientvit.model import EfficientViT
from vision.errors import InputError, shorten

INDEX = ".attention_bias_idxs"  # official files carry the index that follows from the window; ours is computed


def to_timm_key(key: str) -> str:
    """The name that timm gives to an official parameter."""
    parts = key.split(".")
    if parts[0] == "patch_embed":
        parts[1] = f"conv{int(parts[1]) // 2 + 1}"
    elif match := re.fullmatch(r"blocks([123])", parts[0]):
        stage, block = int(match[1]) - 1, int(parts[1])
        if stage == 0:
            place = ["blocks", str(block)]
        elif block < 3:
            place = ["downsample", ("res1", "patchmerge", "res2")[block]]
        else:
            place = ["blocks", str(block - 3)]
        parts = ["stages", str(stage), *place, *parts[2:]]
    return ".".join({"c": "conv", "l": "linear"}.get(part, part) for part in parts)


def to_timm(state: Mapping[str, Tensor]) -> StateDict:
    """Official (our) names to timm's; the index buffers, which timm computes, are left out."""
    return {to_timm_key(key): value for key, value in state.items() if not key.endswith(INDEX)}


def to_official(state: Mapping[str, Tensor]) -> StateDict:
    """Our state dict with the index buffers that the official code keeps, so that it loads there strictly.

    Raises:
        InputError: a bias table is made for a rectangular window, which the official code does not have.
    """
    official: StateDict = {}
    for key, value in state.items():
        official[key] = value
        if key.endswith(".attention_biases"):
            side = math.isqrt(value.shape[1])
            if side * side != value.shape[1]:
                raise InputError(
                    f"{key}: the official code knows square windows only, this one has {value.shape[1]} entries"
                )
            official[key.removesuffix(".attention_biases") + INDEX] = relative_index(side, side).clone()
    return official


def from_timm(state: Mapping[str, Tensor]) -> StateDict:
    """Timm's names to the official ones (ours); keys of neither are left for the strict loading to name."""
    renamed: StateDict = {}
    for key, value in state.items():
        new = (
            re.sub(r"\bconv([1-4])\b", lambda m: str(2 * int(m[1]) - 2), key) if key.startswith("patch_embed.") else key
        )
        new = re.sub(r"^stages\.0\.blocks\.(\d+)", r"blocks1.\1", new)
        new = re.sub(r"^stages\.([12])\.blocks\.(\d+)", lambda m: f"blocks{int(m[1]) + 1}.{int(m[2]) + 3}", new)
        for index, name in enumerate(("res1", "patchmerge", "res2")):
            new = re.sub(rf"^stages\.1\.downsample\.{name}\b", f"blocks2.{index}", new)
            new = re.sub(rf"^stages\.2\.downsample\.{name}\b", f"blocks3.{index}", new)
        renamed[re.sub(r"\.linear\b", ".l", re.sub(r"\.conv\b", ".c", new))] = value
    return renamed


def infer_config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of the network that an official state dict belongs to, from its keys and shapes.

    ``img_size`` cannot be told from a file (several sizes share their windows): it is left to the caller.

    Raises:
        InputError: a key that the settings are read from is missing.
    """

    def shape(key: str) -> torch.Size:
        if key not in state:
            raise InputError(f"state dict: not an EfficientViT of the official release, {key} is missing")
        size = state[key].shape
        if len(size) < 2 or min(size) < 1:
            raise InputError(f"state dict: {key} is misshapen, {tuple(size)}")
        return size

    def count(pattern: str) -> int:
        found = {int(m[1]) for key in state if (m := re.match(pattern, key))}
        return len(found)

    first = {1: 0, 2: 3, 3: 3}
    attention = {s: f"blocks{s}.{b}.mixer.m.attn" for s, b in first.items()}
    heads = [count(re.escape(attention[s]) + r"\.qkvs\.(\d+)\.") for s in (1, 2, 3)]
    for stage, path in attention.items():
        shape(f"{path}.qkvs.{max(heads[stage - 1] - 1, 0)}.c.weight")
    widest = attention[heads.index(max(heads)) + 1]
    dims = [shape(f"{attention[s]}.proj.1.c.weight")[0] for s in (1, 2, 3)]
    return {
        "in_chans": shape("patch_embed.0.c.weight")[1],
        "num_classes": shape("head.l.weight")[0],
        "embed_dim": dims,
        "key_dim": [shape(f"{attention[s]}.dws.0.c.weight")[0] for s in (1, 2, 3)],
        "depth": [count(rf"blocks{s}\.(\d+)\.mixer\.") for s in (1, 2, 3)],
        "num_heads": heads,
        "kernels": [shape(f"{widest}.dws.{i}.c.weight")[-1] for i in range(max(heads))],
        "distillation": any(key.startswith("head_dist.") for key in state),
    }


def _check_indices(state: StateDict, source: str) -> StateDict:
    wrong = []
    for key in [key for key in state if key.endswith(INDEX)]:
        index = state.pop(key)
        side = math.isqrt(index.shape[0]) if index.ndim else 0
        if index.shape != (side * side, side * side) or not torch.equal(index.long(), relative_index(side, side)):
            wrong.append(key)
    if wrong:
        raise InputError(f"{source}: the relative positions in {shorten(wrong)} are not those of a square window")
    return state


def _fit(state: StateDict, model: EfficientViT) -> StateDict:
    """The two tolerances of the official loader: 1x1 convolutions kept as matrices, tables of another window."""
    own = model.state_dict()
    for key, value in state.items():
        target = own.get(key)
        if target is None or value.shape == target.shape:
            continue
        if value.ndim == 2 and target.shape == (*value.shape, 1, 1):
            state[key] = value[:, :, None, None]
        elif key.endswith(".attention_biases") and value.ndim == 2 and len(value) == len(target):
            side = math.isqrt(value.shape[1])
            if side * side == value.shape[1]:
                grid = model.get_submodule(key.rpartition(".")[0]).grid
                state[key] = resize_bias(value, (side, side), grid)  # type: ignore[arg-type]
    return state


def load_official(source: str | Path | Mapping[str, Any], **config: Any) -> EfficientViT:
    """A network from a file or state dict under the official release's names, or under timm's.

    The settings are read from the shapes; ``config`` overrides them. Bias tables of another (square) window than
    ``img_size`` asks for are interpolated, as in the official fine-tuning code; 1x1 convolutions kept as matrices
    in old files are accepted.

    Args:
        source: path of a ``.pth`` (a state dict, or a training checkpoint that keeps it under ``model``) or
            ``.safetensors`` file, or the mapping itself.
        **config: arguments of :class:`EfficientViT`; ``img_size`` is 224 unless given.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: the file is unreadable or holds pickled objects, NaN or infinity; keys are missing,
            unexpected or misshapen (they are named).
    """
    name = "state dict" if isinstance(source, Mapping) else str(source)
    state = read_state_dict(source)
    if any(key.startswith("stages.") for key in state):
        state = from_timm(state)
    model = EfficientViT(**{**infer_config(state), **config})
    load_strict(model, _fit(_check_indices(state, name), model), name)
    return model.eval()
