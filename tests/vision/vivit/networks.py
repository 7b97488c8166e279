"""Small video networks for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor, nn

from vision.vivit.model import AdapterOptions, FactorisedViViT, TemporalOptions, ViViTConfig

SIZE = (32, 32)  # of the frames: 4x4 patches
SMALL: dict[str, Any] = {"patch_size": 8, "depth": 2}


def config(form: str = "grid", layers: int = 2, backbone: str = "test_vit", **options: Any) -> ViViTConfig:
    """Two spatial and two temporal blocks, 64 wide, of eight frames and five classes."""
    settings: dict[str, Any] = {
        "num_classes": 5,
        "frames": 8,
        "image_size": SIZE,
        "adapter": AdapterOptions(form, width=8),
        "temporal": TemporalOptions(layers),
        "backbone_options": SMALL,
    }
    return ViViTConfig(backbone, **{**settings, **options})


def fresh(form: str = "grid", seed: int = 0, **options: Any) -> FactorisedViViT:
    """As a training starts with it."""
    torch.manual_seed(seed)
    return FactorisedViViT(config(form, **options)).eval()


def lively(form: str = "grid", seed: int = 0, **options: Any) -> FactorisedViViT:
    """Every weight has an effect: none is 0 or 1 any more, and positions are as large as tokens."""
    return stir(fresh(form, seed, **options))


def stir(network: FactorisedViViT) -> FactorisedViViT:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter += torch.randn_like(parameter) * (0.5 if name.endswith(("pos_embed", "cls_token")) else 0.05)
    return network


def clips(*shape: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    """Random uint8 videos ``(*shape, 3, height, width)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*shape, 3, *size), dtype=torch.uint8, generator=generator)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of them."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def same_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(value, expected[key]) for key, value in found.items())


# ----------------------------------------------------------------------------------------------------- flax's files
def flax_array(value: Tensor) -> msgpack.ExtType:
    """As flax.serialization packs an array."""
    array = value.numpy()
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))


def flax_chunks(value: Tensor, size: int) -> dict[str, Any]:
    """As flax.serialization packs an array that is too large, here beyond ``size`` entries."""
    shape = {str(i): length for i, length in enumerate(value.shape)}
    pieces = {str(i): flax_array(piece) for i, piece in enumerate(value.flatten().split(size))}
    return {"__msgpack_chunked_array__": True, "shape": shape, "chunks": pieces}


def flax_tree(parameters: Mapping[str, Tensor], chunked: str = "") -> dict[str, Any]:
    """Nested by the parts of the names; the parameter called ``chunked`` in pieces."""
    tree: dict[str, Any] = {}
    for name, value in parameters.items():
        *parts, last = name.split("/")
        place = tree
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = flax_chunks(value, 1000) if name == chunked else flax_array(value)
    return tree


def write_flax(path: Path, parameters: Mapping[str, Tensor], root: str = "optimizer/target", chunked: str = "") -> Path:
    """A train state as Scenic's checkpoints are, with what is not a parameter beside it."""
    state: dict[str, Any] = flax_tree(parameters, chunked)
    for part in reversed(root.split("/")):
        state = {part: state}
    moments = flax_tree({name: torch.full_like(value, torch.nan) for name, value in parameters.items()})
    extra = {"global_step": flax_array(torch.tensor(7)), "rng": None, "model_state": {}, "lr": 0.1}
    state.setdefault("optimizer", {})["state"] = {"param_states": moments}
    path.write_bytes(msgpack.packb({**extra, **state}, use_bin_type=True, strict_types=True))
    return path


def write_npz(path: Path, parameters: Mapping[str, Tensor]) -> Path:
    np.savez(path, **{name: value.numpy() for name, value in parameters.items()})
    return path
