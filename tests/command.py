"""Running the ``vision`` command as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

# What a test's networks need: small, and quick to start.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def vision(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The finished command with its output."""
    return subprocess.run(
        [sys.executable, "-m", "scripts.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parent.parent)},
        cwd=cwd,
    )


def error_line(*arguments: str | Path, cwd: Path | None = None) -> str:
    """The one line that a command prints for bad input; checks that it is one, and that the status is 2."""
    finished = vision(*arguments, cwd=cwd)
    lines = finished.stderr.strip().splitlines()
    assert finished.returncode == 2, finished.stderr[-2000:]
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("vision: error: ")
    return lines[0]


def write_config(file: Path, root: Path, model: dict | None = None, data: dict | None = None, **trainer) -> Path:
    """A configuration of a small, quick training on ``root``."""
    content = {
        "model": {
            "class_path": "ImageClassifier",
            "init_args": {
                "backbone": "efficientvit_m0",
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
                **(model or {}),
            },
        },
        "data": {
            "class_path": "ImageFolder",
            "init_args": {
                "root": str(root),
                "image_size": 32,
                "batch_size": 8,
                "num_workers": 0,
                **(data or {}),
            },
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "default_root_dir": str(file.parent / "runs"),
            **trainer,
        },
    }
    file.write_text(yaml.safe_dump(content))
    return file
