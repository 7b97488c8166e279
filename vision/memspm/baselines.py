"""The losses of methods to compare with, on the same features: OVANet (arXiv 2104.03344) and DANCE (2002.07953)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MARGIN = 0.5  # of DANCE's entropy separation
TEMPERATURE = 0.05  # of DANCE's similarities
CLASSIFIER_SCALE = 1 / TEMPERATURE


class OneVsAll(NamedTuple):
    """OVANet's losses, scalars.

    Attributes:
        positive: the true class is known to its own classifier.
        negative: the hardest other class is unknown to its one.
    """

    positive: Tensor
    negative: Tensor


def one_vs_all_losses(logits: Tensor, target: Tensor) -> OneVsAll:
    """Of labelled source pictures (Equation 2).

    Args:
        logits: ``(B, 2, C)``: unknown and known, for each class.
        target: int64 ``(B,)``.
    """
    logs = logits.float().log_softmax(dim=1)
    own = F.one_hot(target, logits.shape[2]).bool()
    others = (-logs[:, 0]).masked_fill(own, 0.0)  # the least; all there is, where there is one class
    return OneVsAll(-logs[:, 1][own].mean(), others.max(dim=1).values.mean())


def one_vs_all_entropy(logits: Tensor) -> Tensor:
    """Of unlabelled target pictures: the mean entropy of all classifiers (Equation 3).

    Args:
        logits: ``(B, 2, C)``.
    """
    logs = logits.float().log_softmax(dim=1)
    return -(logs.exp() * logs).sum(dim=1).mean()


def known_probability(logits: Tensor, classes: Tensor) -> Tensor:
    """``(B,)``: that the predicted class's own classifier knows the picture.

    Args:
        logits: ``(B, 2, C)``.
        classes: int64 ``(B,)``, predicted.
    """
    known: Tensor = logits.float().softmax(dim=1)[:, 1]
    return known.gather(1, classes[:, None])[:, 0]


class NeighbourBank(nn.Module):
    """The target's features as they were last seen, for DANCE's neighbourhood clustering.

    Args:
        rows: target pictures.
        width: of a feature.
    """

    bank: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(rows, width))
        self._last: tuple[Tensor, Tensor] | None = None

    def fill(self, features: Tensor, index: Tensor) -> None:
        """Takes features ``(n, D)`` of the rows ``index`` as they are before the training."""
        self.bank[index] = F.normalize(features.detach().float(), dim=1)

    def flush(self) -> None:
        """Takes the features of the last call."""
        if self._last is not None:
            self.bank[self._last[0]] = self._last[1]
            self._last = None

    def forward(self, unit: Tensor, index: Tensor, prototypes: Tensor) -> Tensor:
        """The entropy of a feature's similarities to all others and to the classes.

        The bank takes the features at the next call, since the gradient needs it as it is.

        Args:
            unit: ``(B, D)``, of length 1.
            index: int64 ``(B,)``, which rows of the bank they are.
            prototypes: ``(C, D)``, of length 1.
        """
        self.flush()
        self._last = index, unit.detach()
        with torch.autocast(unit.device.type, enabled=False):
            to_bank = (unit @ self.bank.T / TEMPERATURE).scatter(1, index[:, None], -math.inf)
            to_classes = unit @ prototypes.float().T / TEMPERATURE
        logs = torch.cat([to_classes, to_bank], dim=1).log_softmax(dim=1)
        return -(logs.exp() * logs.masked_fill(logs == -math.inf, 0.0)).sum(dim=1).mean()


def entropy_separation(logits: Tensor) -> Tensor:
    """Entropies are drawn away from half of log C, where they are not close to it (DANCE, Equation 5)."""
    logs = logits.float().log_softmax(dim=1)
    entropy = -(logs.exp() * logs).sum(dim=1)
    apart = (entropy - math.log(logits.shape[1]) / 2).abs()
    return torch.where(apart > MARGIN, -apart, torch.zeros_like(apart)).mean()
