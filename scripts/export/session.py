"""Exported classifiers, run by ONNX Runtime."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vision.classifiers import ClassifierRecord
from vision.errors import InputError

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}  # the better one first


def require(package: str) -> Any:
    """An optional package of the extra ``onnx``.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"this needs {package}, which is not installed: pip install 'frugal-vision[onnx]'") from error


def onnx_session(file: str | Path, device: str | None = None, threads: int | None = None) -> Any:
    """An ``onnxruntime.InferenceSession``.

    Args:
        file: the network.
        device: ``cpu`` or ``cuda``; by default a GPU where this ONNX Runtime can use one.
        threads: within an operation; by default ONNX Runtime's own choice, a thread a core.

    Raises:
        InputError: the file is missing or no ONNX network, or ONNX Runtime does not know the device.
    """
    ort = require("onnxruntime")
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    devices = [name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers()]
    device = device or devices[0]
    if device not in devices:
        raise InputError(f"{file}: this ONNX Runtime cannot use '{device}' (it has {', '.join(devices)})")
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about its own choices
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(file), options, providers=[PROVIDERS[device]])
    # ONNX Runtime has an exception class for each of its status codes, and no common base for them.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: not a network that ONNX Runtime can load ({reason})") from error


class OnnxClassifier:
    """A file of ``vision export``: ``(B, 3, H, W)`` float images to ``(B, classes)`` logits, both on the CPU.

    The arguments are those of :func:`onnx_session`.

    Attributes:
        record: class names and preprocessing, from the file's metadata.

    Raises:
        InputError: the file is not a classifier that ``vision export`` wrote.
    """

    def __init__(self, file: str | Path, device: str | None = None, threads: int | None = None) -> None:
        self.session = onnx_session(file, device, threads)
        self.record = self._read_record(Path(file))

    def _read_record(self, file: Path) -> ClassifierRecord:
        metadata = self.session.get_modelmeta().custom_metadata_map
        try:
            record = ClassifierRecord.from_dict({key: json.loads(value) for key, value in metadata.items()})
            (images,), (logits,) = self.session.get_inputs(), self.session.get_outputs()
            wanted = [3, *record.preprocessing.size], len(record.class_names)
            found = images.shape[1:], logits.shape[1]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise InputError(
                f"{file}: not a classifier of 'vision export' (its metadata lacks class names or preprocessing)"
            ) from error
        if found != wanted:
            raise InputError(
                f"{file}: its metadata tells of images {wanted[0]} and {wanted[1]} classes, its graph takes {found[0]} "
                f"and gives {found[1]}"
            )
        self._input = images.name
        return record

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch of any size.

        Raises:
            InputError: images of another size than the network takes.
        """
        size = self.record.preprocessing.size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *size):
            raise InputError(f"the network takes images (batch, 3, {size[0]}, {size[1]}), got {tuple(images.shape)}")
        (logits,) = self.session.run(None, {self._input: np.ascontiguousarray(images.numpy(), dtype=np.float32)})
        return torch.from_numpy(logits)
