"""Views, several label sets, mixed and smoothed targets: the official trainer's rules."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

ViewScore = Literal["logits", "softmax"]


def mean_over_views(logits: Tensor, of: ViewScore = "logits") -> Tensor:
    """A video's scores ``(N, C)`` from its views' ``(N, V, C)``: the mean of the logits, or of their softmax."""
    return (logits if of == "logits" else logits.softmax(dim=-1)).mean(dim=1)


def joint_scores(first: Tensor, second: Tensor) -> Tensor:
    """Scores of all pairs of two label sets, the products of their softmaxes: ``(N, A)``, ``(N, B)`` to ``(N, A*B)``.

    Pair ``(a, b)`` is number ``a * B + b`` (EPIC-Kitchens' action of a noun and a verb).
    """
    return (first.softmax(dim=-1)[:, :, None] * second.softmax(dim=-1)[:, None]).flatten(1)


def smooth(targets: Tensor, smoothing: float) -> Tensor:
    """One-hot or mixed targets ``(N, C)`` with a share of ``smoothing`` spread over all classes."""
    return targets * (1 - smoothing) + smoothing / targets.shape[-1]


def mix(batch: Tensor, share: float) -> Tensor:
    """A batch mixed with itself in reversed order: ``share * batch + (1 - share) * batch reversed``."""
    return share * batch + (1 - share) * batch.flip(0)


def draw_share(alpha: float, seed: int) -> float:
    """The share of Mixup, one for a whole batch: Beta(alpha, alpha), following from the seed alone."""
    return float(np.random.default_rng(seed).beta(alpha, alpha))
