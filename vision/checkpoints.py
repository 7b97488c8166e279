"""Reading weights from files that may come from anywhere: nothing in them is ever executed."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vision.errors import InputError, shorten

StateDict = dict[str, Tensor]


def read_checkpoint(path: str | Path, trusted: bool = False) -> dict[str, Any]:
    """Reads a ``.safetensors`` file or a PyTorch file on the CPU, without unpickling objects.

    ``argparse.Namespace`` is the one class let through: many official releases keep their options in it, and
    it holds nothing but attributes.

    Args:
        path: the file.
        trusted: unpickle objects, which may run any code that the file's author put there.

    Raises:
        InputError: the file is missing, empty, truncated, of another format, or would have to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the checkpoint file is empty")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=not trusted)
    # A damaged file can fail anywhere in the reader, so every failure of it is a property of the file.
    except Exception as error:
        reason = str(error)
        if _is_pickle(path) and ("Unsupported global" in reason or "weights_only" in reason.lower()):
            raise InputError(
                f"{path}: holds a pickled object, which is never executed; save tensors only "
                "(a state dict, or safetensors)"
            ) from error
        raise InputError(f"{path}: not a readable PyTorch checkpoint (damaged or of another format)") from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    return dict(content)


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as PyTorch writes it, today or before version 1.6, so that it is no text at least."""
    with path.open("rb") as stream:
        return stream.read(2).startswith((b"PK", b"\x80"))


# What a training checkpoint says of its network stands under one of these keys; and the system that uses it.
RECORDS = {
    "classifier": "efficientvit",
    "domains": "memspm",
    "ecotta": "ecotta",
    "multitask": "medic",
    "vivit": "vivit",
}


def refuse_other_record(content: Mapping[str, Any], own: str, source: str) -> None:
    """Raises :class:`InputError` where a checkpoint holds another kind of network than ``own``, a key of RECORDS."""
    for key, system in RECORDS.items():
        if key != own and key in content:
            raise InputError(f"{source}: holds another kind of network; 'vision infer {system}' uses it")


def as_state_dict(content: Mapping[str, Any], source: str) -> StateDict:
    """The tensors of a checkpoint: itself, or what ``model``, ``state_dict``, ``model_ema``, ``module`` or ``net`` has.

    Raises:
        InputError: no tensors are found, or a floating-point tensor holds NaN or infinity.
    """
    for key in ("model", "state_dict", "model_ema", "module", "net"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not tensors:
        raise InputError(f"{source}: expected tensors by their names, found none")
    foreign = [str(key) for key in content if key not in tensors]
    if foreign:
        raise InputError(f"{source}: expected tensors only, found other values under {shorten(foreign)}")
    check_finite(tensors, source)
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises :class:`InputError` naming the tensors that hold NaN or infinity."""
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise InputError(f"{source}: NaN or infinite values in {shorten(bad)}")


def read_state_dict(source: str | Path | Mapping[str, Any], trusted: bool = False) -> StateDict:
    """The tensors of a file or of a mapping; see :func:`read_checkpoint` and :func:`as_state_dict`."""
    if isinstance(source, Mapping):
        return as_state_dict(source, "state dict")
    return as_state_dict(read_checkpoint(source, trusted), str(source))


def check_keys(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], source: str) -> None:
    """Raises :class:`InputError` naming the keys that are missing, unexpected or of another shape."""
    problems = []
    if missing := [key for key in shapes if key not in state]:
        problems.append(f"missing {shorten(missing)}")
    if unexpected := [key for key in state if key not in shapes]:
        problems.append(f"unexpected {shorten(unexpected)}")
    misshapen = [
        f"{key} {tuple(state[key].shape)} where the network has {tuple(shape)}"
        for key, shape in shapes.items()
        if key in state and state[key].shape != shape
    ]
    if misshapen:
        problems.append(f"misshapen {shorten(misshapen)}")
    if problems:
        raise InputError(f"{source}: does not fit the network: {'; '.join(problems)}")


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads ``state`` into ``module``; every key must match.

    Raises:
        InputError: keys are missing, unexpected or misshapen; their names are in the message, and the module
            is left as it was.
    """
    check_keys(state, {key: value.shape for key, value in module.state_dict().items()}, source)
    module.load_state_dict(dict(state))


def weights_hash(module: nn.Module) -> str:
    """sha256 of the names, shapes and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
