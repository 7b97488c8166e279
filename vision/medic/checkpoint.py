"""Files of multi-task networks: ours, and those of the official code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from vision.checkpoints import as_state_dict, check_keys, load_strict, read_checkpoint, refuse_other_record
from vision.classifiers import weights_of
from vision.errors import InputError, did_you_mean
from vision.labels import LabelSchema
from vision.medic.model import MultitaskNetwork, cumulative_tasks
from vision.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

RECORD = "multitask"  # the key under which a training checkpoint keeps a MultitaskRecord

OFFICIAL_TASKS: dict[str, Any] = {
    "damage_severity": {"classes": ["little_or_none", "mild", "severe"], "ordinal": True},
    "informative": ["informative", "not_informative"],
    "humanitarian": [
        "affected_injured_or_dead_people",
        "infrastructure_and_utility_damage",
        "not_humanitarian",
        "rescue_volunteering_or_donation_effort",
    ],
    "disaster_types": ["earthquake", "fire", "flood", "hurricane", "landslide", "not_disaster", "other_disaster"],
}
"""The release's tasks, in the order in which the official code stacks their rows in the last layer."""

OFFICIAL_PREPROCESSING = Preprocessing((224, 224), IMAGENET_MEAN, IMAGENET_STD, "bilinear", 0.875, crop_mode="squash")
"""The official code resizes to 256x256 without keeping the aspect ratio and crops 224x224."""

# timm's name of the networks that the official code takes from torchvision, and theirs there.
TORCHVISION = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "vgg11_bn": "vgg11_bn",
    "vgg16_bn": "vgg16_bn",
    "densenet121": "densenet121",
    "mobilenetv2_100": "mobilenet_v2",
}


