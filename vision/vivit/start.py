"""Where each part of a network starts from: three switches (arXiv 2306.04822, fig. 2, takes them together)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vision.checkpoints import StateDict, check_keys, read_checkpoint
from vision.classifiers import weights_of
from vision.errors import InputError, shorten
from vision.labels import LabelSchema
from vision.vivit.embedding import Inflation, inflate, resize_positions, resize_temporal_positions
from vision.vivit.flax_file import is_flax, read_flax
from vision.vivit.model import FactorisedViViT
from vision.vivit.official import PARTS, from_official
from vision.vivit.spatial import create_vit
from vision.vivit.temporal import TemporalTransformer

SPATIAL, TEMPORAL, ADAPTER = "spatial.vit.", "temporal.", "adapter."
_KERNEL, _POSITIONS = "patch_embed.proj.weight", "pos_embed"
RECORD = "vivit"


@dataclass(frozen=True)
class Start:
    """What the parts of a network start from. A file may be a checkpoint of ours, official flax parameters, or weights.

    Attributes:
        spatial: ``random``; ``pretrained``, the weights of timm's hub; or a file: a video network (a first stage), an
            image classifier of ours, or weights of timm's. Positions for another image size are resized as timm does
            it (bicubic), those of a video network as the official code does it (linear, corners aligned).
        temporal: ``random``; ``image``, the last blocks of what the spatial part starts from; or a file: a video
            network, or a VideoMAE encoder, of which the last blocks are taken. From a checkpoint of ours the head comes
            too, where it has the same classes in the same order; positions for another number of tubelets are resized
            linearly.
        readout: ``new``, or a video network's file, whose adapter is taken.
        inflation: how an image transformer's embedding becomes one of tubelets.
    """

    spatial: str = "pretrained"
    temporal: str = "random"
    readout: str = "new"
    inflation: Inflation = "central_frame"


class Weights(NamedTuple):
    """A file's weights, and the classes that it says they are for."""

    state: StateDict
    classes: Mapping[str, Any] | None


def apply_start(network: FactorisedViViT, start: Start, schema: LabelSchema | None = None) -> list[str]:
    """Sets the parts of a network as ``start`` says.

    Args:
        network: is changed.
        start: where its parts start from.
        schema: the classes of the network's outputs; without, the head stays new.

    Returns:
        A line for each part that was set and for what a file holds and nothing took.

    Raises:
        InputError: a file cannot be read, is of another kind of model, or does not fit.
    """
    said = []
    files: dict[str, Weights] = {}

    def content(path: str) -> StateDict:
        if path not in files:
            files[path] = read_video_or_image(path)
        return files[path].state

    taken: dict[str, set[str]] = {}
    if start.spatial != "random":
        source = start.spatial
        if source == "pretrained":
            config = network.config
            source = f"timm's weights of {config.backbone}"
            vit = create_vit(config.backbone, config.image_size, pretrained=True, options=config.backbone_options)
            files[source] = Weights(vit.state_dict(), None)
        used, how = _start_spatial(network, content(source), source, start.inflation)
        taken.setdefault(source, set()).update(used)
        said.append(f"spatial part: {len(used)} tensors of {source}{how}")
    if start.temporal == "image":
        said.append(_last_blocks(network, _blocks_of(network.spatial.vit.state_dict()), "the spatial part"))
    elif start.temporal != "random":
        state = content(start.temporal)
        used = _start_temporal(network, state, start.temporal)
        same_classes = schema is not None and files[start.temporal].classes == schema.as_dict()
        head = _start_head(network, state) if same_classes else set()
        used |= head
        said.append(f"temporal part{' and head' if head else ''}: {len(used)} tensors of {start.temporal}")
        taken.setdefault(start.temporal, set()).update(used)
    if start.readout != "new":
        used = _start_readout(network, content(start.readout), start.readout)
        taken.setdefault(start.readout, set()).update(used)
        said.append(f"readout: {len(used)} tensors of {start.readout}")
    for path, used in taken.items():
        rest = [key for key in files[path].state if key not in used]
        if rest:
            said.append(f"not taken of {path}: {shorten(rest)}")
    return said


