"""How the losses of several tasks become one step: rules that need no more than the losses.

Definitions as in LibMTL; T is the number of tasks that are present. A task is present where any image of the step has
its label; one that is absent is left out of the step by every rule and keeps its state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from vision.errors import InputError, did_you_mean

Needs = Literal["nothing", "losses", "gradients"]


class Weighting(nn.Module):
    """A rule: weights of the tasks at each step. Its state (buffers, parameters) is sized by :meth:`bind`.

    A step follows the gradient of ``sum_t weight_t * loss_t``, where the weights are constants (of a rule that needs
    the gradients, on the shared parameters; the heads follow the plain sum). A rule that learns something of its own
    gives the loss for that as :meth:`own_loss`. The losses that a rule is given are means over all labelled images of
    the step, on all processes, so that all processes come to the same weights.

    Attributes:
        needs: what the weights depend on: ``nothing`` of this step, its ``losses``, or the tasks' ``gradients``.
        looks_back: the rule is told the losses after each step too, which costs one more forward pass.
    """

    needs: Needs = "nothing"
    looks_back = False
    step: Tensor

    def bind(self, names: Sequence[str]) -> None:
        """Says what the tasks are called, in the order of the losses.

        Raises:
            InputError: the rule does not fit them.
        """
        self.names = list(names)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """The weights ``(tasks,)``, without gradient; 0 where a task is absent.

        Args:
            losses: ``(tasks,)``, means over the step's labelled images; not used where ``needs`` is ``nothing``.
            present: bool ``(tasks,)``.
            gram: float64 ``(tasks, tasks)``, the products of the tasks' gradients on the shared parameters.
        """
        raise NotImplementedError

    def own_loss(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """What the rule's own parameters minimise: a scalar; the arguments are those of :meth:`weights`."""
        return losses.new_zeros(())

    def after_step(self, before: Tensor, after: Tensor | None, present: Tensor) -> None:
        """Called after each step; ``before`` and ``after`` are its losses, the latter where the rule looks back."""
        self.step += 1

    def end_epoch(self, losses: Tensor) -> None:
        """Called after each epoch with the means ``(tasks,)`` over its labelled images, NaN where there were none."""

    def _generator(self, seed: int) -> torch.Generator:
        """Random numbers of this step: the same on every process, and after a resumption."""
        return torch.Generator().manual_seed((seed << 32) + int(self.step))


class EqualWeights(Weighting):
    """The plain sum of the losses, as in the official code."""

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """1 for each task."""
        return present.to(losses.dtype)


class FixedWeights(Weighting):
    """Weights that the user gives.

    Args:
        by_task: weights by the tasks' names; 1 for those that are not named.
    """

    chosen: Tensor

    def __init__(self, by_task: Mapping[str, float]) -> None:
        super().__init__()
        self.by_task = dict(by_task)

    def bind(self, names: Sequence[str]) -> None:
        """As in the base class.

        Raises:
            InputError: a weight is negative, or of a task that there is not.
        """
        super().bind(names)
        for name, weight in self.by_task.items():
            if name not in names:
                raise InputError(
                    f"weighting: no task '{name}'{did_you_mean(name, names)}; there are {', '.join(names)}"
                )
            if not 0 <= weight < float("inf"):
                raise InputError(f"weighting: the weight of {name} must be a number from 0 on, got {weight}")
        self.register_buffer("chosen", torch.tensor([float(self.by_task.get(name, 1.0)) for name in names]))

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """The user's."""
        return self.chosen * present


