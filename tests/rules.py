"""The weightings of several tasks, by the names that tests give them."""

from __future__ import annotations

from collections.abc import Callable

from vision.medic.gradients import CAGrad, GradNorm, PCGrad
from vision.medic.weighting import DWA, FAMO, RLW, EqualWeights, FixedWeights, UncertaintyWeights, Weighting


def rules(fixed: dict[str, float]) -> dict[str, Callable[[], Weighting]]:
    """All of them; ``fixed`` are the weights of the fixed one."""
    return {
        "equal": EqualWeights,
        "fixed": lambda: FixedWeights(fixed),
        "uncertainty": UncertaintyWeights,
        "dwa": DWA,
        "rlw": RLW,
        "famo": FAMO,
        "gradnorm": GradNorm,
        "pcgrad": PCGrad,
        "cagrad": CAGrad,
    }
