"""Reading what others have trained: RobustBench's networks, and the community's EcoTTA files."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from vision.checkpoints import StateDict, load_strict, read_state_dict
from vision.ecotta import wrn
from vision.ecotta.ecotta import EcoTTA
from vision.ecotta.wrn import Normalisation, WideResNet
from vision.errors import InputError
from vision.preprocessing import IMAGENET_MEAN, IMAGENET_STD

_ENCODER = re.compile(r"encoders\.(\d+)\.(original_part\.(\d+)|meta_part)\.(.+)")


class InputNormalisation(nn.Module):
    """``(x - mean) / std`` of images in [0, 1], as the first part of a network."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(tuple(values)).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to the same shape."""
        return (x - self.mean) / self.std


def load_official(
    source: str | Path | Mapping[str, Any],
    normalisation: Normalisation = "auto",
    *,
    trusted: bool = False,
    **options: Any,
) -> nn.Module:
    """A network of RobustBench's, or an EcoTTA network of the community's, from its file; in evaluation mode.

    Wide residual networks and ResNets are known by their keys, which may begin with ``module.`` or ``model.``; depth,
    width, classes, groups and kernels follow from the shapes.

    Args:
        source: a path, or a state dict (which may lie under ``net``, ``state_dict`` or ``model``).
        normalisation: of the images, ``(mean, std)``, as part of the network; or ``none``. ``auto``: what the file
            has; else, of a RobustBench network, what it was trained with (WRN-40-2 is taken for the AugMix one, ResNets
            for those of ImageNet). The community's EcoTTA networks of the wide kind were trained without.
        trusted: unpickle objects that the file holds, which may run any code of its author's.
        options: of :class:`~vision.ecotta.ecotta.EcoTTA`, for EcoTTA files.

    Returns:
        A network of images in [0, 1], ``(B, 3, H, W)`` to logits ``(B, classes)``: :class:`WideResNet`, a ResNet, or
        :class:`~vision.ecotta.ecotta.EcoTTA` round one of them.

    Raises:
        InputError: unreadable, or the weights do not fit; the keys are named.
    """
    label = "state dict" if isinstance(source, Mapping) else str(source)
    state = {key.removeprefix("model."): value for key, value in read_state_dict(source, trusted).items()}
    if any(key.startswith("encoders.") for key in state):
        return _load_adapted(state, normalisation, label, options)
    if options:
        raise InputError(f"{label}: is no EcoTTA network, which {', '.join(options)} would be of")
    if any(key.startswith("block1.layer.") for key in state):
        return wrn.from_state(state, normalisation, label)
    if "layer1.0.conv1.weight" in state:
        return _load_resnet(state, normalisation, label)[0]
    raise InputError(
        f"{label}: neither a wide residual network (block1.layer.0...), nor a ResNet (layer1.0...), nor an EcoTTA "
        "network (encoders.0...) of RobustBench's key names"
    )


def _load_resnet(state: StateDict, normalisation: Normalisation, label: str) -> tuple[nn.Module, str]:
    """The network, and what its own modules' names begin with."""
    names = [("normalize.mean", "normalize.std"), ("mu", "sigma"), ("norm.mean", "norm.std")]
    found = next(((state.pop(a), state.pop(b)) for a, b in names if a in state and b in state), None)
    chosen: Any = (IMAGENET_MEAN, IMAGENET_STD)
    if normalisation not in ("auto", "none"):
        chosen = normalisation
    elif found is not None:
        chosen = [value.flatten().tolist() for value in found]
    kernel, head = state.get("conv1.weight"), state.get("fc.weight")
    if kernel is None or head is None or kernel.dim() != 4:
        raise InputError(f"{label}: no ResNet (expected conv1.weight and fc.weight)")
    model = resnet(_stages(state), "layer1.0.conv3.weight" in state, len(head), small=kernel.shape[-1] == 3)
    load_strict(model, state, label)
    if normalisation == "none":
        return model.eval(), ""
    parts = OrderedDict[str, nn.Module](normalize=InputNormalisation(*chosen), model=model)
    return nn.Sequential(parts).eval(), "model."


def _stages(state: StateDict) -> list[int]:
    places = {(int(m[1]), int(m[2])) for key in state if (m := re.match(r"layer(\d+)\.(\d+)\.", key))}
    # At least one, so that the keys of a stage that is not there are named.
    return [max(1, sum(stage == number for stage, _ in places)) for number in range(1, 5)]


def resnet(layers: Sequence[int], bottlenecks: bool, classes: int, small: bool) -> nn.Module:
    """A ResNet; a ``small`` one begins with a 3x3 convolution of stride 1 and without pooling, for CIFAR."""
    block = Bottleneck if bottlenecks else BasicBlock
    model: nn.Module = ResNet(block, tuple(layers), num_classes=classes)  # type: ignore[arg-type]
    if small:
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        model.maxpool = nn.Identity()
    return model


