"""The demo, as ``make demo`` runs it: trained, measured, reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chromium import render
from tests.command import run_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The demo's folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, _run(folder)


def _run(folder: Path) -> str:
    return run_demo(folder, "--skip", "ecotta")  # which has a file of its own, so that it runs at the same time


@pytest.mark.timeout(900)
def test_it_learns_what_it_claims(demo):
    folder, _ = demo
    figures = json.loads((folder / "results.json").read_text())["systems"]["efficientvit"]
    assert figures["photographs"]["test_top1"] >= 0.90
    assert figures["digits"]["test_top1"] >= 0.97


@pytest.mark.timeout(900)
def test_every_task_beats_its_most_frequent_class(demo):
    folder, _ = demo
    tasks = json.loads((folder / "results.json").read_text())["systems"]["medic"]["tasks"]
    assert len(tasks) == 4
    for task, of in tasks.items():
        assert of["f1_weighted"] >= of["majority_f1_weighted"] + 0.2, task
        assert of["f1_macro"] >= 0.8, task


@pytest.mark.timeout(900)
def test_motion_is_seen_by_the_grid_and_not_by_the_class_token(demo):
    folder, _ = demo
    trained = json.loads((folder / "results.json").read_text())["systems"]["vivit"]["trained"]
    assert trained["grid"]["top1"] >= 0.65
    assert trained["grid"]["top1"] >= trained["cls"]["top1"] + 0.35
    assert trained["grid"]["reversed"] >= 0.8


@pytest.mark.timeout(900)
def test_exported_networks_decide_as_the_trained_ones(demo):
    folder, _ = demo
    for data in ("photographs", "digits"):
        told = json.loads((folder / "efficientvit" / data / "export" / "export.json").read_text())
        assert told["float"]["largest_relative_difference"] <= 1e-4
        assert abs(told["int8"]["top1_drop_points"]) <= 1.0


@pytest.mark.timeout(900)
def test_short_benchmark_counts_what_the_paper_counts(demo):
    """Its timings are not tested; what is counted, and that forms agree, does not depend on the machine."""
    folder, _ = demo
    result = json.loads((folder / "efficientvit" / "bench" / "efficientvit.json").read_text())
    claims = {entry["id"]: entry for entry in result["claims"]}
    for name in ("parameters", "macs", "deploy_equal", "saved_activations", "onnx_equal"):
        assert claims[name]["holds"], claims[name]
    assert result["left_out"]


@pytest.mark.timeout(900)
def test_the_report_opens(demo):
    folder, _ = demo
    count = "document.body.dataset.bad = [...document.images].filter(i => !i.naturalWidth).length;"
    count += "document.body.dataset.all = document.images.length;"
    page = render(folder / "report.html", script=count)
    assert 'data-bad="0"' in page
    assert 'data-all="0"' not in page
    assert "Beside other small networks" in page
    assert "vision fit --config configs/efficientvit/demo.yaml" in page
    assert "eight motions, unseen photographs" in page
    assert "Which pictures a person should look at first" in page


@pytest.mark.timeout(900)
def test_what_is_done_is_not_done_again(demo):
    folder, first = demo
    assert "done before" not in first
    second = _run(folder)
    assert second.count("done before: vision fit") == 6
    assert "\n$ " not in second
