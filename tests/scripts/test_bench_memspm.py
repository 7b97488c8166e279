"""``vision bench memspm`` on a user's own domains: pairs, settings, seeds; and going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.bench.memspm_sweep import settings_of
from scripts.systems import CONFIGS
from tests.command import error_line, vision
from tests.tasks.stripes import write_config, write_domains


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    return write_config(folder / "own.yaml", write_domains(folder / "domains"))


def test_every_pair_is_compared_and_what_is_done_is_kept(config, tmp_path):
    command = ["bench", "memspm", "--quick", "--config", config, "--domains", "source", "target", "--out", tmp_path]
    finished = vision(*command)
    assert finished.returncode == 0, finished.stderr[-2000:]
    rows = json.loads((tmp_path / "memspm.json").read_text())["rows"]
    assert {(row["pair"], row["contender"]) for row in rows} == {
        (pair, method) for pair in ("source to target", "target to source") for method in ("dcc", "memspm")
    }
    assert "| unida: MemSPM, its own rule |" in (tmp_path / "memspm.md").read_text()
    kept = sorted((tmp_path / "memspm.runs").glob("*.json"))
    assert len(kept) == 4
    kept[0].unlink()
    again = vision(*command)
    assert again.stdout.count("unida") == finished.stdout.count("unida") - 3  # one line of progress, and the table
    assert json.loads((tmp_path / "memspm.json").read_text())["rows"] == rows


def test_settings_are_those_of_the_published_split():
    assert settings_of(CONFIGS / "memspm" / "officehome.yaml") == ["unida", "osda", "pda", "closed"]
    assert settings_of(CONFIGS / "memspm" / "domainnet.yaml") == ["unida"]
    assert settings_of(CONFIGS / "memspm" / "own.yaml") == ["unida"]


def test_what_cannot_be_compared(config, tmp_path):
    bench = ["bench", "memspm", "--out", tmp_path]
    assert "--config FILE --domains D E" in error_line(*bench, "--config", config)
    assert "at least two are needed, got source" in error_line(*bench, "--config", config, "--domains", "source")
    missing = error_line(*bench, "--config", tmp_path / "none.yaml", "--domains", "source", "target")
    assert "--config: no such configuration" in missing
