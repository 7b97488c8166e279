"""How EcoTTA learns from a stream, as plain values that a file can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vision.ecotta.ecotta import Update
from vision.ecotta.frozen import Memory
from vision.ecotta.guard import GuardOptions
from vision.ecotta.losses import Reduction
from vision.ecotta.method import Descent


@dataclass(frozen=True)
class Online:
    """How EcoTTA learns from a stream; see :class:`vision.ecotta.EcoTTA`.

    Attributes:
        lr: of SGD.
        momentum: of SGD.
        lr_batch: the rate is ``lr * images / lr_batch``; null for the same rate for all batches.
        strength: of the regulariser, lambda.
        margin: predictions with an entropy above ``margin * ln C`` are left out.
        reduction: ``kept`` or ``batch``.
        update: ``joint`` or ``two_step``.
        prior: statistics of batch normalisation: 0 for the batch's, 16 for AdaptBN's mixture.
        memory: ``memsave``, ``checkpoint`` or ``eager``.
        guard: go back where the adaptation fails.
    """

    lr: float = 5e-3
    momentum: float = 0.9
    lr_batch: int | None = None
    strength: float = 0.5
    margin: float = 0.4
    reduction: Reduction = "kept"
    update: Update = "joint"
    prior: float = 0.0
    memory: Memory = "memsave"
    guard: bool = True

    def options(self) -> dict[str, Any]:
        """Arguments of :class:`~vision.ecotta.EcoTTA`."""
        given = asdict(self)
        descent = Descent("sgd", given.pop("lr"), given.pop("momentum"), given.pop("lr_batch"))
        return {**given, "descent": descent, "guard": GuardOptions() if given.pop("guard") else None}
