"""What ``vision bench`` leaves: claims that say whether they hold, and pages that show the results' figures."""

from __future__ import annotations

import json

import pytest
import torch

from scripts.bench.efficientvit_tables import tables
from scripts.bench.forms import vary
from scripts.bench.pages import ROOT, filled, pages
from scripts.bench.results import claim, claims_table, rounded
from tests.command import error_line
from vision.efficientvit import build
from vision.errors import InputError
from vision.measure import Spread

COMMITTED = json.loads((ROOT / "benchmarks" / "efficientvit.json").read_text(encoding="utf-8"))


def timed(network: str, form: str, speed: float, group: str = "peers") -> dict:
    metrics = {"images_per_second": speed, "latency_ms": 1e3 / speed, "speed_ratio": 2.0}
    return {"name": network, "group": group, "network": network, "form": form, "batch": 1, "metrics": metrics}


def test_claim_says_whether_it_holds_and_keeps_its_spread():
    fast = claim("a", "speed, at least", Spread(1.25, 1.2, 1.4), at_least=1.3)
    assert (fast["holds"], fast["measured"], fast["spread"], fast["target"]) == (False, 1.25, [1.2, 1.4], 1.3)
    small = claim("b", "memory, at most", 0.31, at_most=0.4, source="paper")
    assert (small["holds"], small["spread"], small["source"]) == (True, None, "paper")
    lines = claims_table([fast, small]).splitlines()
    assert lines[2] == "| speed, at least | ours | 1.3 | 1.25 (1.2-1.4) | **no** |"
    assert lines[3].endswith("| 0.31 | yes |")
    with pytest.raises(ValueError, match="one of at_least and at_most"):
        claim("c", "both", 1.0, at_least=1.0, at_most=2.0)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0.0), (123456.0, 123500.0), (-0.00123449, -0.001234), (7.0, 7.0)]
)
def test_significant_digits(value, expected):
    assert rounded(value) == pytest.approx(expected, rel=1e-12)


def test_network_that_beats_ours_is_named():
    """Faster at batch 1 than M4, and at most half a point less accurate; M5 is better, and M3 faster."""
    rows = [
        timed("efficientvit_m3", "onnxruntime", 300),
        timed("efficientvit_m4", "onnxruntime", 100),
        timed("efficientvit_m5", "onnxruntime", 70),
        timed("mobilenetv4_conv_small", "onnxruntime", 200),
        timed("mobilenetv3_large_100", "onnxruntime", 90),
    ]
    counted = [
        {**row, "group": "counts", "metrics": {"parameters": 1, "macs": 1, "saved_activations_mib_per_image": 1.0}}
        for row in [timed(f"efficientvit_m{i}", "", 1) for i in range(6)] + [timed("mobilenetv3_large_100", "", 1)]
    ]
    rest = {"claims": [], "setting": "", "left_out": [], "environment": COMMITTED["environment"]}
    written = tables({"rows": [*rows, *counted], **rest})
    lines = {line.split(" | ")[0].strip("| "): line for line in written["peers"].splitlines()}
    assert lines["MobileNetV4-Conv-S"].endswith("| M4 |")
    assert lines["MobileNetV3-Large"].endswith("|  |")
    assert "MobileNetV4-Conv-S is faster than M4." in written["reading"]


def test_committed_result_has_the_form_of_every_system_and_every_table():
    assert set(COMMITTED) >= {"environment", "setting", "rows", "claims"}
    for entry in COMMITTED["claims"]:
        assert set(entry) == {"id", "claim", "source", "target", "measured", "spread", "holds"}
    assert len({entry["id"] for entry in COMMITTED["claims"]}) == len(COMMITTED["claims"])
    assert all(isinstance(row["metrics"], dict) and row["name"] for row in COMMITTED["rows"])
    assert all(tables(COMMITTED).values())


def test_pages_show_the_committed_figures():
    for page in pages():
        assert filled(page) == page.read_text(encoding="utf-8"), f"{page}: run make figures"


def test_blocks_are_filled_and_wrong_ones_named(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- bench efficientvit headline -->\nold\n<!-- end -->\nb\n")
    with pytest.raises(InputError, match="not a readable result of 'vision bench'"):
        filled(page, tmp_path)
    (tmp_path / "benchmarks" / "efficientvit.json").write_text(json.dumps(COMMITTED))
    text = filled(page, tmp_path)
    assert text.startswith("a\n<!-- bench efficientvit headline -->\n\n| ")
    assert "old" not in text
    assert text.endswith("|\n\n<!-- end -->\nb\n")
    page.write_text("<!-- bench efficientvit nothing -->\n<!-- end -->")
    with pytest.raises(
        InputError, match=r"page.md: a block for the table 'nothing' of efficientvit; there are counts,"
    ):
        filled(page, tmp_path)
    page.write_text("<!-- bench efficientnet headline -->\n<!-- end -->")
    with pytest.raises(InputError, match="a block for 'efficientnet', which is no system"):
        filled(page, tmp_path)


def test_varied_network_has_no_branch_at_zero():
    """New networks start with residual branches that give nothing, on which a comparison would say little."""
    network = vary(build("efficientvit_m0"))
    moved = []
    for block in (network.blocks1[0].ffn0, network.blocks1[0].mixer, network.blocks3[-1].ffn1):
        block.register_forward_hook(lambda _m, given, out: moved.append((out - given[0]).abs().mean()))
    with torch.no_grad():
        network(torch.randn(1, 3, 64, 64))
    assert min(moved) > 0.01


def test_bad_input(tmp_path):
    assert "bench: no system 'efficientvt' (did you mean 'efficientvit'?)" in error_line(
        "bench", "efficientvt", "--out", tmp_path
    )
    assert "--device: 'gpu' cannot be used here" in error_line("bench", "--out", tmp_path, "--device", "gpu")
    (tmp_path / "file").write_text("")
    assert "--out: " in error_line("bench", "--out", tmp_path / "file")
    if not torch.cuda.is_available():
        assert "--device: 'cuda' cannot be used here" in error_line("bench", "--out", tmp_path, "--device", "cuda")
