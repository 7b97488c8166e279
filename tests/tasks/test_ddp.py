"""Two processes measure and train as one does."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from tests.command import vision_process, write_config
from tests.images import write_images

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """32 training images, and 21 test images: an odd number, which two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("ddp")
    write_images(folder / "data" / "train", 12)
    write_images(folder / "data" / "val", 7, seed=1)
    return folder


def _metrics(runs: Path) -> dict[str, float]:
    """The last value of everything that was logged."""
    newest = max(runs.rglob("metrics.csv"), key=lambda file: file.stat().st_mtime)
    with newest.open(newline="") as stream:
        return {name: float(value) for row in csv.DictReader(stream) for name, value in row.items() if value}


def test_training_and_measuring(folder):
    """Batch normalisations are kept in evaluation mode: in training mode each process sees its own batch."""
    results = {}
    for name, batch, flags in (("one", 12, ()), ("two", 6, TWO)):
        config = write_config(
            folder / f"{name}.yaml",
            folder / "data",
            model={"freeze_norm": True, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}},
            data={"batch_size": batch},
            default_root_dir=str(folder / name),
        )
        finished = vision_process("fit", "--config", config, *flags)
        assert finished.returncode == 0, finished.stderr
        (last,) = (folder / name).rglob("last.ckpt")
        tested = vision_process("test", "--config", config, "--ckpt_path", last, *flags)
        assert tested.returncode == 0, tested.stderr
        results[name] = (torch.load(last, weights_only=True)["state_dict"], _metrics(folder / name))
    (weights, metrics), (weights_two, metrics_two) = results["one"], results["two"]
    assert metrics["test_loss"] > 0
    assert {name for name in metrics if name.startswith("test_")} >= {"test_top1", "test_f1_macro", "test_loss"}
    for name in metrics:
        if name.startswith("test_"):
            assert metrics_two[name] == pytest.approx(metrics[name], abs=1e-5), name
    for name, value in weights.items():
        torch.testing.assert_close(weights_two[name], value, rtol=1e-4, atol=1e-5, msg=name)
