"""Networks as ONNX files, checked against PyTorch before they are kept."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from scripts.export.session import OnnxNetwork, require
from vision.classifiers import ClassifierRecord
from vision.efficientvit import EfficientViT, fuse
from vision.errors import InputError

OPSET = 17
TOLERANCE, MOST = 1e-4, 1e-2  # of the largest logit; the latter for weights that magnify rounding
CHECKED_BATCHES = (1, 3)


def inference_form(model: nn.Module) -> nn.Module:
    """The form of a classifier that exports best: batch normalisation folded where that is known how."""
    if isinstance(model, EfficientViT):
        return fuse(model)
    return reparameterize_model(copy.deepcopy(model)).eval()


class _InOrder(nn.Module):
    """Outputs by name as a tuple, which is what an exported graph can have."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, list(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.model(images)
        return tuple(found[name] for name in self.names)


def write_onnx(model: nn.Module, file: Path, image_size: tuple[int, int], outputs: Sequence[str] | None = None) -> None:
    """Writes ``images (batch, 3, H, W) -> logits (batch, classes)``; the batch is free, the size is fixed.

    Args:
        model: gives logits, or a dictionary of them.
        file: to write.
        image_size: (height, width).
        outputs: the dictionary's keys, which become the names of the outputs.

    Raises:
        InputError: the package ``onnx`` is missing.
    """
    require("onnx")
    names = outputs or ("logits",)
    images = torch.zeros(2, 3, *image_size, device=next(model.parameters()).device)
    # The exporter advises another one, and warns of every size that becomes a constant, which is meant here.
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model if outputs is None else _InOrder(model, outputs),
            (images,),
            str(file),
            input_names=["images"],
            output_names=list(names),
            dynamic_axes={name: {0: "batch"} for name in ("images", *names)},
            opset_version=OPSET,
            dynamo=False,
        )


def set_metadata(file: Path, values: Mapping[str, Any]) -> None:
    """Writes a network's record into the file, a JSON text under each name."""
    onnx = require("onnx")
    content = onnx.load(file)
    del content.metadata_props[:]
    for key, value in values.items():
        entry = content.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    onnx.save(content, file)


class Agreement(NamedTuple):
    """Shares of the largest logit, the worst of some batches of random images.

    Attributes:
        difference: between the file's logits and PyTorch's.
        rounding: between PyTorch's logits in float32 and in float64.
    """

    difference: float
    rounding: float


def _share(found: Tensor, wanted: Tensor) -> float:
    largest = wanted.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    share = float((found - wanted).abs().max() / largest)
    return share if math.isfinite(share) else math.inf


def agreement(model: nn.Module, file: Path, size: tuple[int, int]) -> Agreement:
    """Runs the file and the network, which gives logits by output, on the same inputs."""
    exported, exact = OnnxNetwork(file, "cpu"), copy.deepcopy(model).double()
    worst = [0.0, 0.0]
    generator = torch.Generator().manual_seed(0)
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, 3, *size, generator=generator)
        with torch.no_grad():
            expected, reference = _by_name(model(images)), _by_name(exact(images.double()))
        exported.check(size, {name: value.shape[1] for name, value in expected.items()}, "the network's outputs")
        for name, found in exported.run(images).items():
            worst[0] = max(worst[0], _share(found, expected[name]))
            worst[1] = max(worst[1], _share(expected[name], reference[name]))
    return Agreement(*worst)


def _by_name(outputs: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def export_classifier(model: nn.Module, record: ClassifierRecord, file: Path) -> Agreement:
    """Exports a classifier in evaluation mode, on the CPU; see :func:`export_network`.

    Args:
        model: any classifier of :func:`vision.classifiers.create_classifier`.
        record: goes into the file's metadata.
        file: to write.
    """
    alone = replace(record, distillation=False)  # a second head has become part of the first
    return export_network(model, inference_form, record.backbone, record.preprocessing.size, alone.as_dict(), file)


def export_network(
    model: nn.Module,
    form: Callable[[nn.Module], nn.Module],
    name: str,
    size: tuple[int, int],
    metadata: Mapping[str, Any],
    file: Path,
) -> Agreement:
    """Exports a network in evaluation mode, on the CPU.

    Args:
        model: ``(B, 3, H, W)`` images to logits, or to a dictionary of them, whose keys become the outputs' names.
        form: makes the form of it that is exported.
        name: of the network, for the errors.
        size: (height, width) of the images in pixels.
        metadata: goes into the file.
        file: to write; an older one is replaced when the new one has passed its check.

    Raises:
        InputError: a package is missing, the file cannot be written, the network does not run at that size or
            cannot be exported, or the exported network gives other outputs.
    """
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(1, 3, *size))
    except RuntimeError as error:
        raise InputError(f"'{name}' does not take {size[0]}x{size[1]} pixels ({_first_line(error)})") from error
    names = list(outputs) if isinstance(outputs, dict) else None
    temporary = file.with_name(f".{file.name}.part")
    try:
        write_onnx(form(model), temporary, size, names)
        set_metadata(temporary, metadata)
        found = agreement(model, temporary, size)
        # Weights that magnify PyTorch's own rounding magnify ONNX Runtime's as well.
        allowed = min(max(TOLERANCE, 10 * found.rounding), MOST)
        if not found.difference <= allowed:
            raise InputError(
                f"{file}: the exported network differs from PyTorch's by {found.difference:.1e} of the largest logit "
                f"(at most {allowed:.0e} is allowed); the file was not kept"
            )
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror or error})") from error
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise InputError(f"'{name}' cannot be exported to ONNX ({_first_line(error)})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return found
