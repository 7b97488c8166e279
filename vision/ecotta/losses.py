"""What adaptation minimises: entropies and what is left out of them (Sec. 3.2, Eq. 2-4)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["kept", "batch"]
MARGIN = 0.4  # of ln C: predictions with more entropy are left out


def flat_logits(logits: Tensor) -> Tensor:
    """Predictions in rows: ``(B, C)`` as it is, ``(B, C, H, W)`` as ``(B * H * W, C)``; float32."""
    return (logits.movedim(1, -1).flatten(0, -2) if logits.dim() > 2 else logits).float()


def entropy(logits: Tensor) -> Tensor:
    """``-sum p log p`` of every row of ``(N, C)``, in nats and float32."""
    logs = torch.log_softmax(logits.float(), dim=1)
    return -(logs.exp() * logs).sum(dim=1)


def confident(entropies: Tensor, classes: int, margin: float = MARGIN) -> Tensor:
    """Which predictions are sure enough to learn from: ``H < margin * ln C`` (Eq. 2)."""
    return entropies < margin * math.log(classes)


def filtered_entropy(entropies: Tensor, kept: Tensor, reduction: Reduction = "kept") -> Tensor | None:
    """The mean entropy of the kept predictions (Eq. 2); None where none is kept, for there is nothing to learn.

    Args:
        entropies: ``(N,)``.
        kept: bool ``(N,)``.
        reduction: ``kept`` divides by the number that is kept, ``batch`` by ``N``.
    """
    if not bool(kept.any()):
        return None
    chosen = entropies[kept]
    return chosen.mean() if reduction == "kept" else chosen.sum() / len(entropies)


def regularisation(difference: Tensor) -> Tensor:
    """``R_k``, the mean absolute difference of a group's adapted output from its original one (Eq. 4); a scalar.

    Args:
        difference: the one less the other, of any shape. Summed in float32 at least.
    """
    precise = torch.promote_types(difference.dtype, torch.float32)
    total: Tensor = torch.linalg.vector_norm(difference, 1, dtype=precise)
    return total / difference.numel()


def cross_entropy_of(teacher: Tensor, student: Tensor) -> Tensor:
    """``-sum p_teacher log p_student`` of every row of logits ``(N, C)``: what CoTTA minimises on CIFAR."""
    return -(teacher.softmax(dim=1) * student.log_softmax(dim=1)).sum(dim=1)


def symmetric_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Half of each direction's cross entropy, of logits ``(N, C)``: what CoTTA minimises on ImageNet."""
    return (cross_entropy_of(teacher, student) + cross_entropy_of(student, teacher)) / 2


def eata_weights(entropies: Tensor, margin: float) -> Tensor:
    """``exp(H_0 - H)``, detached: sure predictions count more (EATA). ``margin`` is ``H_0`` in nats."""
    return torch.exp(margin - entropies.detach())