# ------------------------------------------------------------------------------------------- the community's EcoTTA
def _load_adapted(state: StateDict, normalisation: Normalisation, label: str, options: Mapping[str, Any]) -> EcoTTA:
    wide = "conv1.weight" in state
    base, metas, sizes = (_wide_names if wide else _resnet_names)(state, label)
    if wide:
        own: Normalisation = "none" if normalisation == "auto" else normalisation
        model: nn.Module = wrn.from_state(base, own, label)
        prefix, names = "", _block_names(base, r"block\d+\.layer\.\d+")
    else:
        found = "norm.mean" in base
        own = "none" if normalisation == "auto" and not found else normalisation
        model, prefix = _load_resnet(base, own, label)
        names = _block_names(base, r"layer\d+\.\d+")
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    groups = [[prefix + name for name in names[end - size : end]] for end, size in zip(ends, sizes, strict=True)]
    kernel = metas["0.conv_block.conv.weight"].shape[-1]
    small = "conv1.weight" in base and base["conv1.weight"].shape[-1] == 3
    size = (32, 32) if small else (224, 224)
    network = EcoTTA.attach(
        model, partition=groups, kernel=kernel, form="conv", input_size=size, calibrate=False, **options
    )
    load_strict(network.metas, metas, label)
    return network


def _block_names(state: StateDict, pattern: str) -> list[str]:
    names = {found[0] for key in state if (found := re.match(pattern, key))}
    return sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def _parts(state: StateDict, label: str) -> tuple[list[tuple[str, list[int]]], StateDict, list[int]]:
    """Keys of blocks in order, the meta networks' tensors, and the numbers of blocks of each group."""
    blocks: dict[tuple[int, int], list[str]] = {}
    metas: StateDict = {}
    for key, value in state.items():
        if not key.startswith("encoders."):
            continue
        found = _ENCODER.fullmatch(key)
        if found is None:
            raise InputError(f"{label}: does not fit the network: unexpected {key}")
        if found[3] is None:
            metas[f"{found[1]}.{found[4]}"] = value
        else:
            blocks.setdefault((int(found[1]), int(found[3])), []).append(found[4])
    order = sorted(blocks)
    groups = sorted({k for k, _ in order})
    if groups != list(range(len(groups))) or "0.conv_block.conv.weight" not in metas:
        raise InputError(f"{label}: encoders.0, encoders.1, ... must each have original_part and meta_part")
    sizes = [sum(k == group for k, _ in order) for group in groups]
    return [(f"encoders.{k}.original_part.{i}", [k, i]) for k, i in order], metas, sizes


def _wide_names(state: StateDict, label: str) -> tuple[StateDict, StateDict, list[int]]:
    blocks, metas, sizes = _parts(state, label)
    if len(blocks) % 3:
        raise InputError(f"{label}: {len(blocks)} blocks are not three stages of a wide residual network")
    each = len(blocks) // 3
    names = {old: f"block{i // each + 1}.layer.{i % each}" for i, (old, _) in enumerate(blocks)}
    return _renamed(state, names, {"classifier.": ""}), metas, sizes


def _resnet_names(state: StateDict, label: str) -> tuple[StateDict, StateDict, list[int]]:
    blocks, metas, sizes = _parts(state, label)
    names, stage, place = {}, 0, -1
    for old, _ in blocks:
        # A stage begins where the way round has a convolution, as all have but perhaps the first.
        if f"{old}.downsample.0.weight" in state or stage == 0:
            stage, place = stage + 1, -1
        place += 1
        names[old] = f"layer{stage}.{place}"
    stem = {"conv1.norm.": "norm.", "conv1.conv1.": "conv1.", "conv1.bn1.": "bn1.", "classifier.": ""}
    return _renamed(state, names, stem), metas, sizes


def _renamed(state: StateDict, blocks: Mapping[str, str], prefixes: Mapping[str, str]) -> StateDict:
    renamed: StateDict = {}
    for key, value in state.items():
        if ".meta_part." in key:
            continue
        if key.startswith("encoders."):
            block = ".".join(key.split(".")[:4])
            renamed[key.replace(block, blocks[block], 1)] = value
            continue
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        renamed[prefixes.get(prefix, "") + key.removeprefix(prefix)] = value
    return renamed


def official_state_dict(network: EcoTTA) -> StateDict:
    """The state of an EcoTTA network round a :class:`WideResNet` under the community's key names.

    Raises:
        InputError: it is round another network.
    """
    if not isinstance(network.model, WideResNet):
        raise InputError("the community's key names are known for wide residual networks only")
    out: StateDict = {}
    places = {
        name: f"encoders.{k}.original_part.{i}."
        for k, names in enumerate(network.groups)
        for i, name in enumerate(names)
    }
    for key, value in network.model.state_dict().items():
        block = ".".join(key.split(".")[:3])
        if block in places:
            out[places[block] + key.removeprefix(block + ".")] = value
        else:
            out[key if key.startswith("conv1.") else f"classifier.{key}"] = value
    for key, value in network.metas.state_dict().items():
        k, _, rest = key.partition(".")
        out[f"encoders.{k}.meta_part.{rest}"] = value
    return out