def read_video_or_image(path: str | Path) -> Weights:
    """A file's weights and classes: of a video network under our names (``spatial.vit.``...), else under timm's.

    Raises:
        InputError: the file cannot be read, or is of the joint ViViT model.
    """
    if is_flax(path):
        given = read_flax(path)
        if not any(key.startswith(tuple(PARTS)) for key in given):
            raise InputError(
                f"{path}: holds no parameters of a factorised encoder (of an image transformer, take timm's weights)"
            )
        return Weights(from_official(given, str(path)), None)
    content = read_checkpoint(path)
    state = weights_of(content, str(path))
    kernels = [value for key, value in state.items() if key.endswith("embeddings.patch_embeddings.projection.weight")]
    if any(kernel.ndim == 5 for kernel in kernels) and not _is_videomae(state):
        raise InputError(
            f"{path}: holds the joint space-time model (Hugging Face's VivitModel), not the factorised encoder"
        )
    record = content.get(RECORD)
    return Weights(state, record.get("schema") if isinstance(record, Mapping) else None)


def _is_videomae(state: Mapping[str, Tensor]) -> bool:
    return any("videomae" in key or key.endswith(("attn.q_bias", "attention.attention.q_bias")) for key in state)


# ------------------------------------------------------------------------------------------------------ spatial part
def _start_spatial(
    network: FactorisedViViT, state: StateDict, source: str, inflation: Inflation
) -> tuple[set[str], str]:
    """The keys that were used, and in words what was done with them."""
    vit, how = network.spatial.vit, ""
    video = any(key.startswith(SPATIAL) for key in state)
    prefix = SPATIAL if video else ""
    own = vit.state_dict()
    given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    head = {key for key in given if key.split(".")[0] in ("head", "fc_norm", "attn_pool") and key not in own}
    given = {key: value for key, value in given.items() if key not in head}
    if _KERNEL not in given:
        if any(key.startswith(TEMPORAL) for key in state):
            raise InputError(f"{source}: was written without its spatial part; give the file that this came from")
        raise InputError(f"{source}: holds neither a video network nor an image transformer of timm's")
    used = {prefix + key for key in given}
    kernel, wanted = given[_KERNEL], own[_KERNEL]
    if kernel.ndim == 4 and wanted.ndim == 5:
        given[_KERNEL] = inflate(kernel, wanted.shape[2], inflation)
        how += f", its embedding for tubelets of {wanted.shape[2]} frames ({inflation})"
    if _POSITIONS in given and _POSITIONS in own and given[_POSITIONS].shape != own[_POSITIONS].shape:
        given[_POSITIONS] = _resized(network, given[_POSITIONS], own[_POSITIONS], source, video)
        how += f", positions resized to {network.spatial.grid[0]}x{network.spatial.grid[1]}"
    check_keys(given, {key: value.shape for key, value in own.items()}, source)
    vit.load_state_dict(given)
    return used, how


def _resized(network: FactorisedViViT, given: Tensor, own: Tensor, source: str, video: bool) -> Tensor:
    """Positions of another grid, as those who trained them resize them."""
    before = 0 if getattr(network.spatial.vit, "no_embed_class", False) else network.spatial.prefix
    try:
        if video:
            return resize_positions(given, own, before, before)
        resized: Tensor = resample_abs_pos_embed(given, list(network.spatial.grid), num_prefix_tokens=before)
    except (InputError, RuntimeError, IndexError) as error:
        raise InputError(
            f"{source}: {_POSITIONS} {tuple(given.shape)} cannot be resized to {tuple(own.shape)}"
        ) from error
    return resized


# ----------------------------------------------------------------------------------------------------- temporal part
def _temporal(network: FactorisedViViT) -> TemporalTransformer:
    if network.temporal is None:
        raise InputError("start.temporal must be random where the network has no temporal transformer")
    return network.temporal


def _start_temporal(network: FactorisedViViT, state: StateDict, source: str) -> set[str]:
    temporal = _temporal(network)
    given = {key.removeprefix(TEMPORAL): value for key, value in state.items() if key.startswith(TEMPORAL)}
    if not given:
        blocks = _blocks_of(state)
        if not blocks or any(key.startswith(SPATIAL) for key in state):
            raise InputError(f"{source}: holds no temporal transformer, nor an encoder's blocks to begin one with")
        _last_blocks(network, blocks, source)
        chosen = sorted(blocks)[-len(temporal.blocks) :]
        return {key for key in state if _block_number(key) in chosen}
    own = temporal.state_dict()
    used = {TEMPORAL + key for key in given}
    if "cls_token" in own and "cls_token" not in given:
        raise InputError(f"{source}: its temporal part has no class token: set temporal_pool to mean")
    before = int("cls_token" in given)
    if "cls_token" not in own:
        used.discard(TEMPORAL + "cls_token")
        given.pop("cls_token", None)
    if _POSITIONS in given and given[_POSITIONS].ndim == 3:
        vectors = _vectors(state), network.adapter.vectors_per_tubelet
        if vectors[0] != vectors[1]:
            raise InputError(f"{source}: its adapter gives {vectors[0]} vectors a tubelet, this network's {vectors[1]}")
        given[_POSITIONS] = _resized_in_time(given[_POSITIONS], own[_POSITIONS], before, temporal.prefix, vectors[0])
    check_keys(given, {key: value.shape for key, value in own.items()}, source)
    temporal.load_state_dict(given)
    return used


