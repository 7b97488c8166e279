"""Classifiers as ONNX files, checked against PyTorch before they are kept."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from pathlib import Path

import torch
from timm.utils.model import reparameterize_model
from torch import nn

from scripts.export.session import OnnxClassifier, require
from vision.classifiers import ClassifierRecord
from vision.efficientvit import EfficientViT, fuse
from vision.errors import InputError

OPSET = 17
TOLERANCE = 1e-4  # of the largest logit
CHECKED_BATCHES = (1, 3)


def inference_form(model: nn.Module) -> nn.Module:
    """The form of a classifier that exports best: batch normalisation folded where that is known how."""
    if isinstance(model, EfficientViT):
        return fuse(model)
    return reparameterize_model(copy.deepcopy(model)).eval()


def write_onnx(model: nn.Module, file: Path, image_size: tuple[int, int], channels: int = 3) -> None:
    """Writes ``images (batch, channels, H, W) -> logits (batch, classes)``; the batch is free, the size is fixed.

    Raises:
        InputError: the package ``onnx`` is missing.
    """
    require("onnx")
    images = torch.zeros(2, channels, *image_size, device=next(model.parameters()).device)
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
        entry.key, entry.value = key, json.dumps(value, ensure_ascii=False)
    onnx.save(content, file)


def differences(model: nn.Module, file: Path, record: ClassifierRecord) -> tuple[float, float]:
    """How far the logits of the file are from PyTorch's on the same inputs, and PyTorch's from those in float64.

    Both as shares of the largest logit, the worst of some batches.
    """
    exported, exact = OnnxClassifier(file, "cpu"), copy.deepcopy(model).double()
    worst = [0.0, 0.0]
    generator = torch.Generator().manual_seed(0)
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, 3, *record.preprocessing.size, generator=generator)
        with torch.no_grad():
            expected, reference = model(images), exact(images.double())
        for i, (found, wanted) in enumerate(((exported(images), expected), (expected, reference))):
            worst[i] = max(worst[i], float((found - wanted).abs().max() / wanted.abs().max()))
    return worst[0], worst[1]


def export_classifier(model: nn.Module, record: ClassifierRecord, file: Path) -> float:
    """Exports a classifier in evaluation mode, on the CPU.

    Args:
        model: any classifier of :func:`vision.classifiers.create_classifier`.
        record: goes into the file's metadata.
        file: to write; an older one is replaced when the new one has passed its check.

    Returns:
        The largest difference from ``model``, as a share of the largest logit.

    Raises:
        InputError: a package is missing, the file cannot be written, the network cannot be exported, or the
            exported network gives other outputs.
    """
    temporary = file.with_name(f".{file.name}.part")
    try:
        write_onnx(inference_form(model), temporary, record.preprocessing.size)
        # A second head has become part of the first.
        set_metadata(temporary, record)
        difference, rounding = differences(model, temporary, record)
        # Weights that magnify PyTorch's own rounding magnify ONNX Runtime's as well.
        allowed = max(TOLERANCE, 10 * rounding)
        if not difference <= allowed:
            raise InputError(
                f"{file}: the exported network differs from PyTorch's by {difference:.1e} of the largest logit (at "
                f"most {allowed:.0e} is allowed); the file was not kept"
            )
        temporary.replace(file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror or error})") from error
    except (torch.onnx.errors.OnnxExporterError, NotImplementedError) as error:
        raise InputError(
            f"'{record.backbone}' cannot be exported to ONNX ({str(error).strip().splitlines()[0]})"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return difference
