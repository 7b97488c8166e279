"""Pictures in the logger, and the mistakes that are worth a look."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from vision.pictures import BAD, GOOD, INK, MUTED, Picture
from vision.preprocessing import Preprocessing


def run_folder(trainer: pl.Trainer) -> Path | None:
    """The run's folder; None without a logger that keeps files.

    May be called by the first process alone, so it asks the loggers: ``Trainer.log_dir`` waits for all processes.
    """
    folders = [folder for logger in trainer.loggers if (folder := getattr(logger, "log_dir", None)) is not None]
    return Path(folders[0]) if folders else None


def log_picture(module: pl.LightningModule, name: str, picture: Picture) -> None:
    """Writes ``pictures/NAME.png`` in the run's folder, and shows the picture in TensorBoard where that logs."""
    trainer = module.trainer
    run = run_folder(trainer)
    if run is not None:
        folder = run / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{name}.png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")


def log_json(module: pl.LightningModule, name: str, content: object) -> None:
    """Writes ``NAME.json`` in the run's folder."""
    run = run_folder(module.trainer)
    if run is not None:
        run.mkdir(parents=True, exist_ok=True)
        (run / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (columns, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


class Mistake(NamedTuple):
    """An image that was taken for another class: indices, the guess's probability, and the loss."""

    path: str
    target: int
    guess: int
    probability: float
    loss: float

    def caption(self, class_names: list[str]) -> list[tuple[str, str]]:
        """Three lines of text and their colours."""
        return [
            (f"taken for {class_names[self.guess]}", BAD),
            (f"is {class_names[self.target]}", GOOD),
            (f"{self.probability:.0%} sure", MUTED if self.probability < 0.9 else INK),
        ]


class MistakeBoard:
    """The mistakes with the highest losses, with their images."""

    def __init__(self, places: int = 15) -> None:
        self.places = places
        self._offers = 0
        self._board: list[tuple[float, int, Mistake, Tensor]] = []

    def offer(self, mistake: Mistake, image: Tensor) -> None:
        """Keeps the mistake if it is among the worst; ``image`` is normalised, ``(3, H, W)``."""
        if len(self._board) == self.places and mistake.loss <= self._board[0][0]:
            return
        self._offers += 1  # breaks ties, so that tensors are never compared
        heapq.heappush(self._board, (mistake.loss, self._offers, mistake, image.half().cpu()))
        if len(self._board) > self.places:
            heapq.heappop(self._board)

    def worst(self, processes: int) -> list[tuple[Mistake, Tensor]]:
        """The worst of all processes, worst first; the board starts anew. Called by every process."""
        entries = [(mistake, image) for _, _, mistake, image in self._board]
        self._board = []
        if processes > 1:
            gathered: list[list[tuple[Mistake, Tensor]]] = [[] for _ in range(processes)]
            torch.distributed.all_gather_object(gathered, entries)
            entries = [entry for board in gathered for entry in board]
        return sorted(entries, key=lambda entry: -entry[0].loss)[: self.places]

    @staticmethod
    def pictures(entries: list[tuple[Mistake, Tensor]], preprocessing: Preprocessing) -> list[tuple[Mistake, Picture]]:
        """The images with the normalisation undone."""
        mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
        return [
            (mistake, np.asarray(((image.float() * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0)))
            for mistake, image in entries
        ]