@dataclass(frozen=True)
class MultitaskRecord:
    """What a file needs to say beside its weights so that the network can be used on new images.

    Attributes:
        backbone: a name for :func:`vision.classifiers.create_classifier`.
        schema: tasks and classes, in the order of the outputs.
        preprocessing: what the network expects.
        ordinal: whether ordered tasks have ordinal heads.
    """

    backbone: str
    schema: LabelSchema
    preprocessing: Preprocessing
    ordinal: bool = False

    @property
    def cumulative(self) -> set[str]:
        """The tasks whose logits are cumulative."""
        return cumulative_tasks(self.schema, self.ordinal)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or an exported file."""
        values = {"schema": self.schema.as_dict(), "preprocessing": self.preprocessing.as_dict()}
        return {**self.__dict__, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MultitaskRecord:
        """The inverse of :meth:`as_dict`.

        Raises:
            InputError: something is missing, unknown or unusable.
        """
        try:
            schema = LabelSchema.parse(values["schema"])
            preprocessing = Preprocessing.from_dict(values["preprocessing"])
            return cls(**{**values, "schema": schema, "preprocessing": preprocessing})
        except (LookupError, TypeError, AttributeError) as error:
            raise InputError(f"what it says of its tasks is unusable ({error!r})") from error


def load_network(checkpoint: str | Path, backbone: str | None = None) -> tuple[MultitaskNetwork, MultitaskRecord]:
    """A trained network from a file, in evaluation mode.

    Args:
        checkpoint: of ``vision fit``, which says everything itself, or of the official code.
        backbone: the network of an official file.

    Raises:
        InputError: the file is unreadable or does not fit, or the network's name is needed.
    """
    content = read_checkpoint(checkpoint)
    if not isinstance(content.get(RECORD), Mapping):
        refuse_other_record(content, RECORD, str(checkpoint))
        if backbone is None:
            raise InputError(f"{checkpoint}: does not say which network it belongs to; name it with --backbone")
        network = load_official(checkpoint, backbone)
        return network, MultitaskRecord(backbone, network.schema, OFFICIAL_PREPROCESSING)
    try:
        record = MultitaskRecord.from_dict(content[RECORD])
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from error
    if backbone not in (None, record.backbone):
        raise InputError(f"{checkpoint}: is of '{record.backbone}', not of '{backbone}'; leave out --backbone")
    network = MultitaskNetwork(record.backbone, record.schema, record.preprocessing.size, ordinal=record.ordinal)
    load_strict(network, weights_of(content, str(checkpoint)), str(checkpoint))
    return network.eval(), record


def load_official(
    source: str | Path | Mapping[str, Any], backbone: str = "resnet18", schema: LabelSchema | None = None
) -> MultitaskNetwork:
    """A network from a checkpoint of the official code, in evaluation mode.

    Its last layer is one linear layer with the rows of all tasks. Of MobileNetV2, where the official code trains the
    first rows of the thousand that ImageNet needed (and a second layer that nothing uses), those rows are taken.

    Args:
        source: a file, or its content, or a state dict under torchvision's names.
        backbone: timm's name of the network.
        schema: by default the release's four tasks.

    Raises:
        InputError: the network is none of those that the official code and timm share, keys are missing, unexpected
            or misshapen, or the file's own class names are others.
    """
    schema = schema or LabelSchema.parse(OFFICIAL_TASKS)
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    name = "state dict" if isinstance(source, Mapping) else str(source)
    _check_names(content.get("class_names"), schema, name)
    state = as_state_dict({key: value for key, value in content.items() if key != "class_names"}, name)
    network = MultitaskNetwork(backbone, schema)
    layout = _layout(backbone, network)
    weight, bias = list(layout)[-2:]
    if backbone == "mobilenetv2_100" and len(state.get(weight, ())) == 1000:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        state |= {key: state[key][: network.head.out_features] for key in (weight, bias) if key in state}
    check_keys(state, {key: shape for key, (_, shape) in layout.items()}, name)
    own = network.state_dict()
    network.load_state_dict({ours: state[key].reshape(own[ours].shape) for key, (ours, _) in layout.items()})
    return network.eval()


def to_official(network: MultitaskNetwork, backbone: str) -> dict[str, Any]:
    """The content of a checkpoint that the official code reads: ``state_dict`` and ``class_names``.

    Raises:
        InputError: the network is none of those that the official code and timm share, or has ordinal heads.
    """
    if network.cumulative:
        raise InputError(f"the official layout has no ordinal heads, {', '.join(sorted(network.cumulative))} has one")
    own = network.state_dict()
    layout = _layout(backbone, network)
    state = {key: own[ours].detach().reshape(shape).clone() for key, (ours, shape) in layout.items()}
    return {"state_dict": state, "class_names": [list(of.classes) for of in network.schema.tasks.values()]}


def _layout(backbone: str, network: MultitaskNetwork) -> dict[str, tuple[str, torch.Size]]:
    """Official names in their order, the last layer's weight and bias last: our name of each, and its shape there.

    timm's form of these networks has the same layers in the same order; VGG's linear layers are convolutions there.
    """
    if backbone not in TORCHVISION:
        raise InputError(
            f"the official layout is known for {', '.join(TORCHVISION)}, not for '{backbone}'"
            f"{did_you_mean(backbone, TORCHVISION)}"
        )
    with torch.device("meta"):
        official = getattr(torchvision.models, TORCHVISION[backbone])(num_classes=network.head.out_features)
    theirs, ours = official.state_dict(), network.state_dict()
    return {key: (own, value.shape) for (key, value), own in zip(theirs.items(), ours, strict=True)}


def _check_names(given: Any, schema: LabelSchema, source: str) -> None:
    """The file's class names against the schema's; where labels are missing the official code has a blank too."""
    if given is None:
        return
    wanted = [list(of.classes) for of in schema.tasks.values()]
    found = [[name for name in names if name] for names in given] if isinstance(given, list) else given
    if found != wanted:
        raise InputError(f"{source}: its class names are {found}, expected {wanted}")
