"""Methods of test-time adaptation to compare with: fixed networks, and entropy minimisation (TENT)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vision.ecotta.frozen import Memory
from vision.ecotta.guard import GuardOptions
from vision.ecotta.losses import entropy, flat_logits
from vision.ecotta.method import Descent, Method, Step, freeze
from vision.errors import InputError


class AdaptBN(Method):
    """Mixes the statistics of batch and source in batch normalisations, and trains nothing (arXiv 2006.16971).

    Args:
        model: see :class:`~vision.ecotta.method.Method`.
        prior: how many images the source's statistics count for.
    """

    def __init__(self, model: nn.Module, *, prior: float = 16.0) -> None:
        super().__init__(freeze(model), prior)

    @torch.no_grad()
    def step(self, x: Tensor) -> tuple[Tensor, Step]:
        """Predicts."""
        logits = self.logits(x)
        return logits, Step(entropy=float(entropy(flat_logits(logits)).mean()))


class BatchStatistics(AdaptBN):
    """The batch's own statistics in batch normalisations (BN Stats Adapt, BN-1); nothing is trained.

    Args:
        model: see :class:`~vision.ecotta.method.Method`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, prior=0.0)


class Source(AdaptBN):
    """The network as it was trained, which every adaptation should beat.

    Args:
        model: see :class:`~vision.ecotta.method.Method`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, prior=math.inf)


class Tent(Method):
    """Minimises the entropy of its predictions by scale and shift of the normalisations (arXiv 2006.10726).

    Args:
        model: see :class:`~vision.ecotta.method.Method`. Trained are its batch normalisations, or its layer and group
            normalisations where no batch normalisation has scale and shift.
        descent: by default Adam with a rate of 1e-3 (CIFAR); for ImageNet
            ``Descent("sgd", 2.5e-4)``.
        prior: see :class:`~vision.ecotta.method.Method`; 16 gives TENT with AdaptBN.
        memory: ``eager``, or ``memsave``, by which the frozen convolutions keep nothing; the gradients are the same.
        guard: see :class:`~vision.ecotta.method.Method`.

    Raises:
        InputError: no normalisation has scale and shift, or ``memory`` is another.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        descent: Descent | None = None,
        prior: float = 0.0,
        memory: Memory = "eager",
        guard: GuardOptions | None = None,
    ) -> None:
        super().__init__(freeze(model), prior, memory, guard)
        if memory not in ("eager", "memsave"):
            raise InputError(f"memory must be eager or memsave, got {memory}")
        for parameter in _affine(model):
            parameter.requires_grad_(True)
        self.descent = descent or Descent("adam", 1e-3)

    def step(self, x: Tensor) -> tuple[Tensor, Step]:
        """Predicts, and takes a step down :meth:`loss`."""
        logits = self.logits(x)
        rows = flat_logits(logits)
        entropies = entropy(rows)
        loss, kept = self.loss(rows, entropies)
        mean = float(entropies.detach().mean())
        if loss is None:
            return logits, Step(entropy=mean)
        updated = self.descend(loss)
        return logits, Step(float(loss.detach()), mean, kept, updated=updated)

    def loss(self, rows: Tensor, entropies: Tensor) -> tuple[Tensor | None, float]:
        """What is minimised, and the share of the predictions that it is made of.

        Args:
            rows: logits ``(N, C)`` of every prediction.
            entropies: theirs, ``(N,)``.

        Returns:
            The mean entropy here; None where there is nothing to learn from.
        """
        return entropies.mean(), 1.0


def _affine(model: nn.Module) -> list[nn.Parameter]:
    """Scale and shift of the batch normalisations, else of the layer and group normalisations."""
    for kinds in ((_BatchNorm,), (nn.LayerNorm, nn.GroupNorm)):
        modules = [module for module in model.modules() if isinstance(module, kinds)]
        if found := [parameter for module in modules for parameter in module.parameters(recurse=False)]:
            return found
    raise InputError(
        f"the network ({type(model).__name__}) has no batch, layer or group normalisation with scale and shift, "
        "which is all that this method trains"
    )