def _vectors(state: StateDict) -> int:
    query = state.get(f"{ADAPTER}query")
    return 1 if query is None else len(query)


def _resized_in_time(source: Tensor, target: Tensor, before: int, prefix: int, vectors: int) -> Tensor:
    """The positions of each of a tubelet's vectors form a line of their own."""
    lines = [
        resize_temporal_positions(
            torch.cat([source[:, :before], source[:, before + i :: vectors]], dim=1),
            torch.cat([target[:, :prefix], target[:, prefix + i :: vectors]], dim=1),
            before,
            prefix,
        )
        for i in range(vectors)
    ]
    joined = torch.stack([line[:, prefix:] for line in lines], dim=2).flatten(1, 2)
    return torch.cat([lines[0][:, :prefix], joined], dim=1)


def _start_head(network: FactorisedViViT, state: StateDict) -> set[str]:
    """What follows the temporal transformer, where all of it fits."""
    parts = ("head.", "pre_logits.")
    given = {key: value for key, value in state.items() if key.startswith(parts)}
    own = {key: value.shape for key, value in network.state_dict().items() if key.startswith(parts)}
    if {key: value.shape for key, value in given.items()} != own:
        return set()
    network.load_state_dict(given, strict=False)
    return set(given)


_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layer)\.(\d+)\.")
# Hugging Face's names of a block's parts, and ours.
_HF = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def _blocks_of(state: Mapping[str, Tensor]) -> dict[int, StateDict]:
    """The blocks of an encoder under our names: timm's, the VideoMAE release's, or Hugging Face's."""
    blocks: dict[int, StateDict] = {}
    for key, value in state.items():
        number = _block_number(key)
        if number is not None:
            blocks.setdefault(number, {})[_BLOCK.split(key, maxsplit=1)[-1]] = value
    return {number: _renamed(of) for number, of in blocks.items()}


def _block_number(key: str) -> int | None:
    found = _BLOCK.search(key)
    return None if found is None or key.startswith("decoder.") else int(found[1])


def _renamed(of: StateDict) -> StateDict:
    named: StateDict = {}
    for key, value in of.items():
        for theirs, ours in _HF.items():
            if key.startswith(theirs + "."):
                key = ours + key[len(theirs) :]
                break
        named[key] = value
    thirds = [f"attention.attention.{part}.weight" for part in ("query", "key", "value")]
    if all(third in named for third in thirds):
        named["attn.qkv.weight"] = torch.cat([named.pop(third) for third in thirds])
        biases = [named.pop(key) for third in thirds if (key := third.removesuffix("weight") + "bias") in named]
        if len(biases) == 3:
            named["attn.qkv.bias"] = torch.cat(biases)
    # VideoMAE's attention has no bias of its keys.
    for q, v in (("attn.q_bias", "attn.v_bias"), ("attention.attention.q_bias", "attention.attention.v_bias")):
        if q in named and v in named:
            query, value = named.pop(q), named.pop(v)
            named["attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return named


def _last_blocks(network: FactorisedViViT, blocks: Mapping[int, StateDict], source: str) -> str:
    """Starts the temporal blocks from the last ones of an encoder; positions, class token and norm stay new."""
    temporal = _temporal(network)
    own: list[nn.Module] = list(temporal.blocks)
    if len(blocks) < len(own):
        raise InputError(f"{source}: has {len(blocks)} blocks, the temporal transformer {len(own)}")
    for block, number in zip(own, sorted(blocks)[-len(own) :], strict=True):
        given = blocks[number]
        check_keys(given, {key: value.shape for key, value in block.state_dict().items()}, f"{source}: block {number}")
        block.load_state_dict(given)
    return f"temporal part: the last {len(own)} blocks of {source}"


# ----------------------------------------------------------------------------------------------------------- readout
def _start_readout(network: FactorisedViViT, state: StateDict, source: str) -> set[str]:
    given = {key.removeprefix(ADAPTER): value for key, value in state.items() if key.startswith(ADAPTER)}
    if not given and network.adapter.state_dict():
        raise InputError(f"{source}: holds no adapter; set start.readout to new")
    own = {key: value.shape for key, value in network.adapter.state_dict().items()}
    check_keys(given, own, f"{source}: the adapter")
    network.adapter.load_state_dict(given)
    return {ADAPTER + key for key in given}
