"""The trainings of ViViT's benchmark, and what is measured of each: how often it is right, and if it sees order."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from datamodules.builtin import resolve_root
from datamodules.builtin.motion import CLASSES
from datamodules.video_decoding import read_frames
from datamodules.video_listing import list_class_folders
from scripts.bench.trainings import in_processes, run_vision
from scripts.systems import CONFIGS
from vision.vivit.checkpoint import load_network

VIEWS, DEMO, STAGE1 = (CONFIGS / "vivit" / f"{name}.yaml" for name in ("views", "demo", "stage1"))
SEEDS = (0, 1, 2)
EPOCHS = 20  # the demo's
EQUAL_TIME = 5  # epochs end to end: at least as long as the demo's training with the making of its cache
RATES = ("0.001", "0.0003", "0.0001")  # that are tried for training end to end
ENOUGH = 0.65  # of the validation clips: the accuracy that the time is taken to


class Clock(Callback):
    """Writes the seconds since the training was set up, and the accuracy, after each validation."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A line; the task has logged its measures by then."""
        with (Path(trainer.default_root_dir) / "clock.csv").open("a", encoding="utf-8") as stream:
            stream.write(f"{float(trainer.callback_metrics['val_top1'])},{time.perf_counter() - self.start}\n")


class Run(NamedTuple):
    """One training.

    Attributes:
        name: of what is compared.
        config: its configuration.
        flags: added to it.
    """

    name: str
    config: Path
    flags: tuple[str, ...]


class Chain(NamedTuple):
    """Trainings of one seed, one after the other, which may share a feature cache.

    Attributes:
        seed: of weights and data.
        runs: in their order.
        cache: a folder's name, or None for trainings without.
    """

    seed: int
    runs: tuple[Run, ...]
    cache: str | None


def checkpoint(folder: Path, name: str, seed: int) -> str:
    """Where the best checkpoint of a run is put."""
    return str(folder / f"{name}-{seed}.ckpt")


def train(chain: Chain, folder: Path) -> list[dict[str, float]]:
    """The measures of each run of a chain on the test clips, by the weights that were best on the validation ones."""
    found = []
    for run in chain.runs:
        place = folder / f"runs-{run.name}-{chain.seed}"
        flags = ["--config", str(run.config), *run.flags, "--data.num_workers", "0", "--data.seed", str(chain.seed)]
        flags += ["--seed_everything", str(chain.seed), "--trainer.default_root_dir", str(place)]
        flags += ["--trainer.callbacks", "scripts.bench.vivit_runs.Clock"]
        if chain.cache is not None:
            flags += ["--data.cache", str(folder / chain.cache)]
        start = time.perf_counter()
        run_vision(["fit", *flags])
        seconds = time.perf_counter() - start
        (best,) = place.rglob("best.ckpt")
        kept = checkpoint(folder, run.name, chain.seed)
        shutil.copy(best, kept)
        measured = {"fit_seconds": seconds, **_epochs(place)}
        if run.config != VIEWS:
            measured |= order_measures(kept)
        found.append(measured)
        shutil.rmtree(place)
    return found


def _epochs(place: Path) -> dict[str, float]:
    """The best accuracy on the validation clips, and the epoch and the seconds that first reached 65 % (0 for none)."""
    with (place / "clock.csv").open(newline="", encoding="utf-8") as stream:
        values = [(float(value), float(seconds)) for value, seconds in csv.reader(stream)]
    reached = [(epoch, seconds) for epoch, (value, seconds) in enumerate(values, 1) if value >= ENOUGH]
    epochs, seconds = reached[0] if reached else (0, 0.0)
    return {"val_top1": max(value for value, _ in values), "epochs_to_65": epochs, "seconds_to_65": seconds}


def results(chains: Sequence[Chain], folder: Path) -> Iterator[tuple[Run, int, dict[str, float]]]:
    """Every run with its seed and its measures, as the chains end."""
    for chain, found in in_processes(partial(train, folder=folder), chains):
        for run, measured in zip(chain.runs, found, strict=True):
            yield run, chain.seed, measured


@cache
def clips(frames: int) -> tuple[Tensor, Tensor]:
    """The test clips, uint8 ``(N, frames, 3, H, W)`` at equal distances, and their classes' indices."""
    listing = list_class_folders(resolve_root("builtin:motion") / "test")
    take = 8 // frames * np.arange(frames)
    videos = np.stack([read_frames(path, lambda _: take) for path in listing.paths])
    return torch.from_numpy(videos).permute(0, 1, 4, 2, 3), torch.from_numpy(listing.labels[:, 0])


def pairs() -> Tensor:
    """For each class, in the order of the folders, the index of the class that its clips played backwards are of."""
    names = sorted(CLASSES)
    opposite = {name: CLASSES[i + 1 - 2 * (i % 2)] for i, name in enumerate(CLASSES)}
    return torch.tensor([names.index(opposite[name]) for name in names])


@torch.no_grad()
def order_measures(file: str) -> Mapping[str, float]:
    """Accuracy on the test clips as they are, played backwards, and with their frames shuffled.

    ``top1``; ``kind``, where a class and its pair count as one; ``reversed``, the share of the clips that were right
    which fall into the pair's other class when they are played backwards; ``shuffled_top1`` and ``shuffled_kind``.
    """
    network, record = load_network(file)
    video, labels = clips(record.config.frames)
    other = pairs()
    kind = torch.minimum(torch.arange(len(other)), other)
    summaries = network.summarise(video)
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(summaries.shape[1], generator=generator) for _ in summaries])
    shuffled = torch.stack([of[places] for of, places in zip(summaries, order, strict=True)])
    guess, backwards, mixed = (network.read(of).argmax(dim=1) for of in (summaries, summaries.flip(1), shuffled))
    right = guess == labels
    return {
        "top1": float(right.float().mean()),
        "kind": float((kind[guess] == kind[labels]).float().mean()),
        "reversed": float((backwards[right] == other[labels[right]]).float().mean()) if bool(right.any()) else 0.0,
        "shuffled_top1": float((mixed == labels).float().mean()),
        "shuffled_kind": float((kind[mixed] == kind[labels]).float().mean()),
    }
