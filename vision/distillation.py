"""Learning from a teacher's outputs (DeiT, arXiv 2012.12877, section 4)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Distillation = Literal["none", "soft", "hard"]


def distillation_loss(student: Tensor, teacher: Tensor, kind: Literal["soft", "hard"], tau: float = 1.0) -> Tensor:
    """How far a student's decision is from its teacher's.

    Args:
        student: logits ``(B, classes)``, of the distillation head where there is one.
        teacher: logits ``(B, classes)``.
        kind: ``hard`` is the cross entropy with the teacher's most likely class; ``soft`` the divergence between
            the tempered distributions, times ``tau**2``, over the number of logits (as in the official code).
        tau: temperature of ``soft``.

    Returns:
        A scalar.
    """
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    divergence = F.kl_div(
        F.log_softmax(student / tau, dim=1), F.log_softmax(teacher / tau, dim=1), reduction="sum", log_target=True
    )
    return divergence * tau**2 / student.numel()
