"""Running the ``vision`` command."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from scripts.cli import main

ROOT = Path(__file__).parent.parent
# What a test's networks need: small, and quick to start.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Finished(NamedTuple):
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def vision(*arguments: str | Path) -> Finished:
    """The command in this process, which has its imports behind it."""
    out, err = io.StringIO(), io.StringIO()
    argv, threads = sys.argv[:], torch.get_num_threads()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
    finally:
        sys.argv[:] = argv
        torch.set_num_threads(threads)  # the command shares the cores out anew
    return Finished(status, out.getvalue(), err.getvalue())


def vision_process(*arguments: str | Path, **options: Any) -> Finished:
    """The command in a process of its own, as a user runs it."""
    command = [sys.executable, "-m", "scripts.cli", *map(str, arguments)]
    options = {"capture_output": True, "text": True, "check": False, "env": ENVIRONMENT, "cwd": ROOT, **options}
    finished = subprocess.run(command, **options)
    return Finished(finished.returncode, finished.stdout, finished.stderr)


def run_demo(out: Path, *flags: str) -> Finished:
    """The demo in a process of its own, as ``make demo`` runs it."""
    command = [sys.executable, "-m", "scripts.demo", "--out", str(out), *flags]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return Finished(finished.returncode, finished.stdout, finished.stderr)


def error_line(*arguments: str | Path) -> str:
    """The one line that a command prints for bad input; checks that it is one, and that the status is 2."""
    finished = vision(*arguments)
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
