"""EcoTTA's part of the demo: a network, its meta networks, and seven methods on one stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The demo's folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_demo(folder, "--skip", "efficientvit", "medic", "vivit")


@pytest.mark.timeout(900)
def test_at_a_high_rate_tent_forgets_and_ecotta_holds(demo):
    folder, _ = demo
    methods = json.loads((folder / "results.json").read_text())["systems"]["ecotta"]["methods"]
    assert methods["bn"]["error"] < methods["source"]["error"] - 0.1
    assert methods["ecotta"]["error"] < methods["tent"]["error"] - 0.03
    assert methods["ecotta"]["error"] < methods["bn"]["error"] + 0.03
    assert methods["ecotta"]["clean"] < 0.06
    assert methods["tent"]["clean"] > methods["ecotta"]["clean"] + 0.03


@pytest.mark.timeout(900)
def test_it_holds_less_than_tent(demo):
    folder, _ = demo
    methods = json.loads((folder / "results.json").read_text())["systems"]["ecotta"]["methods"]
    assert methods["ecotta"]["held_mb"] < 0.6 * methods["tent"]["held_mb"]


@pytest.mark.timeout(900)
def test_the_command_prints_the_methods_side_by_side(demo):
    folder, printed = demo
    lines = printed.splitlines()
    assert ["source", "bn", "tent", "eata", "cotta", "rdumb", "ecotta"] in [line.split() for line in lines]
    assert any(line.startswith("impulse_noise") for line in lines)
    assert "200 of 200 images" in printed
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Seven methods on one stream" in page
    assert "vision infer ecotta" in page
