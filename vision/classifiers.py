"""Image classifiers by name: our own networks or any of timm's, and the files that they come from."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vision.checkpoints import StateDict, as_state_dict, load_strict, read_checkpoint, refuse_other_record
from vision.errors import InputError, did_you_mean
from vision.measure.state import unchanged
from vision.preprocessing import Preprocessing

# Backbones of this package by name. Such a module offers VARIANTS, build(name, **settings) and
# load_official(source, **settings); and PREPROCESSING, where it is not the usual one. It is imported when one of its
# names is asked for.
OWN: dict[str, str] = {
    **{f"efficientvit_m{i}": "vision.efficientvit" for i in range(6)},
    "hog_32": "vision.hog",
    **dict.fromkeys(("wrn_16_1", "wrn_28_10", "wrn_40_2"), "vision.ecotta.wrn"),
}
RECORD = "classifier"  # the key under which a training checkpoint keeps a ClassifierRecord


@dataclass(frozen=True)
class ClassifierRecord:
    """What a file needs to say beside its weights so that the classifier can be used on new images.

    Attributes:
        backbone: a name for :func:`create_classifier`.
        class_names: of the outputs, in order.
        preprocessing: what the network expects.
        distillation: whether there is a second head.
    """

    backbone: str
    class_names: list[str]
    preprocessing: Preprocessing
    distillation: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {**self.__dict__, "preprocessing": self.preprocessing.as_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassifierRecord:
        """The inverse of :meth:`as_dict`."""
        return cls(**{**values, "preprocessing": Preprocessing.from_dict(values["preprocessing"])})


def timm_name(backbone: str) -> str:
    """Timm's own name of a network that may be called ``timm:NAME``.

    Raises:
        InputError: timm has none of that name.
    """
    name = backbone.removeprefix("timm:")
    if not name.startswith(("hf_hub:", "hf-hub:", "local-dir:")) and not timm.is_model(name):
        known = [*OWN, *timm.list_models()]
        raise InputError(
            f"no network called '{backbone}'{did_you_mean(backbone, known)}; timm.list_models() has them all"
        )
    return name


def preprocessing_of(backbone: str) -> Preprocessing:
    """The evaluation preprocessing that a network was published with.

    Raises:
        InputError: neither this package nor timm has a network of that name.
    """
    if backbone in OWN:
        own: Preprocessing = getattr(importlib.import_module(OWN[backbone]), "PREPROCESSING", Preprocessing())
        return own
    name = timm_name(backbone)
    config = timm.get_pretrained_cfg(name)
    return Preprocessing.from_timm(config.to_dict() if config is not None else {})


def create_classifier(
    backbone: str,
    num_classes: int,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    distillation: bool = False,
) -> nn.Module:
    """A classifier with a head of ``num_classes`` outputs.

    Args:
        backbone: one of :data:`OWN`, or a name of timm's (``timm:NAME`` where both have it).
        num_classes: outputs; where the weights have another number, the head starts anew.
        image_size: (height, width) in pixels, for networks that depend on it.
        pretrained: start from the weights that timm's hub has under this name.
        checkpoint: start from a file: one of ours, of the official release, or of timm.
        distillation: a second head for a teacher's decision (EfficientViT-M only).

    Raises:
        InputError: an unknown name, weights that cannot be had or do not fit, an impossible combination.
    """
    if num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    if pretrained and checkpoint is not None:
        raise InputError("give either pretrained or checkpoint, not both")
    if backbone in OWN:
        settings: dict[str, Any] = {"img_size": image_size or (224, 224)}
        module = importlib.import_module(OWN[backbone])
        model: nn.Module = module.build(backbone, num_classes=num_classes, distillation=distillation, **settings)
        if pretrained:
            published = create_timm(backbone, pretrained=True)
            _load_any_head(model, module.load_official(published.state_dict(), **settings).state_dict(), backbone)
        elif checkpoint is not None:
            state = module.load_official(
                weights_of(read_checkpoint(checkpoint), str(checkpoint)), **settings
            ).state_dict()
            _load_any_head(model, state, str(checkpoint))
        return model
    if distillation:
        able = [name for name, module in OWN.items() if module == "vision.efficientvit"]
        raise InputError(
            f"'{backbone}' has no distillation head; leave distillation to the one head, or use {', '.join(able)}"
        )
    name = timm_name(backbone)
    options: dict[str, Any] = {"num_classes": num_classes, "pretrained": pretrained}
    config = timm.get_pretrained_cfg(name)
    if image_size is not None and config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    model = create_timm(name, **options)
    if checkpoint is not None:
        _load_any_head(model, weights_of(read_checkpoint(checkpoint), str(checkpoint)), str(checkpoint))
    return model


def create_trunk(
    backbone: str,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
) -> tuple[nn.Module, int]:
    """A network of :func:`create_classifier` without its classifier, and the number of features that it gives.

    Returns:
        The module, ``(B, 3, H, W)`` images to ``(B, features)``, and ``features``.

    Raises:
        InputError: as in :func:`create_classifier`; the network does not take images of that size.
    """
    network = create_classifier(backbone, 1, image_size, pretrained, checkpoint)
    network.reset_classifier(0)  # type: ignore[operator]
    size = image_size or preprocessing_of(backbone).size
    with unchanged(network), torch.no_grad():
        try:
            features = network.eval()(torch.zeros(1, 3, *size))
        except (AssertionError, RuntimeError) as error:
            raise InputError(f"'{backbone}' does not take images of {size[0]}x{size[1]} pixels") from error
    return network, int(features.shape[1])


def create_timm(name: str, **settings: Any) -> nn.Module:
    """A network of timm's; ``settings`` are those of ``timm.create_model``.

    Raises:
        InputError: its pretrained weights were asked for and cannot be had.
    """
    try:
        model: nn.Module = timm.create_model(name, **settings)
    except (OSError, RuntimeError) as error:
        # The hub's client tells of its troubles in many classes of error, most of them OSError or RuntimeError.
        if not settings.get("pretrained"):
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the pretrained weights of '{name}' cannot be had ({reason}); give a file with checkpoint instead"
        ) from error
    return model


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameters that make up the classifier's head or heads."""
    if hasattr(model, "head_dist") and not hasattr(model, "pretrained_cfg"):
        return ("head", "head_dist")
    names = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def in_head(key: str, heads: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to one of the heads."""
    return any(key == head or key.startswith(head + ".") for head in heads)


def _load_any_head(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Strict for the backbone; the head's weights are taken where they fit the number of classes."""
    own, heads = model.state_dict(), head_names(model)
    kept = {key: value for key, value in state.items() if not in_head(key, heads)}
    offered = {key: value for key, value in state.items() if in_head(key, heads) and key in own}
    fits = all(value.shape == own[key].shape for key, value in offered.items())
    new_head = {key: value for key, value in own.items() if in_head(key, heads)}
    load_strict(model, {**kept, **new_head, **(offered if fits else {})}, source)


def weights_of(content: Mapping[str, Any], source: str) -> StateDict:
    """The network's tensors of a checkpoint's content; ``source`` is the file, for the errors.

    Of a training checkpoint of ours these are the averaged weights where it has them, else the trained ones.
    """
    state = as_state_dict(content, source)
    for prefix in ("ema.module.", "model."):
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if own:
            return own
    return state


def load_classifier(
    checkpoint: str | Path,
    backbone: str | None = None,
    image_size: tuple[int, int] | None = None,
    trusted: bool = False,
) -> tuple[nn.Module, ClassifierRecord]:
    """A trained classifier from a file, in evaluation mode.

    Args:
        checkpoint: a training checkpoint of ours says everything itself; of a file of the official release or of
            timm, ``backbone`` says what it is, and outputs are called by ImageNet's names where there are 1000.
        backbone: a name for :func:`create_classifier`; not needed for our checkpoints.
        image_size: (height, width) in pixels to use it at, by default the size that it was trained at.
        trusted: unpickle objects in the file, which may run any code of its author's.

    Raises:
        InputError: the file is unreadable or does not fit, the network's name is needed, or the network takes
            one size only.
    """
    model, record = _load(checkpoint, backbone, trusted)
    if image_size is not None and image_size != record.preprocessing.size:
        model = _resized(model, record.backbone, image_size)
        record = replace(record, preprocessing=replace(record.preprocessing, size=image_size))
    return model.eval(), record


def _resized(model: nn.Module, backbone: str, image_size: tuple[int, int]) -> nn.Module:
    if backbone in OWN:
        resized: nn.Module = importlib.import_module(OWN[backbone]).load_official(
            model.state_dict(), img_size=image_size
        )
        return resized
    config = timm.get_pretrained_cfg(timm_name(backbone))
    if config is not None and config.fixed_input_size:
        raise InputError(f"'{backbone}' takes images of one size only; leave the image size to the checkpoint")
    return model


def _load(checkpoint: str | Path, backbone: str | None, trusted: bool) -> tuple[nn.Module, ClassifierRecord]:
    content = read_checkpoint(checkpoint, trusted)
    state = weights_of(content, str(checkpoint))
    if isinstance(content.get(RECORD), Mapping):
        record = ClassifierRecord.from_dict(content[RECORD])
        model = create_classifier(
            record.backbone, len(record.class_names), record.preprocessing.size, distillation=record.distillation
        )
        load_strict(model, state, str(checkpoint))
        return model, record
    refuse_other_record(content, RECORD, str(checkpoint))
    if backbone is None:
        raise InputError(f"{checkpoint}: does not say which network it belongs to; name it with --backbone")
    if backbone in OWN:
        model = importlib.import_module(OWN[backbone]).load_official(state)
        classes = int(model.num_classes)
    else:
        name = timm_name(backbone)
        heads = head_names(timm.create_model(name))
        classes = next((len(v) for k, v in state.items() if k in [f"{head}.weight" for head in heads]), 1000)
        model = create_classifier(backbone, classes)
        load_strict(model, state, str(checkpoint))
    return model, ClassifierRecord(backbone, _names(classes), preprocessing_of(backbone))


def _names(classes: int) -> list[str]:
    if classes != 1000:
        return [str(i) for i in range(classes)]
    info = timm.data.ImageNetInfo()
    return [str(info.index_to_description(i)) for i in range(classes)]
