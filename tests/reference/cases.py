"""Reference cases: where they lie, how their weights and inputs are made, and how results are compared with them.

A case is ``<name>.json`` (what it is) and, for most, ``<name>.npz`` (its arrays), in ``tests/reference/cases/<system>``
or, where the environment variable ``REFERENCE_CASES`` names a folder, in ``$REFERENCE_CASES/<system>``.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

COPIES = Path(__file__).parent / "cases"
NO_CASE = "no_case"  # stands for the cases of a folder that has none, so that its test fails instead of vanishing


def case_folder(system: str) -> Path:
    return Path(os.environ.get("REFERENCE_CASES") or COPIES) / system


def case_names(system: str) -> list[str]:
    """The cases of a system, for the parametrisation of its test."""
    files = case_folder(system).glob("*")
    return sorted({file.stem for file in files if file.suffix in {".json", ".npz"}}) or [NO_CASE]


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        kind: says how it is checked.
        info: the content of the ``.json``.
        arrays: the content of the ``.npz``; empty where there is none.
    """

    name: str
    kind: str
    info: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def compare(
        self, results: Mapping[str, Any], tolerance: float = 1e-5, exceptions: Mapping[str, float] | None = None
    ) -> None:
        """Every array of the case must be among the results and agree with its namesake there.

        Integers must be equal; others may differ by ``tolerance``, or the array's own one in ``exceptions``, times
        the array's largest magnitude.
        """
        assert self.arrays, f"{self.name} holds no arrays"
        unknown = sorted(set(self.arrays) - set(results))
        assert not unknown, f"{self.name} holds arrays that are not checked: {unknown}"
        for key, expected in self.arrays.items():
            assert_close(f"{self.name}: {key}", results[key], expected, (exceptions or {}).get(key, tolerance))


def load_case(system: str, name: str) -> Case:
    folder = case_folder(system)
    if name == NO_CASE:
        pytest.fail(f"{folder} holds no reference case")
    info = json.loads((folder / f"{name}.json").read_text())
    arrays: dict[str, np.ndarray] = {}
    if (folder / f"{name}.npz").exists():
        with np.load(folder / f"{name}.npz") as file:
            arrays = dict(file)
    return Case(name, info["kind"], info, arrays)


def assert_close(what: str, result: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Equal shapes, and a difference of at most ``tolerance`` times the largest expected magnitude."""
    found, expected = (
        np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value) for value in (result, expected)
    )
    assert found.shape == expected.shape, f"{what} has shape {found.shape}, expected {expected.shape}"
    if np.issubdtype(expected.dtype, np.integer):
        assert np.array_equal(found, expected), f"{what} differs"
        return
    error = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    allowed = tolerance * np.abs(expected).max()
    assert error <= allowed, f"{what} differs by {error:.3g}, allowed {allowed:.3g}"


def fill(key: str, shape: Sequence[int], std: float = 0.05) -> Tensor:
    """The value of a parameter or buffer by rule, from its name and shape."""
    value = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape)).astype(np.float32) * std
    if key.endswith("running_var"):
        value = 1 + np.abs(value)
    elif len(shape) == 1 and key.endswith(".weight"):
        value = 1 + value
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def fill_state(shapes: Mapping[str, Sequence[int]], std: float = 0.05) -> dict[str, Tensor]:
    """A state dict by :func:`fill`; the counters of batch normalisation are zero, as in a new network."""
    return {
        key: torch.zeros((), dtype=torch.long) if key.endswith("num_batches_tracked") else fill(key, shape, std)
        for key, shape in shapes.items()
    }


def normal(shape: Sequence[int], seed: int = 0) -> Tensor:
    """Standard normal values by NumPy's generator, the rule for inputs."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32))


def lists_in(text: str) -> list[list[int]]:
    """The bracketed lists of integers in a rule or note, such as ``shape [2, 3, 224, 224]``, in order."""
    return [[int(entry) for entry in found.split(",")] for found in re.findall(r"\[(\d[\d,\s]*)\]", text)]
