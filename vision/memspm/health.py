"""Whether the memory is alive: how many sub-prototypes are used, and what they stand for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from vision.memspm.addressing import Addressed
from vision.memspm.memory import SubPrototypeMemory, used

COLLAPSED = 0.3
"""A smaller share of used sub-prototypes is worth a warning."""


@dataclass(frozen=True)
class Health:
    """The state of a memory.

    Attributes:
        used: sub-prototypes that either domain uses (by an even share at least).
        total: how many there are.
        purity: the share of source pictures that are of the most frequent class of their heaviest sub-prototype.
    """

    used: int
    total: int
    purity: float

    @property
    def collapsed(self) -> bool:
        """Whether hardly any are used."""
        return self.used < COLLAPSED * self.total

    def as_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        line = f"{self.used} of {self.total} sub-prototypes used, class purity {self.purity:.2f}"
        if self.collapsed:
            line += ": the memory has collapsed (begin it from the data, at a lower temperature)"
        return line


def examine_memory(memory: SubPrototypeMemory, source: Addressed, labels: Tensor) -> Health:
    """The health of a memory whose usage is up to date.

    Args:
        memory: the memory.
        source: what the source's pictures are made of.
        labels: int64 ``(n,)``, their classes.
    """
    alive = used(memory.source_usage) | used(memory.target_usage)
    heaviest = source.rows[:, 0]
    table = torch.zeros(alive.numel(), int(labels.max()) + 1, device=labels.device)
    table.index_put_((heaviest, labels), torch.ones_like(labels, dtype=table.dtype), accumulate=True)
    return Health(int(alive.sum()), alive.numel(), float(table.max(dim=1).values.sum() / len(labels)))


def style_nmi(rows: Tensor, labels: Tensor, styles: Tensor) -> float:
    """How far heaviest sub-prototypes tell styles within a class: NMI of both, the mean over the classes.

    Args:
        rows: int64 ``(n,)``.
        labels: int64 ``(n,)``, classes.
        styles: int64 ``(n,)``, which no training has seen.
    """
    found = [
        normalized_mutual_info_score(styles[labels == c].cpu().numpy(), rows[labels == c].cpu().numpy())
        for c in labels.unique()
    ]
    return float(sum(found) / len(found))
