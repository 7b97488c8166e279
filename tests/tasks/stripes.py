"""Small domains for tests: a class is a direction of stripes, a domain how wide they are."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from torch import Tensor

from datamodules import Domains
from tasks import UniversalDomainAdaptation
from tasks.memspm import RateScales
from tests.command import Finished, vision
from tests.tasks.quick import trainer
from vision.memspm.grouping import ClusterOptions
from vision.memspm.memory import MemoryOptions

DIRECTIONS = ("flat", "rising", "steep", "falling")
NUMBER = 12  # pictures of a class and domain
# Few pictures: little is needed of everything.
MEMORY = {"items": 8, "subs": 2, "top_k": 3}
WHOLE = {"image_size": 32, "crop_pct": 1.0}  # the pictures as they are, for a network of another size
CLUSTERING = {"warmup": 2, "every": 4, "least": 1}


def write_domain(folder: Path, classes: Sequence[str], wavelength: float, seed: int, number: int = NUMBER) -> Path:
    """``number`` PNG files of 32x32 pixels for each class, in class folders."""
    random = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(32), np.arange(32))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(number):
            angle = np.pi * DIRECTIONS.index(name) / len(DIRECTIONS) + random.normal(0, 0.08)
            phase = (across * np.sin(angle) + down * np.cos(angle)) / wavelength + random.uniform()
            grey = 180 + 50 * np.sin(2 * np.pi * phase) + random.normal(0, 12, phase.shape)
            pixels = np.clip(grey, 0, 255).astype(np.uint8)
            Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(folder / name / f"{i:02d}.png")
    return folder


def write_domains(root: Path) -> Path:
    """``source`` and ``target``: two common classes, ``steep`` of the source alone, ``falling`` of the target alone."""
    write_domain(root / "source", DIRECTIONS[:3], 8.0, seed=0)
    write_domain(root / "target", (*DIRECTIONS[:2], DIRECTIONS[3]), 6.0, seed=1)
    return root


def data(root: Path, **options: Any) -> Domains:
    """A data module without augmentation, so that a picture is the same in training and evaluation."""
    settings: dict[str, Any] = {
        "batch_size": 8,
        "groups": 3,
        "per_group": 3,
        "epoch_steps": 6,
        "num_workers": 0,
        "horizontal_flip": 0.0,
    }
    return Domains(str(root), **{**settings, **options})


class Run(NamedTuple):
    """A training by the command, and the test of its checkpoint."""

    config: Path
    folder: Path
    trained: Finished
    tested: Finished

    @property
    def report(self) -> dict[str, Any]:
        """The newest ``adaptation.json``."""
        files = self.folder.parent.rglob("adaptation.json")
        content: dict[str, Any] = json.loads(max(files, key=lambda file: file.stat().st_mtime).read_text())
        return content

    @property
    def best(self) -> Path:
        """The checkpoint that was tested."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def columns(self) -> list[str]:
        """The names of what the training logged."""
        with (self.folder / "metrics.csv").open(newline="") as stream:
            return next(csv.reader(stream))

    def logged(self, name: str) -> list[float]:
        """A column of the training's measures."""
        with (self.folder / "metrics.csv").open(newline="") as stream:
            return [float(row[name]) for row in csv.DictReader(stream) if row[name]]


def run(config: Path) -> Run:
    """Trains and tests by the command."""
    finished = []
    for verb in ("fit", "test"):
        finished.append(vision(verb, "--config", config))
        assert finished[-1].returncode == 0, finished[-1].stderr
    (folder,) = config.parent.glob(f"runs/**/{config.stem}/version_0")
    return Run(config, folder, *finished)


def predictions(config: Path, *flags: str) -> list[dict[str, str]]:
    """The rows of the table that ``vision predict`` writes."""
    finished = vision("predict", "--config", config, *flags)
    assert finished.returncode == 0, finished.stderr
    tables = config.parent.glob(f"runs/**/{config.stem}/**/predictions.csv")
    with max(tables, key=lambda file: file.stat().st_mtime).open(newline="") as stream:
        return list(csv.DictReader(stream))


def task(
    memory: dict[str, Any] | None = None, clustering: dict[str, Any] | None = None, **options: Any
) -> UniversalDomainAdaptation:
    """A small task on HOG features, begun with seed 0; what is given changes its settings."""
    pl.seed_everything(0, verbose=False)
    settings: dict[str, Any] = {
        "backbone": "hog_32",
        "width": 16,
        "memory": MemoryOptions(**{**MEMORY, **(memory or {})}),
        "clustering": ClusterOptions(**{**CLUSTERING, **(clustering or {})}),
        "rate_scales": RateScales(encoder=1.0),
    }
    return UniversalDomainAdaptation(**{**settings, **options})


def fit(folder: Path, adapted: UniversalDomainAdaptation, domains: Any, **options: Any) -> dict[str, Tensor]:
    """A training's last state."""
    trainer(folder, **{"max_epochs": 3, **options}).fit(adapted, datamodule=domains, weights_only=False)
    return {name: value.clone() for name, value in adapted.state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names of what is not equal bit for bit."""
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def write_config(
    file: Path,
    root: Path | str,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **trainer: Any,
) -> Path:
    """The configuration of such a training, whose runs are beside it; every step is logged."""
    content = {
        "model": {
            "class_path": "UniversalDomainAdaptation",
            "init_args": {
                "backbone": "hog_32",
                "width": 32,
                "memory": MEMORY,
                "clustering": CLUSTERING,
                **(model or {}),
            },
        },
        "data": {
            "class_path": "Domains",
            "init_args": {
                "root": str(root),
                "batch_size": 12,
                "groups": 3,
                "epoch_steps": 10,
                "num_workers": 0,
                **(data or {}),
            },
        },
        "trainer": {
            "max_epochs": 3,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "default_root_dir": str(file.parent / "runs"),
            **trainer,
        },
    }
    file.write_text(yaml.safe_dump(content))
    return file
