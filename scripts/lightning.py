"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI over the tasks and data modules of the house."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentError, Namespace
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only

# Importing the wings makes their classes known by their short names.
import datamodules  # noqa: F401
import tasks  # noqa: F401
from scripts.argument_errors import explain
from scripts.stages import Stage, asked_for, newest_best, note_finished, run_name
from tasks.callbacks import PredictionTable
from tasks.checkpointing import RandomState, SafeCheckpointIO
from vision.errors import InputError

VERBS = ("fit", "validate", "test", "predict")
EXTRAS = {"tensorboard": "tensorboard"}  # optional packages, and the extra of this distribution that brings each


class VisionCLI(LightningCLI):
    """LightningCLI with the house's run folder and checkpoints, and silent where nobody watches."""

    def before_instantiate_classes(self) -> None:
        """Names the run after its configuration, and finds the checkpoint that ``--ckpt_path last`` means."""
        config = self.config[self.subcommand]
        files = [str(path) for path in config.get("config") or []]
        self.run_name = run_name(Path(files[-1])) if files else "run"
        self.runs = Path(config.trainer.default_root_dir or "runs")
        if config.get("ckpt_path") == "last":
            checkpoints = (self.runs / self.run_name).glob("version_*/checkpoints/last.ckpt")
            newest = max(checkpoints, key=lambda file: file.stat().st_mtime, default=None)
            if newest is None:
                raise InputError(f"ckpt_path: no last.ckpt below {self.runs / self.run_name}")
            config.ckpt_path = str(newest)
        if files and self.subcommand == "fit" and config.get("ckpt_path") is None:
            self._train_first(config, Path(files[-1]).resolve())
        if self.subcommand != "fit":
            self._take_newest(config)

    def _take_newest(self, config: Namespace) -> None:
        """Takes the best checkpoint of the newest finished run, where the task wants it unless it is told another."""
        module, _, name = config.model.class_path.rpartition(".")
        if not getattr(getattr(importlib.import_module(module), name), "tests_newest_run", False):
            return
        if config.get("ckpt_path") is None and (found := newest_best(self.runs / self.run_name)):
            config.ckpt_path = str(found)
            self._say(f"ckpt_path: {found}")
        if config.get("ckpt_path") is not None:
            # A checkpoint has the network that it began with, and what images it takes.
            for key, value in list(config.model.items(branches=False)):
                if isinstance(value, str) and value.endswith(".yaml"):
                    config.model[key] = config.ckpt_path

    def _train_first(self, config: Namespace, second: Path) -> None:
        """Puts the best checkpoint of a configuration where the task's arguments name that configuration.

        So a second stage names its first one by its file, and one command trains both. A finished run of that very
        configuration is taken as it is.
        """
        for key, value in list(config.model.items(branches=False)):
            if not (isinstance(value, str) and value.endswith(".yaml")):
                continue
            name = f"model.{key.removeprefix('init_args.')}"
            first = second.parent / value
            if not first.is_file():
                raise InputError(f"{name}: no such configuration: {first}")
            stage = Stage(first, second, config)
            if (found := stage.best(self.runs)) is None:
                if int(os.environ.get("WORLD_SIZE", "1")) > 1 or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
                    raise InputError(
                        f"{name}: train it first, vision fit --config {first} (several processes are running)"
                    )
                self._say(f"{stage.run_name} is trained first, for {name}")
                found = stage.train(self.runs)
            if found is None:
                raise InputError(f"{name}: the training of {first} failed")
            self._say(f"{name}: {found}")
            config.model[key] = str(found)

    def _parse_ckpt_path(self) -> None:
        """Not Lightning's way, which unpickles the checkpoint here to mix its arguments into the configuration."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer of the configuration, with what the house adds where the configuration is silent."""
        config = self.config_init[self.subcommand].trainer
        watched = sys.stdout.isatty()
        if config.logger in (None, True):
            config.logger = self._loggers()
        for switch in ("enable_progress_bar", "enable_model_summary"):
            if config[switch] is None:
                config[switch] = watched
        given = config.callbacks or []
        config.callbacks = [*(given if isinstance(given, list) else [given])]
        config.callbacks += self._callbacks(config)
        plugins = config.plugins or []
        config.plugins = [*(plugins if isinstance(plugins, list) else [plugins]), SafeCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        self._share_processors(trainer)
        return trainer

    def _share_processors(self, trainer: pl.Trainer) -> None:
        """Leaves a core to each process that decodes images; ``OMP_NUM_THREADS`` overrules this.

        Threads of one sum wait for the slowest, which is the one that shares its core with the decoding.
        """
        if isinstance(trainer.accelerator, CPUAccelerator) and "OMP_NUM_THREADS" not in os.environ:
            workers = getattr(self.datamodule, "num_workers", 0)
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // trainer.num_devices - workers))

    def _loggers(self) -> list[Logger]:
        table = CSVLogger(str(self.runs), name=self.run_name)
        loggers: list[Logger] = [table]
        if importlib.util.find_spec("tensorboard"):
            loggers.append(TensorBoardLogger(str(self.runs), name=self.run_name, version=f"version_{table.version}"))
        return loggers

    def _callbacks(self, config: Any) -> list[Callback]:
        own: list[Callback] = [PredictionTable(), RandomState()]
        if config.logger:
            own.append(LearningRateMonitor())
        given = any(isinstance(callback, ModelCheckpoint) for callback in config.callbacks)
        if not given and config.enable_checkpointing is not False:
            monitor, mode = getattr(self.model, "monitor", (None, "min"))
            # Two, since Lightning's save_last writes last.ckpt only where the best one is written too.
            own.append(ModelCheckpoint(filename="best", monitor=monitor, mode=mode, enable_version_counter=False))
            own.append(ModelCheckpoint(filename="last", enable_version_counter=False))
        return own

    @rank_zero_only
    def _say(self, text: str) -> None:
        print(f"vision: {text}", flush=True)

    def before_fit(self) -> None:
        """Says where the run's files go."""
        self.asked = asked_for(sys.argv[1:])
        self._say(f"{self.run_name} goes to {self.trainer.log_dir}")

    def _leave_the_table_to_the_task(self) -> None:
        """Lightning prints all measures of a test; a task with a ``headline`` has many, and prints its own table."""
        if hasattr(self.model, "headline"):
            self.config_init[self.subcommand]["verbose"] = False

    def before_test(self) -> None:
        """Prints each measure once."""
        self._leave_the_table_to_the_task()

    def before_validate(self) -> None:
        """As before a test."""
        self._leave_the_table_to_the_task()

    def _say_measures(self, before: str = "") -> None:
        measures = {name: float(value) for name, value in sorted(self.trainer.callback_metrics.items())}
        chosen = getattr(self.model, "headline", [name for name in measures if name.startswith("val_")])
        if shown := [f"{name} {measures[name]:.4f}" for name in chosen if name in measures]:
            self._say(before + ", ".join(shown))

    def after_validate(self) -> None:
        """Says the few measures of a task whose table is not Lightning's."""
        if hasattr(self.model, "headline"):
            self._say_measures()

    def after_predict(self) -> None:
        """Says where the predictions are."""
        table = next(callback for callback in self.trainer.callbacks if isinstance(callback, PredictionTable))  # type: ignore[attr-defined]
        self._say(f"predictions: {table.file}")

    def after_fit(self) -> None:
        """Says what came out and where it is."""
        folder = self.trainer.log_dir
        if folder is not None and self.trainer.is_global_zero and not self.trainer.interrupted:
            note_finished(Path(folder), self.asked)
        self._say_measures("at the end: ")
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "")
        if best:
            score = getattr(checkpoint, "best_model_score", None)
            monitor = getattr(checkpoint, "monitor", None)
            reason = f" ({monitor} {float(score):.4f})" if monitor and score is not None else ""
            self._say(f"best checkpoint: {best}{reason}")


