"""Whatever makes features of pictures: any network of timm's, frozen unless it is said otherwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vision.checkpoints import load_strict, read_checkpoint
from vision.classifiers import OWN, create_timm, create_trunk, preprocessing_of, timm_name
from vision.errors import InputError
from vision.memspm.official import DCC_PREPROCESSING, UNIOT_ENCODER_PREPROCESSING, encoder_state, release_of
from vision.preprocessing import Preprocessing

Feature = Literal["auto", "pooled", "projected"]
Trainable = Literal["none", "norm", "last", "all"]


def projects(backbone: str, feature: Feature) -> bool:
    """Whether features are what CLIP compares with texts; ``auto`` takes them of CLIP's networks.

    Raises:
        InputError: ``projected`` of a network that was not trained as CLIP was.
    """
    clip = backbone not in OWN and "clip" in timm_name(backbone)
    if feature == "projected" and not clip:
        raise InputError(f"feature: '{backbone}' has no projection as CLIP's networks have; take pooled")
    return clip and feature != "pooled"


def encoder_preprocessing(backbone: str, checkpoint: str | Path | None) -> Preprocessing:
    """What pictures an encoder takes: the network's own, or that of an official release where the file is one."""
    release = release_of(read_checkpoint(checkpoint)) if checkpoint is not None else None
    if release == "CLIP":
        return replace(preprocessing_of(backbone), crop_pct=1.0)  # OpenAI's own
    own = {"UniOT": UNIOT_ENCODER_PREPROCESSING, "DCC": DCC_PREPROCESSING}
    return own[release] if release is not None else preprocessing_of(backbone)


def create_encoder(
    backbone: str,
    image_size: tuple[int, int],
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    feature: Feature = "auto",
) -> tuple[nn.Module, int]:
    """A network without a classifier, and how many features it gives.

    Args:
        backbone: a name for :func:`vision.classifiers.create_classifier`. Of CLIP's networks with OpenAI's weights take
            those with ``quickgelu`` in their name, which are what was trained.
        image_size: (height, width) in pixels.
        pretrained: timm's weights.
        checkpoint: a file of ours or of timm's; of DCC's, UniOT's or OpenAI's official release.
        feature: ``projected`` of CLIP's networks, ``pooled``, or ``auto``.

    Raises:
        InputError: as in :func:`vision.classifiers.create_trunk`.
    """
    content = read_checkpoint(checkpoint) if checkpoint is not None else {}
    official = encoder_state(checkpoint) if checkpoint is not None and release_of(content) else None
    if not projects(backbone, feature):
        network, features = create_trunk(backbone, image_size, pretrained, None if official else checkpoint)
        if official is not None:
            own = {key: value for key, value in official.items() if not key.startswith("head.")}
            _load(network, own, backbone, checkpoint)
        return network, features
    if checkpoint is not None and official is None:
        raise InputError(f"{checkpoint}: the features of '{backbone}' are OpenAI's projection; take feature: pooled")
    settings = {"img_size": image_size} if image_size != preprocessing_of(backbone).size else {}
    network = create_timm(timm_name(backbone), pretrained=pretrained, **settings)
    if official is not None:
        _load(network, official, backbone, checkpoint)
    elif not pretrained:
        with torch.no_grad():
            network.head.bias.zero_()  # type: ignore[union-attr, operator]
    return network, int(network.num_classes)  # type: ignore[arg-type]


def _load(network: nn.Module, state: dict[str, torch.Tensor], backbone: str, checkpoint: str | Path | None) -> None:
    own, theirs = getattr(network, "pos_embed", None), state.get("pos_embed")
    if own is not None and theirs is not None and len(own[0]) != len(theirs[0]):  # pictures of another size
        state = {**state, "pos_embed": resample_abs_pos_embed(theirs, [*network.patch_embed.grid_size])}  # type: ignore[union-attr, misc]
    load_strict(network, state, f"{checkpoint} (as '{backbone}')")


def set_trainable(encoder: nn.Module, trainable: Trainable) -> None:
    """Freezes an encoder except for its normalisations (``norm``), its last block or stage (``last``), or nothing.

    Raises:
        InputError: there is nothing of that kind to train.
    """
    encoder.requires_grad_(trainable == "all")
    if trainable == "norm":
        kinds = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
        for module in encoder.modules():
            if isinstance(module, kinds):
                module.requires_grad_(True)
    elif trainable == "last":
        last = _last_block(encoder)
        if last is not None:
            last.requires_grad_(True)
    if trainable != "none" and not any(parameter.requires_grad for parameter in encoder.parameters()):
        raise InputError(f"trainable: {type(encoder).__name__} has nothing to train as '{trainable}'")


def _last_block(encoder: nn.Module) -> nn.Module | None:
    """The last of timm's blocks or stages."""
    for name in ("blocks", "stages", "layers"):
        found = getattr(encoder, name, None)
        if isinstance(found, nn.Sequential | nn.ModuleList) and len(found):
            return found[-1]
    return getattr(encoder, "layer4", None)
