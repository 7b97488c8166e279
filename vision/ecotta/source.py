"""The network that is to be adapted, from whatever file it comes in, and the record of an adapted one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vision.checkpoints import StateDict, as_state_dict, load_strict, read_checkpoint, refuse_other_record
from vision.classifiers import RECORD as CLASSIFIER
from vision.classifiers import create_classifier, load_classifier, preprocessing_of
from vision.ecotta.checkpoint import load_official
from vision.ecotta.ecotta import EcoTTA
from vision.ecotta.online import Online
from vision.ecotta.wrn import PREPROCESSING, WideResNet
from vision.errors import InputError
from vision.preprocessing import Preprocessing

RECORD = "ecotta"  # the key under which a training checkpoint keeps an AdapterRecord
TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class SourceRecord:
    """What is needed to build the network anew, beside its weights.

    Attributes:
        backbone: a name of :func:`~vision.classifiers.create_classifier`, or ``torchvision:NAME`` of one of its
            segmentation networks; None for one of :func:`~vision.ecotta.checkpoint.load_official`.
        class_names: of the outputs.
        preprocessing: what the network expects.
        normalisation: that such an official network begins with, ``(mean, std)``; None for none or another network.
    """

    backbone: str | None
    class_names: list[str]
    preprocessing: Preprocessing
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


@dataclass(frozen=True)
class AdapterRecord:
    """What a file needs to say beside its weights so that the network can be adapted on new images.

    Attributes:
        source: the network.
        groups: names of each group's blocks.
        form: of the meta networks.
        kernel: of their convolutions.
        online: how it was to be adapted when it was warmed up.
    """

    source: SourceRecord
    groups: list[list[str]]
    form: str
    kernel: int
    online: Online

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        source = {**self.source.__dict__, "preprocessing": self.source.preprocessing.as_dict()}
        return {**self.__dict__, "source": source, "online": asdict(self.online)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdapterRecord:
        """The inverse of :meth:`as_dict`."""
        source = dict(values["source"])
        source["preprocessing"] = Preprocessing.from_dict(source["preprocessing"])
        return cls(**{**values, "source": SourceRecord(**source), "online": Online(**values["online"])})

    def build(self, state: StateDict, label: str, online: Online | None = None) -> EcoTTA:
        """The adapted network with the weights of ``state``; ``online`` takes the place of the record's.

        Raises:
            InputError: the weights do not fit; ``label`` names the file.
        """
        base = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
        source = self.source
        if source.backbone is None:
            model = load_official(base, source.normalisation or "none")
        else:
            model = _named(source.backbone, len(source.class_names), source.preprocessing.size)
        network = EcoTTA.attach(
            model,
            partition=self.groups,
            form=self.form,  # type: ignore[arg-type]
            kernel=self.kernel,
            input_size=source.preprocessing.size,
            calibrate=False,
            **(online or self.online).options(),
        )
        load_strict(network, state, label)
        return network


def _named(name: str, classes: int, size: tuple[int, int] | None, pretrained: bool = False) -> nn.Module:
    if not name.startswith(TORCHVISION):
        return create_classifier(name, classes, size, pretrained)
    from torchvision.models import get_model, list_models, segmentation

    known = list_models(module=segmentation)
    short = name.removeprefix(TORCHVISION)
    if short not in known:
        raise InputError(f"torchvision has no segmentation network '{short}'; there are {', '.join(known)}")
    if pretrained:
        raise InputError(f"'{name}': give a file with source; published weights are not fetched for it")
    model: nn.Module = get_model(short, weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
    return model


def source_preprocessing(
    backbone: str | None, source: str | Path | None = None, trusted: bool = False
) -> Preprocessing:
    """What a network expects: what its file says, where that is a training checkpoint, else what its name says.

    Raises:
        InputError: the file is unreadable.
    """
    if source is not None and Path(source).is_file() and Path(source).suffix != ".yaml":
        content = read_checkpoint(source, trusted)
        for record in (content.get(CLASSIFIER), (content.get(RECORD) or {}).get("source")):
            if isinstance(record, Mapping):
                return Preprocessing.from_dict(record["preprocessing"])
    if backbone is None:
        return PREPROCESSING
    if backbone.startswith(TORCHVISION):
        return Preprocessing(size=(512, 1024), interpolation="bilinear", crop_pct=1.0)
    return preprocessing_of(backbone)


def holds_adapter(file: str | Path, trusted: bool = False) -> bool:
    """Whether a file is a training checkpoint of ``TestTimeAdaptation``; ``trusted`` as in :func:`load_source`."""
    return Path(file).is_file() and RECORD in read_checkpoint(file, trusted)


def load_source(
    source: str | Path | None,
    backbone: str | None,
    class_names: list[str],
    preprocessing: Preprocessing,
    pretrained: bool = False,
    trusted: bool = False,
) -> tuple[nn.Module, SourceRecord]:
    """The network that is to be adapted, in evaluation mode.

    Args:
        source: a file: a training checkpoint of ``ImageClassifier`` (says everything itself); of RobustBench
            (``backbone`` is not needed); of timm, of an official release or of torchvision (``backbone`` names it).
        backbone: see :class:`SourceRecord`.
        class_names: of the data.
        preprocessing: that images get.
        pretrained: take the weights of timm's hub in the place of a file.
        trusted: unpickle objects in the file, which may run any code of its author's.

    Raises:
        InputError: the file is unreadable or does not fit, or the network has other classes than the data.
    """
    if (source is None) == (not pretrained):
        raise InputError("model.source: give a file of the network to adapt, or pretrained and a backbone")
    if source is None:
        if backbone is None:
            raise InputError("model.backbone: pretrained needs the network's name")
        model = _named(backbone, len(class_names), preprocessing.size, pretrained=True)
        return model.eval(), SourceRecord(backbone, class_names, preprocessing)
    content = read_checkpoint(source, trusted)
    record = SourceRecord(backbone, class_names, preprocessing)
    if CLASSIFIER in content:
        model, found = load_classifier(source)
        if found.distillation:
            raise InputError(f"{source}: a network with a second head for distillation cannot be adapted")
        record = SourceRecord(found.backbone, class_names, preprocessing)
        classes = len(found.class_names)
        if classes == len(class_names) and found.class_names != class_names:
            first = next(i for i, name in enumerate(class_names) if name != found.class_names[i])
            raise InputError(
                f"{source}: class {first} of the network is '{found.class_names[first]}', of the data "
                f"'{class_names[first]}'"
            )
    elif backbone is None:
        refuse_other_record(content, CLASSIFIER, str(source))
        model = load_official(as_state_dict(content, str(source)))
        classes = _outputs(model)
        record = SourceRecord(None, class_names, preprocessing, _normalisation(model))
    else:
        state = as_state_dict(content, str(source))
        state = {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}
        model = _named(backbone, len(class_names), preprocessing.size)
        classes = len(class_names)
        load_strict(model, {key.removeprefix("model."): value for key, value in state.items()}, str(source))
    if classes != len(class_names):
        raise InputError(f"{source}: the network has {classes} classes, the data has {len(class_names)}")
    return model.eval(), record


def _outputs(model: nn.Module) -> int:
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return last.out_features


def _normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    own = model if isinstance(model, WideResNet) else next(iter(model.children()))
    names = ("mu", "sigma") if isinstance(model, WideResNet) else ("mean", "std")
    values = [getattr(own, name, None) for name in names]
    if not all(isinstance(value, torch.Tensor) for value in values):
        return None
    mean, std = (tuple(value.flatten().tolist()) for value in values if value is not None)
    return mean, std


def load_adapter(
    checkpoint: str | Path, backbone: str | None = None, online: Online | None = None, trusted: bool = False
) -> tuple[EcoTTA, SourceRecord]:
    """A network that is ready to be adapted, from a file.

    Args:
        checkpoint: a training checkpoint of ``TestTimeAdaptation``; or one of ``ImageClassifier``, a file of
            RobustBench, or (with ``backbone``) of timm: these get meta networks that are calibrated on the first batch.
            The community's EcoTTA files are taken as well.
        backbone: the network of a file of timm's.
        online: how it is to be adapted; by default what the checkpoint says, or the paper's.
        trusted: unpickle objects in the file, which may run any code of its author's.

    Raises:
        InputError: the file is unreadable or does not fit.
    """
    content = read_checkpoint(checkpoint, trusted)
    label, options = str(checkpoint), (online or Online()).options()
    if isinstance(content.get(RECORD), Mapping):
        record = AdapterRecord.from_dict(content[RECORD])
        state = as_state_dict(content, label)
        prefix = "adapter."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        return record.build(own, label, online), record.source
    if backbone is not None and backbone.startswith(TORCHVISION):
        state = as_state_dict(content, label)
        last = [value for key, value in state.items() if key.startswith("classifier.") and value.dim() == 4][-1:]
        classes = [str(i) for i in range(len(last[0]) if last else 21)]
        preprocessing = source_preprocessing(backbone)
        model, source = load_source(checkpoint, backbone, classes, preprocessing, trusted=trusted)
    elif CLASSIFIER in content or backbone is not None:
        model, found = load_classifier(checkpoint, backbone, trusted=trusted)
        source = SourceRecord(found.backbone, found.class_names, found.preprocessing)
    else:
        refuse_other_record(content, RECORD, label)
        state = as_state_dict(content, label)
        if any("encoders." in key for key in state):
            network = load_official(state, **options)
            assert isinstance(network, EcoTTA)
            names = [str(i) for i in range(_outputs(network.model))]
            return network, SourceRecord(None, names, PREPROCESSING, _normalisation(network.model))
        model = load_official(state)
        classes = [str(i) for i in range(_outputs(model))]
        preprocessing = PREPROCESSING
        if len(classes) == 1000:  # of ImageNet; the file does not say what size its images have
            preprocessing = replace(PREPROCESSING, size=(224, 224), crop_pct=0.875)
        source = SourceRecord(None, classes, preprocessing, _normalisation(model))
    network = EcoTTA.attach(model, input_size=source.preprocessing.size, **options)
    return network, source
