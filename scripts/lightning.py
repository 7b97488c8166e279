"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI over the tasks and data modules of the house."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import ArgumentError
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

# Importing the wings makes their classes known by their short names.
import datamodules  # noqa: F401
import tasks  # noqa: F401
from tasks.callbacks import PredictionTable
from tasks.checkpointing import RandomState, SafeCheckpointIO
from vision.errors import InputError, did_you_mean


class VisionCLI(LightningCLI):
    """LightningCLI with the house's run folder, checkpoints and silence where nobody watches."""

    def before_instantiate_classes(self) -> None:
        """Finds the run's name, and the checkpoint that ``--ckpt_path last`` means."""
        config = self.config[self.subcommand]
        files = [str(path) for path in config.get("config") or []]
        self.run_name = "/".join(Path(files[-1]).with_suffix("").parts[-2:]) if files else "run"
        self.runs = Path(config.trainer.default_root_dir or "runs")
        if config.get("ckpt_path") == "last":
            found = sorted(
                (self.runs / self.run_name).glob("version_*/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime
            )
            if not found:
                raise InputError(f"ckpt_path: no last.ckpt below {self.runs / self.run_name}")
            config.ckpt_path = str(found[-1])

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer of the configuration, with the house's logger, checkpoints and progress bar added."""
        config = self.config_init[self.subcommand].trainer
        overrides: dict[str, Any] = {}
        if config.logger is None or config.logger is True:
            overrides["logger"] = self._loggers()
        if config.enable_progress_bar is None:
            overrides["enable_progress_bar"] = sys.stdout.isatty()
        if config.enable_model_summary is None:
            overrides["enable_model_summary"] = sys.stdout.isatty()
        plugins = config.plugins or []
        overrides["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), SafeCheckpointIO()]
        for key, value in overrides.items():
            config[key] = value
        return super().instantiate_trainer(**kwargs)

    def _loggers(self) -> list[Logger]:
        first = CSVLogger(str(self.runs), name=self.run_name, flush_logs_every_n_steps=20)
        loggers: list[Logger] = [first]
        if importlib.util.find_spec("tensorboard"):
            loggers.append(TensorBoardLogger(str(self.runs), name=self.run_name, version=f"version_{first.version}"))
        return loggers


def run_lightning(arguments: list[str]) -> None:
    """Runs a verb with its flags.

    Raises:
        InputError: for whatever a user can put right in the flags, the configuration or the data.
    """
    cli = VisionCLI(
            args=arguments,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
        )
