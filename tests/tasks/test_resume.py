"""A training that is killed and resumed ends with the same weights as one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.command import ENVIRONMENT, vision_process, write_config
from tests.images import write_images

STEP_CHECKPOINTS = [
    {
        "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
        "init_args": {"filename": "last", "every_n_train_steps": 3, "enable_version_counter": False},
    }
]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """60 training images (7 batches an epoch), three epochs, a checkpoint every third step; random augmentation,
    mixing, dropout-like path dropping and an average of the weights, so that any lost state would show."""
    folder = tmp_path_factory.mktemp("resume")
    write_images(folder / "data" / "train", 20)
    write_images(folder / "data" / "val", 3, seed=1)
    return write_config(
        folder / "config.yaml",
        folder / "data",
        model={
            "ema_decay": 0.9,
            "lr_scheduler": {"class_path": "vision.schedule.WarmupCosine", "init_args": {"warmup_epochs": 1}},
        },
        data={"mixup": 0.8, "cutmix": 1.0, "auto_augment": "rand-m9-mstd0.5-inc1", "num_workers": 1},
        max_epochs=3,
        callbacks=STEP_CHECKPOINTS,
    )


def _final(runs: Path) -> dict[str, torch.Tensor]:
    newest = max(runs.rglob("last.ckpt"), key=lambda file: file.stat().st_mtime)
    checkpoint = torch.load(newest, weights_only=True)
    assert checkpoint["epoch"] == 2
    assert checkpoint["global_step"] == 21
    return checkpoint["state_dict"]


def _kill_after_step(config: Path, runs: Path, step: int) -> None:
    """Starts the training and kills it with SIGKILL once the checkpoint of ``step`` is there and a moment later."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", "fit", "--config", str(config), "--trainer.default_root_dir", str(runs)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        for file in runs.rglob("last.ckpt"):
            if torch.load(file, weights_only=True)["global_step"] >= step:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return
        time.sleep(0.02)
    pytest.fail(f"no checkpoint of step {step} before the training ended")


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory) -> dict[str, torch.Tensor]:
    runs = tmp_path_factory.mktemp("whole")
    finished = vision_process("fit", "--config", config, "--trainer.default_root_dir", runs)
    assert finished.returncode == 0, finished.stderr
    return _final(runs)


@pytest.mark.parametrize("step", [3, 9, 15])
def test_killed_in_mid_epoch(config, uninterrupted, tmp_path, step):
    _kill_after_step(config, tmp_path, step)
    finished = vision_process("fit", "--config", config, "--trainer.default_root_dir", tmp_path, "--ckpt_path", "last")
    assert finished.returncode == 0, finished.stderr
    resumed = _final(tmp_path)
    assert resumed.keys() == uninterrupted.keys()
    for name, value in uninterrupted.items():
        assert torch.equal(resumed[name], value), name
