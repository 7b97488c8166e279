"""Classifiers as ONNX files, checked against PyTorch before they are kept."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from scripts.export.session import OnnxClassifier, require
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


def write_onnx(model: nn.Module, file: Path, image_size: tuple[int, int]) -> None:
    """Writes ``images (batch, 3, H, W) -> logits (batch, classes)``; the batch is free, the size is fixed.

    Raises:
        InputError: the package ``onnx`` is missing.
    """
    require("onnx")
    images = torch.zeros(2, 3, *image_size, device=next(model.parameters()).device)
    # The exporter advises another one, and warns of every size that becomes a constant, which is meant here.
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (images,),
            str(file),
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


def set_metadata(file: Path, record: ClassifierRecord) -> None:
    """Writes a classifier's record into the file, a JSON text under each attribute's name."""
    onnx = require("onnx")
    content = onnx.load(file)
    del content.metadata_props[:]
    for key, value in record.as_dict().items():
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


def agreement(model: nn.Module, file: Path, record: ClassifierRecord) -> Agreement:
    """Runs the file and the network on the same inputs."""
    exported, exact = OnnxClassifier(file, "cpu"), copy.deepcopy(model).double()
    worst = [0.0, 0.0]
    generator = torch.Generator().manual_seed(0)
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, 3, *record.preprocessing.size, generator=generator)
        with torch.no_grad():
            expected, reference = model(images), exact(images.double())
        for i, (found, wanted) in enumerate(((exported(images), expected), (expected, reference))):
            worst[i] = max(worst[i], _share(found, wanted))
    return Agreement(*worst)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def export_classifier(model: nn.Module, record: ClassifierRecord, file: Path) -> Agreement:
    """Exports a classifier in evaluation mode, on the CPU.

    Args:
        model: any classifier of :func:`vision.classifiers.create_classifier`.
        record: goes into the file's metadata.
        file: to write; an older one is replaced when the new one has passed its check.

    Raises:
        InputError: a package is missing, the file cannot be written, the network does not run at that size or
            cannot be exported, or the exported network gives other outputs.
    """
    size = record.preprocessing.size
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, *size))
    except RuntimeError as error:
        raise InputError(
            f"'{record.backbone}' does not take {size[0]}x{size[1]} pixels ({_first_line(error)})"
        ) from error
    temporary = file.with_name(f".{file.name}.part")
    try:
        write_onnx(inference_form(model), temporary, size)
        set_metadata(temporary, replace(record, distillation=False))  # a second head has become part of the first
        found = agreement(model, temporary, record)
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
        raise InputError(f"'{record.backbone}' cannot be exported to ONNX ({_first_line(error)})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return found