def _usage(verb: str) -> dict[str, str]:
    """A line in the place of argparse's forty; the flags follow it with their explanations."""
    return {"usage": f"vision {verb} --config FILE [--model.ARG V] [--data.ARG V] [--trainer.ARG V] [--ckpt_path C]"}


def _input_error(error: BaseException | None) -> InputError | None:
    """The first InputError among the causes of an error."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def run_lightning(arguments: list[str]) -> None:
    """Carries out a verb with its flags.

    Raises:
        InputError: for whatever a user can put right in the flags, the configuration or the data.
    """
    # LightningCLI warns when it is given arguments while there are some on the command line.
    sys.argv[1:] = arguments
    try:
        VisionCLI(
            model_class=pl.LightningModule,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, **{verb: _usage(verb) for verb in VERBS}},
        )
    except InputError:
        raise
    except ValueError as error:
        # jsonargparse wraps what the constructors of tasks and data modules raise.
        if (cause := _input_error(error)) is None:
            raise
        raise cause from None
    except ArgumentError as error:
        raise InputError(explain(str(error))) from error
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).split(".")[0].strip("`'\"")
        if package not in EXTRAS:
            raise
        raise InputError(f"{package} is not installed: pip install 'frugal-vision[{EXTRAS[package]}]'") from error
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
