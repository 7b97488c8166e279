"""The record of the machine that figures carry."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from vision.measure import environment


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda _: "NVIDIA H100")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = environment()
    assert found["GPU"] == "2 x NVIDIA H100"
    assert {"python", "torch", "timm", "pytorch-lightning", "opencv", "numpy", "processor", "cores", "memory"} < set(
        found
    )
    assert all(found.values())
    monkeypatch.delitem(sys.modules, "torch")
    assert "GPU" not in environment()
