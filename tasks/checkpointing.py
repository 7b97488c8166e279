"""Checkpoints that survive: written whole or not at all, read without running code, resumed exactly."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback

from vision.checkpoints import check_finite, read_checkpoint
from vision.errors import InputError


class SafeCheckpointIO(TorchCheckpointIO):
    """Local checkpoint files.

    A file is written beside its destination and then put in its place, so that a full disk or a kill leaves the
    previous checkpoint as it was. Reading never unpickles objects and refuses NaN and infinite weights.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Raises:
            InputError: the disk is full, or the place cannot be written.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        # torch.save turns what the disk says into errors of its own classes.
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            kept = f"; the previous {path.name} is unharmed" if path.exists() else ""
            raise InputError(f"{path}: the checkpoint cannot be written ({reason}){kept}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint on the CPU.

        Raises:
            InputError: the file is missing, damaged, would have to run code, or holds NaN or infinite weights.
        """
        checkpoint = read_checkpoint(path)
        state = checkpoint.get("state_dict")
        if not isinstance(state, dict):
            raise InputError(
                f"{path}: not a training checkpoint (no state_dict); start from its weights with model.checkpoint"
            )
        check_finite(state, str(path))
        return checkpoint


class RandomState(Callback):
    """Keeps PyTorch's random numbers in the checkpoint, so that dropout and the like go on as if uninterrupted."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states: of the CPU, and of every CUDA device that this process sees."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers the states until the training goes on."""
        self._restored = state_dict

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sets the states, once."""
        if self._restored is None:
            return
        torch.set_rng_state(self._restored["cpu"])
        if torch.cuda.is_available() and len(self._restored["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(self._restored["cuda"])
        self._restored = None
