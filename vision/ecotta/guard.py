"""Noticing that an adaptation goes wrong, without labels, from both ends (ours)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Signals:
    """What one batch tells.

    Attributes:
        mean: ``(C,)`` mean probabilities.
        entropy: mean entropy as a share of ``ln C``.
        kept: share of the predictions that were sure enough.
        distance: how far the adapted features are from the original ones (the sum of ``R_k``), 0 where unknown.
    """

    mean: Tensor
    entropy: float
    kept: float
    distance: float


@dataclass(frozen=True)
class GuardOptions:
    """How much may change before an adaptation counts as failing.

    Each signal is averaged with ``memory`` and compared with its average over the first ``reference`` batches.

    Attributes:
        memory: of the moving averages, in (0, 1).
        reference: batches whose averages are the reference.
        collapse: the entropy of the mean prediction has fallen by more than this share of ``ln C``: a few classes
            take all.
        diffuse: the share of sure predictions has fallen below this part of the reference, and the mean entropy has
            risen: nothing is sure any more.
        drift: the features' distance has grown by more than this factor.
        every: batches between snapshots.
    """

    memory: float = 0.9
    reference: int = 8
    collapse: float = 0.15
    diffuse: float = 0.25
    drift: float = 8.0
    every: int = 8


class Guard:
    """Watches the signals of a stream.

    Args:
        options: when it calls out.
    """

    def __init__(self, options: GuardOptions | None = None) -> None:
        self.options = options or GuardOptions()
        self._seen = 0
        self._now: Signals | None = None
        self._reference: Signals | None = None

    def watch(self, signals: Signals) -> str | None:
        """Takes a batch's signals.

        Returns:
            What is wrong, in words; None where nothing is.
        """
        numbers = (signals.entropy, signals.kept, signals.distance)
        if not all(map(math.isfinite, numbers)) or not bool(torch.isfinite(signals.mean).all()):
            return "predictions or features are not finite"
        self._seen += 1
        # A plain mean at first: an average that begins with one batch remembers it for long.
        share = max(1 - self.options.memory, 1 / self._seen)
        self._now = signals if self._now is None else _between(self._now, signals, share)
        if self._seen == self.options.reference:
            self._reference = self._now
        return self._complaint() if self._reference is not None else None

    def _complaint(self) -> str | None:
        now, then, options = self._now, self._reference, self.options
        assert now is not None
        assert then is not None
        spread, before = marginal_entropy(now.mean), marginal_entropy(then.mean)
        if spread < before - options.collapse:
            return f"collapse: entropy of the mean prediction {spread:.2f} of ln C, at first {before:.2f}"
        if now.kept < options.diffuse * then.kept and now.entropy > then.entropy:
            return f"diffuse: {now.kept:.1%} of the predictions are sure, at first {then.kept:.1%}"
        if then.distance > 0 and now.distance > options.drift * then.distance:
            return f"drift: features are {now.distance / then.distance:.1f} times as far from the original as at first"
        return None

    def settle(self) -> None:
        """After a rollback: the averages start from the reference again."""
        if self._reference is not None:
            self._now = self._reference

    def forget(self) -> None:
        """The next batches are the reference."""
        self._seen, self._now, self._reference = 0, None, None


def marginal_entropy(mean: Tensor) -> float:
    """Entropy of a mean prediction ``(C,)`` as a share of ``ln C``: 1 where all classes are predicted alike."""
    positive = mean.clamp_min(1e-12)
    return float(-(positive * positive.log()).sum() / math.log(len(mean)))


def _between(old: Signals, new: Signals, share: float) -> Signals:
    return replace(
        old,
        mean=old.mean + share * (new.mean - old.mean),
        entropy=old.entropy + share * (new.entropy - old.entropy),
        kept=old.kept + share * (new.kept - old.kept),
        distance=old.distance + share * (new.distance - old.distance),
    )
