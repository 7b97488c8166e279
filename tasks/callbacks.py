"""What the ``vision`` command adds to a run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from vision.errors import InputError


class PredictionTable(Callback):
    """Writes ``predictions.csv`` in the run's folder: a row an image, as the task's ``prediction_rows`` has them."""

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the folder; here, since all processes have to ask for it together."""
        if trainer.log_dir is None:
            raise InputError("predict: there is no run folder for predictions.csv; leave trainer.logger on")
        suffix = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        self.file = Path(trainer.log_dir) / f"predictions{suffix}.csv"
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Appends the rows of a batch; every process of several writes a file of its own."""
        header, rows = cast("Any", pl_module).prediction_rows(outputs)
        with self.file.open("w" if batch_idx == 0 else "a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if batch_idx == 0:
                writer.writerow(header)
            writer.writerows(rows)
