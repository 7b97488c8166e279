"""Small trainings for several tasks, in this process or as one of two."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image

from datamodules import MultitaskImages
from tasks import MultitaskClassifier
from tests.rules import rules
from tests.tasks.quick import trainer
from vision.medic.weighting import Weighting

TASKS = {
    "colour": ["blue", "green", "red"],
    "level": {"classes": ["dark", "middle", "light"], "ordinal": True},
    "side": ["left", "right"],
}
RULES = rules({"level": 3.0})
# Without batch normalisation, which would see other batches on two processes than on one.
BACKBONE = "timm:test_vit2"


def write_tables(folder: Path, rows: int = 24) -> Path:
    """Pictures of a colour, brightness and lit side, and tables of them with uneven gaps in the training labels."""
    rng = np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    header = ["image_id", "image_path", *TASKS]
    for split, number in (("train", rows), ("dev", 9), ("test", 9)):
        lines = ["\t".join(header)]
        for i in range(number):
            colour, level, side = (int(rng.integers(n)) for n in (3, 3, 2))
            picture = np.full((32, 32, 3), 20.0)
            half = slice(0, 16) if side == 0 else slice(16, 32)
            picture[:, half, 2 - colour] = 80 + 80 * level
            noisy = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "data" / f"{split}{i}.png")
            labels = [["blue", "green", "red"][colour], ["dark", "middle", "light"][level], ["left", "right"][side]]
            if split == "train":
                # The first task is labelled everywhere, the last one seldom.
                labels = [label if rng.random() > gap else "" for label, gap in zip(labels, (0, 0.4, 0.8), strict=True)]
            lines.append("\t".join([str(i), f"data/{split}{i}.png", *labels]))
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def data(folder: Path, **options) -> MultitaskImages:
    settings = {"image_size": 32, "batch_size": 8, "num_workers": 0, "scale": None, "horizontal_flip": 0.0}
    return MultitaskImages(str(folder), TASKS, **{**settings, "crop_pct": 1.0, **options})


def train(folder: Path, rule: Weighting, batch_size: int, **options) -> dict[str, torch.Tensor]:
    """Some steps of plain gradient descent, three epochs; the weights of network and rule."""
    pl.seed_everything(0, verbose=False)
    module = MultitaskClassifier(BACKBONE, weighting=rule, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05))
    runner = trainer(folder, max_epochs=3, limit_val_batches=0, **options)
    runner.fit(module, datamodule=data(folder, batch_size=batch_size))
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def one_of_two(folder: str) -> None:
    """What each of two processes does: every rule, and some with accumulated gradients; the first keeps the weights."""
    torch.set_num_threads(1)
    found = {}
    for name, rule in RULES.items():
        found[name] = train(Path(folder), rule(), 4, devices=2, strategy="ddp")
        if name in ("uncertainty", "famo", "pcgrad"):
            found[f"{name}, accumulated"] = train(
                Path(folder), rule(), 2, devices=2, strategy="ddp", accumulate_grad_batches=2
            )
    if os.environ["RANK"] == "0":
        torch.save(found, Path(folder) / "two.pt")
