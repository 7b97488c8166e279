"""What every task does with the optimizer and the schedule that its configuration names."""

from __future__ import annotations

import math
from collections.abc import Set as AbstractSet
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.cli import LRSchedulerCallable, ReduceLROnPlateau
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from vision.errors import InputError
from vision.schedule import BoundSchedule


def decay_groups(model: nn.Module, exempt: AbstractSet[str]) -> list[dict[str, Any]]:
    """The trained parameters in two groups: with the optimizer's own weight decay, and without any.

    Vectors and biases go without, and those that ``exempt`` names.
    """
    spared, decayed = param_groups_weight_decay(model, no_weight_decay_list=exempt)
    del decayed["weight_decay"]  # the optimizer's own
    return [group for group in (decayed, spared) if group["params"]]


def scheduled(
    optimizer: Optimizer, lr_scheduler: LRSchedulerCallable | None, task: pl.LightningModule
) -> OptimizerLRScheduler:
    """What ``configure_optimizers`` of a task returns.

    A :class:`~vision.schedule.BoundSchedule` is told the length of the training and changes at every step; others are
    stepped once an epoch.

    Raises:
        InputError: the schedule has to know the length of the training, and it is not set.
    """
    if lr_scheduler is None:
        return optimizer
    scheduler = lr_scheduler(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
    if isinstance(scheduler, BoundSchedule):
        trainer = task.trainer
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()  # as Lightning does for the number of steps, but not for max_steps alone
        steps = float(trainer.estimated_stepping_batches)
        batches = float(trainer.num_training_batches)
        if not 0 < steps < math.inf or batches == math.inf:
            name = type(scheduler).__name__
            raise InputError(
                f"{name} needs to know the length of the training: set trainer.max_epochs or trainer.max_steps"
            )
        per_epoch = max(1, math.ceil(batches / trainer.accumulate_grad_batches))
        scheduler.bind(steps / per_epoch, per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}
