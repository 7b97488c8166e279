"""Learning-rate schedules that PyTorch does not have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class BoundSchedule(LRScheduler):
    """A schedule whose time is counted in epochs and which changes at every step.

    A task says by :meth:`bind` how long the training is and how many steps an epoch has.
    """

    epochs: float
    steps_per_epoch: float

    def bind(self, epochs: float, steps_per_epoch: float) -> None:
        """Says how long the training is and how many calls of ``step`` an epoch has."""
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch

    def rate(self, time: float, peak: float) -> float:
        """The learning rate ``time`` epochs into the training."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of every parameter group, from the number of steps so far alone."""
        return [self.rate(self.last_epoch / self.steps_per_epoch, float(peak)) for peak in self.base_lrs]


class WarmupCosine(BoundSchedule):
    """Linear warm-up, then a cosine down to ``min_lr`` over all epochs, with time counted in epochs.

    At ``t < warmup_epochs`` the rate is ``warmup_lr + t * (lr - warmup_lr) / warmup_epochs``, later
    ``min_lr + (lr - min_lr) * (1 + cos(pi * t / epochs)) / 2``: timm's cosine schedule, as in the EfficientViT
    recipe. The official loop there sets the rate after each epoch, which makes epoch ``e`` run at the value of
    ``e - 1``; here epoch ``e`` runs at the value of ``e``. With ``warmup_prefix`` the cosine takes the time that is
    left after the warm-up, as in the recipe of ViViT.

    Args:
        optimizer: its ``lr`` is the peak.
        warmup_epochs: length of the warm-up, may be a fraction.
        warmup_lr: rate at the start.
        min_lr: rate at the end.
        warmup_prefix: the cosine begins at the end of the warm-up, not at the beginning of the training.
        per: change the rate at every ``step`` or at every ``epoch``.
        epochs: length of the whole training; a task sets it from the Trainer by :meth:`bind`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: float = 5,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        warmup_prefix: bool = False,
        per: Literal["step", "epoch"] = "step",
        epochs: float = 300,
    ) -> None:
        self.warmup_epochs, self.warmup_lr, self.min_lr = warmup_epochs, warmup_lr, min_lr
        self.warmup_prefix = warmup_prefix
        self.per, self.epochs, self.steps_per_epoch = per, epochs, 1.0
        super().__init__(optimizer)

    def rate(self, time: float, peak: float) -> float:
        """The learning rate ``time`` epochs into the training."""
        if self.per == "epoch":
            time = math.floor(time + 1e-6)
        if time < self.warmup_epochs:
            return self.warmup_lr + time * (peak - self.warmup_lr) / self.warmup_epochs
        before = self.warmup_epochs if self.warmup_prefix else 0.0
        share = min((time - before) / max(self.epochs - before, 1e-9), 1.0)
        return self.min_lr + (peak - self.min_lr) * (1 + math.cos(math.pi * share)) / 2


class WarmupSteps(BoundSchedule):
    """Linear warm-up from nothing, then the rate times ``gamma`` at each milestone, with time counted in epochs.

    Args:
        optimizer: its ``lr`` is the peak.
        warmup_epochs: length of the warm-up, may be a fraction.
        milestones: epochs at whose beginning the rate falls.
        gamma: factor by which it falls.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_epochs: float = 1.0,
        milestones: Sequence[float] = (3, 6, 8),
        gamma: float = 0.2,
    ) -> None:
        self.warmup_epochs, self.milestones, self.gamma = warmup_epochs, tuple(milestones), gamma
        self.epochs, self.steps_per_epoch = math.inf, 1.0
        super().__init__(optimizer)

    def rate(self, time: float, peak: float) -> float:
        """The learning rate ``time`` epochs into the training."""
        if time < self.warmup_epochs:
            return peak * time / self.warmup_epochs
        return peak * self.gamma ** sum(time >= milestone for milestone in self.milestones)


class InverseDecay(BoundSchedule):
    """``lr (1 + alpha min(1, step / steps)) ** -power``, changing at every step (DANN, arXiv 1505.07818; DCC's code).

    Args:
        optimizer: its ``lr`` is that of the first step.
        alpha: with the usual 10 and power 0.75 the rate ends at about a sixth.
        power: the larger, the faster it falls.
        steps: in which it falls; afterwards it stays. DCC counts 10000, and stops long before.
    """

    def __init__(self, optimizer: Optimizer, alpha: float = 10.0, power: float = 0.75, steps: int = 10_000) -> None:
        self.alpha, self.power, self.steps = alpha, power, steps
        self.epochs, self.steps_per_epoch = math.inf, 1.0
        super().__init__(optimizer)

    def rate(self, time: float, peak: float) -> float:
        """The learning rate ``time`` epochs into the training."""
        share = min(1.0, time * self.steps_per_epoch / self.steps)
        return peak * float((1 + self.alpha * share) ** -self.power)


class OneCycle(BoundSchedule):
    """PyTorch's ``OneCycleLR`` (arXiv 1708.07120), without being told the length of the training beforehand.

    A cosine from ``lr / div`` up to ``lr``, and one from there down to ``lr / div / final_div`` at the last step.

    Args:
        optimizer: its ``lr`` is the peak.
        pct_start: share of the training in which the rate rises, in (0, 1).
        div: how much lower it begins.
        final_div: how much lower than the beginning it ends.
    """

    def __init__(
        self, optimizer: Optimizer, pct_start: float = 0.075, div: float = 25.0, final_div: float = 1e4
    ) -> None:
        self.pct_start, self.div, self.final_div = pct_start, div, final_div
        self.epochs, self.steps_per_epoch = math.inf, 1.0
        super().__init__(optimizer)

    def rate(self, time: float, peak: float) -> float:
        """The learning rate ``time`` epochs into the training."""
        if math.isinf(self.epochs):  # not bound yet
            return peak / self.div
        step, last = time * self.steps_per_epoch, self.epochs * self.steps_per_epoch - 1
        top = self.pct_start * (last + 1) - 1
        if step <= top:
            start, end, share = peak / self.div, peak, step / max(top, 1e-9)
        else:
            start, end = peak, peak / self.div / self.final_div
            share = min(1.0, (step - top) / max(last - top, 1e-9))
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