class UncertaintyWeights(Weighting):
    """Learned: ``sum_t loss_t / (2 exp s_t) + s_t / 2`` (Kendall et al., arXiv 1705.07115; the form of LibMTL).

    The optimizer trains ``s`` beside the network, without weight decay.

    Args:
        initial: where all ``s_t`` start.
    """

    def __init__(self, initial: float = -0.5) -> None:
        super().__init__()
        self.initial = initial

    def bind(self, names: Sequence[str]) -> None:
        """As in the base class."""
        super().bind(names)
        self.scale = nn.Parameter(torch.full((len(names),), self.initial))

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """``1 / (2 exp s_t)``."""
        return (-self.scale.detach()).exp() / 2 * present

    def own_loss(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """The whole objective, as a function of ``s`` alone."""
        terms = losses.detach() * (-self.scale).exp() / 2 + self.scale / 2
        return torch.where(present, terms, 0.0).sum()


class DWA(Weighting):
    """Dynamic weight average: tasks whose loss falls more slowly weigh more (arXiv 1803.10704).

    ``w = T softmax((loss_t(e-1) / loss_t(e-2)) / temperature)`` with the means of the last two epochs; 1 in the first
    two.

    Args:
        temperature: the larger, the more even.
    """

    history: Tensor

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise InputError(f"weighting: temperature must be positive, got {temperature}")
        self.temperature = temperature

    def bind(self, names: Sequence[str]) -> None:
        """As in the base class."""
        super().bind(names)
        self.register_buffer("history", torch.zeros(len(names), 2))  # the older epoch first; 0: not known yet

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """From the last two epochs."""
        known = bool((self.history > 0).all())
        rate = self.history[:, 1] / self.history[:, 0] if known else torch.ones_like(self.history[:, 0])
        return present.sum() * softmax_over(rate / self.temperature, present)

    def end_epoch(self, losses: Tensor) -> None:
        """Remembers the epoch's losses; of a task that had none, the last ones that it had."""
        newest = torch.where(losses.isnan(), self.history[:, 1], losses.to(self.history.dtype))
        self.history = torch.stack([self.history[:, 1], newest], dim=1)


class RLW(Weighting):
    """Random loss weighting: ``w = softmax(normal numbers)``, new ones for each step (arXiv 2111.10603).

    Args:
        seed: of the numbers, which are the same on all processes.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """Of this step."""
        drawn = torch.randn(len(self.names), generator=self._generator(self.seed))
        return softmax_over(drawn.to(losses.device), present)


class FAMO(Weighting):
    """Fast adaptive multitask optimisation: every task's loss is to fall at the same rate (arXiv 2306.03792).

    A step follows the gradient of ``sum_t z_t log(loss_t) / c`` with ``z = softmax(w)``, ``c = sum_t z_t / loss_t``;
    ``w`` then follows the change of the logarithms, by Adam. The losses after the step are those of the same images, so
    a step costs one more forward pass.

    Args:
        lr: of ``w``.
        decay: weight decay of ``w``.
    """

    needs: Needs = "losses"
    looks_back = True
    w: Tensor
    moments: Tensor
    updates: Tensor

    def __init__(self, lr: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__()
        self.lr, self.decay = lr, decay

    def bind(self, names: Sequence[str]) -> None:
        """As in the base class."""
        super().bind(names)
        self.register_buffer("w", torch.zeros(len(names)))
        # Adam's state as buffers, so that a checkpoint has it.
        self.register_buffer("moments", torch.zeros(2, len(names)))
        self.register_buffer("updates", torch.zeros(()))

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """``z_t / (c loss_t)``, the factors that the logarithm puts on the gradients."""
        shares = softmax_over(self.w, present) / (losses + 1e-8)
        shares = torch.where(present, shares, 0.0)
        return shares / shares.sum()

    def after_step(self, before: Tensor, after: Tensor | None, present: Tensor) -> None:
        """Moves ``w``; of absent tasks it stays where it is."""
        super().after_step(before, after, present)
        assert after is not None
        fall = torch.where(present, (before + 1e-8).log() - (after + 1e-8).log(), 0.0)
        z = softmax_over(self.w, present)
        gradient = z * (fall - (z * fall).sum())  # of sum_t z_t fall_t, through the softmax
        moved, moments = self.w.clone(), self.moments.clone()
        adam(
            [moved],
            [gradient],
            [moments[0]],
            [moments[1]],
            [],
            [self.updates],
            foreach=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr,
            weight_decay=self.decay,
            eps=1e-8,
            maximize=False,
        )
        self.w = torch.where(present, moved, self.w)
        self.moments = torch.where(present, moments, self.moments)


def softmax_over(values: Tensor, present: Tensor) -> Tensor:
    """The softmax over the tasks that are present; 0 for the others."""
    return values.masked_fill(~present, -torch.inf).softmax(dim=0)
