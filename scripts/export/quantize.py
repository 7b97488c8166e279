"""Eight-bit networks, calibrated on a user's images, and what they lose."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scripts.export.graph import set_metadata
from scripts.export.session import OnnxClassifier, require
from scripts.infer.inputs import image_batches
from vision.errors import InputError


def quantize(source: Path, target: Path, calibration: Iterable[Tensor]) -> None:
    """Quantises convolutions and linear layers to int8: weights by output channel, activations by tensor.

    Static, with the ranges that the calibration images reach (minimum to maximum), in ONNX's QDQ form. Products of
    two activations, as in attention, stay in float.

    Args:
        source: a file of :func:`scripts.export.graph.export_classifier`.
        target: the file to write, with the source's metadata.
        calibration: batches of images as the network takes them.
    """
    quantization = require("onnxruntime.quantization")
    shape_inference = require("onnxruntime.quantization.shape_inference")
    exported = OnnxClassifier(source)
    name = exported.session.get_inputs()[0].name
    batches: Iterator[dict[str, Any]] = ({name: images.numpy()} for images in calibration)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it logs advice to the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(target),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                extra_options={"MatMulConstBOnly": True},
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,  # x86's int8 instructions take unsigned by signed
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
        set_metadata(target, exported.record.as_dict())
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        logging.root.setLevel(level)


def compare_decisions(
    reference: OnnxClassifier, candidate: OnnxClassifier, files: Sequence[str], batch_size: int = 32
) -> dict[str, Any]:
    """What a network decides differently from another one on images.

    An image's class is known where the name of its folder is a class's name.

    Returns:
        ``images`` (readable ones), ``flipped`` (other most likely class), ``rms_relative_logit_error``, and where
        classes are known ``labelled``, ``top1_float``, ``top1_int8`` (shares) and ``top1_drop_points`` (percentage
        points; negative: int8 is better).
    """
    names = {name: i for i, name in enumerate(reference.record.class_names)}
    before, after, labels = [], [], []
    for batch in image_batches(files, reference.record.preprocessing, batch_size):
        if batch["path"]:
            before.append(reference(batch["image"]))
            after.append(candidate(batch["image"]))
            labels += [names.get(Path(path).parent.name, -1) for path in batch["path"]]
    if not labels:
        raise InputError(f"none of the {len(files)} images to compare on could be read, {files[0]} for one")
    float_logits, int8_logits, truth = torch.cat(before), torch.cat(after), torch.tensor(labels)
    first, second = float_logits.argmax(1), int8_logits.argmax(1)
    error = (int8_logits - float_logits).square().mean().sqrt() / float_logits.square().mean().sqrt()
    result: dict[str, Any] = {
        "images": len(labels),
        "flipped": int((first != second).sum()),
        "rms_relative_logit_error": float(error),
    }
    known = truth >= 0
    if bool(known.any()):
        top1 = [float((answer == truth)[known].float().mean()) for answer in (first, second)]
        result |= {
            "labelled": int(known.sum()),
            "top1_float": top1[0],
            "top1_int8": top1[1],
            "top1_drop_points": 100 * (top1[0] - top1[1]),
        }
    return result


def draw(files: Sequence[str], count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """``count`` files at random, and the others, both in their order."""
    chosen = set(np.random.default_rng(seed).permutation(len(files))[:count].tolist())
    return [f for i, f in enumerate(files) if i in chosen], [f for i, f in enumerate(files) if i not in chosen]
