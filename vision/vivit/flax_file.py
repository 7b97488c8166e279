"""Weights in the files of JAX programs, read without JAX and without running anything that is in them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from vision.checkpoints import StateDict, check_finite
from vision.errors import InputError

# Where a train state keeps the parameters: older and newer forms of Scenic's.
ROOTS = ("optimizer/target/params/", "optimizer/target/", "params/params/", "params/")
_NDARRAY = 1  # flax's numbers of its MessagePack extension types
_SCALAR = 3
_CHUNKED = "__msgpack_chunked_array__"


def read_flax(path: str | Path) -> StateDict:
    """The parameters of a flax train state or of an ``.npz`` of flattened names, ``SpatialTransformer/...``.

    Args:
        path: a MessagePack file as ``flax.training.checkpoints`` writes it, or an ``.npz`` whose names are joined by
            ``/``.

    Raises:
        InputError: the file is missing, empty, damaged, of another format, or holds objects, NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the checkpoint file is empty")
    flat = _read_npz(path) if zipfile.is_zipfile(path) else _read_msgpack(path)
    if not flat:
        raise InputError(f"{path}: not a flax checkpoint (it holds no named parameters)")
    found = _parameters(flat)
    check_finite(found, str(path))
    return found


def is_flax(path: str | Path) -> bool:
    """Whether a file is not one of PyTorch's: an ``.npz``, or no zip file, pickle or safetensors at all."""
    path = Path(path)
    if path.suffix in (".npz", ".msgpack"):
        return True
    if path.suffix == ".safetensors" or not path.is_file():
        return False
    with path.open("rb") as stream:
        start = stream.read(2)
    # MessagePack maps of few, many and very many entries; a pickle starts with 0x80 and its protocol.
    return bool(start) and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF))


def _read_msgpack(path: Path) -> StateDict:
    try:
        content = msgpack.unpackb(path.read_bytes(), ext_hook=_extension, strict_map_key=False, raw=False)
        return dict(_flat(content)) if isinstance(content, Mapping) else {}
    # Damaged files fail in as many ways as MessagePack has types.
    except Exception as error:
        raise InputError(f"{path}: not a readable flax checkpoint ({_reason(error)})") from error


def _read_npz(path: Path) -> StateDict:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    # As many as zip archives, their compression and NumPy's headers have.
    except Exception as error:
        raise InputError(f"{path}: not a readable .npz of parameters ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _extension(code: int, data: bytes) -> Any:
    if code not in (_NDARRAY, _SCALAR):
        return None
    shape, kind, buffer = msgpack.unpackb(data, raw=False)
    kind = {"bfloat16": "bfloat16", "float": "float64", "int": "int64"}.get(kind, kind)
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):  # keys of random numbers and the like
        return None
    if not len(buffer):
        return torch.empty(0, dtype=dtype).reshape(tuple(shape))
    return torch.frombuffer(bytearray(buffer), dtype=dtype).reshape(tuple(shape))


def _flat(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            if _CHUNKED in value:
                yield name, _joined(value)
            else:
                yield from _flat(value, f"{name}/")
        elif isinstance(value, Tensor):
            yield name, value


def _joined(value: Mapping[str, Any]) -> Tensor:
    """Arrays beyond a gigabyte come in pieces."""
    shape = [size for _, size in sorted(value["shape"].items(), key=lambda item: int(item[0]))]
    pieces = [piece for _, piece in sorted(value["chunks"].items(), key=lambda item: int(item[0]))]
    return torch.cat([piece.reshape(-1) for piece in pieces]).reshape(shape)


def _parameters(flat: StateDict) -> StateDict:
    for root in ROOTS:
        found = {name.removeprefix(root): value for name, value in flat.items() if name.startswith(root)}
        if found:
            return found
    return flat
