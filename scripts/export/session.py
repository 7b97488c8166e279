"""Exported classifiers, run by ONNX Runtime."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import fields
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
        device: ``cpu``, ``cuda`` or ``cuda:1``; by default a GPU where this ONNX Runtime can use one.
        threads: within an operation; by default ONNX Runtime's own choice, a thread a core.

    Raises:
        InputError: the file is missing or no ONNX network, or ONNX Runtime does not know the device.
    """
    ort = require("onnxruntime")
    file = Path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    devices = [name for name, provider in PROVIDERS.items() if provider in ort.get_available_providers()]
    kind, _, index = (device or devices[0]).partition(":")
    if kind not in devices or not (index.isdecimal() or index == ""):
        raise InputError(f"{file}: this ONNX Runtime cannot use '{device}' (it has {', '.join(devices)})")
    settings = {"device_id": index or "0"} if kind == "cuda" else {}
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about its own choices
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(file), options, providers=[(PROVIDERS[kind], settings)])
    # ONNX Runtime has an exception class for each of its status codes, and no common base for them.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: not a network that ONNX Runtime can load ({reason})") from error


def _read_record(file: Path, metadata: Mapping[str, str]) -> ClassifierRecord:
    try:
        # A file may carry more than we wrote.
        known = {field.name for field in fields(ClassifierRecord)}
        record = ClassifierRecord.from_dict({key: json.loads(metadata[key]) for key in metadata if key in known})
    except (KeyError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise InputError(
            f"{file}: not a classifier of 'vision export' (its metadata lacks class names or preprocessing)"
        ) from error
    except InputError as error:
        raise InputError(f"{file}: its metadata is unusable: {error}") from error
    names = record.class_names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{file}: its metadata is unusable: class_names must be a list of texts")
    return record


class OnnxNetwork:
    """A file of ``vision export``: ``(B, 3, H, W)`` float images to outputs ``(B, n)`` by name, all on the CPU.

    The arguments are those of :func:`onnx_session`.

    Attributes:
        metadata: texts by name.
    """

    def __init__(self, file: str | Path, device: str | None = None, threads: int | None = None) -> None:
        self.file = Path(file)
        self.session = onnx_session(file, device, threads)
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map

    def check(self, size: tuple[int, int], outputs: Mapping[str, int], what: str) -> None:
        """Checks that the graph is what the metadata tells of: images of ``size``, and the sizes of outputs by name.

        Args:
            size: (height, width).
            outputs: by name.
            what: the outputs in words.

        Raises:
            InputError: it is not.
        """
        inputs, found = self.session.get_inputs(), {entry.name: entry.shape for entry in self.session.get_outputs()}
        wanted = f"float images (batch, 3, {size[0]}, {size[1]}) and {what}"
        if len(inputs) != 1 or list(found) != list(outputs) or inputs[0].type != "tensor(float)":
            raise InputError(f"{self.file}: its metadata tells of {wanted}, its graph takes and gives something else")
        taken, given = inputs[0].shape, [shape[1:] for shape in found.values()]
        if isinstance(taken[0], int) or taken[1:] != [3, *size] or given != [[number] for number in outputs.values()]:
            shown = ", ".join(map(str, found.values()))
            raise InputError(f"{self.file}: its metadata tells of {wanted}, its graph takes {taken} and gives {shown}")
        self.size, self.outputs, self._input = size, list(outputs), inputs[0].name

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs for a batch of any size; :meth:`check` comes first.

        Raises:
            InputError: images of another size than the network takes, or outputs that are not finite.
        """
        size = self.size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, *size):
            raise InputError(f"the network takes images (batch, 3, {size[0]}, {size[1]}), got {tuple(images.shape)}")
        try:
            found = self.session.run(None, {self._input: np.ascontiguousarray(images.numpy(), dtype=np.float32)})
        except Exception as error:  # as in onnx_session
            raise InputError(f"{self.file}: ONNX Runtime cannot run it ({str(error).splitlines()[0]})") from error
        tensors = {name: torch.from_numpy(values) for name, values in zip(self.outputs, found, strict=True)}
        for name, values in tensors.items():
            if not bool(torch.isfinite(values).all()):
                raise InputError(f"{self.file}: gives NaN or infinite {name}")
        return tensors


class OnnxClassifier:
    """A file of ``vision export efficientvit``: images to ``(B, classes)`` logits; see :class:`OnnxNetwork`.

    Attributes:
        record: class names and preprocessing, from the file's metadata.

    Raises:
        InputError: the file is not a classifier that ``vision export`` wrote.
    """

    def __init__(self, file: str | Path, device: str | None = None, threads: int | None = None) -> None:
        self.network = OnnxNetwork(file, device, threads)
        self.file, self.session = self.network.file, self.network.session
        self.record = _read_record(self.file, self.network.metadata)
        classes = len(self.record.class_names)
        self.network.check(self.record.preprocessing.size, {"logits": classes}, f"{classes} classes")

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch, as :meth:`OnnxNetwork.run` gives them."""
        return self.network.run(images)["logits"]
