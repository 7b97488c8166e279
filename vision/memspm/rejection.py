"""What is unknown: scores of pictures, higher for what is known, and where to cut them.

Every rule is a weighted sum of the four scores and a threshold, both found from unlabelled target pictures, so that a
checkpoint can judge new pictures one by one.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

EQUAL = 1e-6  # a smaller deviation or range of scores is rounding
SCORES = ("usage", "margin", "confidence", "one_vs_all")
Rule = Literal["none", "half_log_c", "otsu", "cluster", "cluster_otsu", "usage", "fused", "blend", "one_vs_all"]
RULES: dict[Rule, str] = {
    "none": "nothing is unknown",
    "half_log_c": "entropy above half of log C",
    "otsu": "Otsu on the entropy",
    "cluster": "the nearest cluster has no class (DCC)",
    "cluster_otsu": "Otsu on entropy and cluster margin",
    "usage": "Otsu on the usage of the memory",
    "fused": "Otsu on usage and cluster margin",
    "blend": "usage or clusters, by how far the memory is shared",
    "one_vs_all": "one-vs-all classifiers (OVANet)",
}
NEEDS: dict[Rule, tuple[str, ...]] = {
    "half_log_c": ("confidence",),
    "otsu": ("confidence",),
    "cluster": ("margin",),
    "cluster_otsu": ("margin", "confidence"),
    "usage": ("usage",),
    "fused": ("usage", "margin"),
    "blend": ("usage", "margin", "confidence"),
    "one_vs_all": ("one_vs_all",),
}


def confidence(logits: Tensor) -> Tensor:
    """``1 - H(p) / log C`` of ``(B, C)`` logits, in [0, 1]; the stock rule calls unknown what is below 0.5."""
    logs = logits.float().log_softmax(dim=1)
    return 1 + (logs.exp() * logs).sum(dim=1) / math.log(max(2, logits.shape[1]))


def cluster_margin(unit: Tensor, centers: Tensor, matched: Tensor) -> Tensor:
    """The cosine to the nearest matched center less that to the nearest other, ``(B,)``; DCC's rule cuts it at 0.

    Args:
        unit: ``(B, D)``, of length 1.
        centers: ``(K, D)``, of length 1.
        matched: bool ``(K,)``. Where all or none are, what is missing counts as a cosine of -1.
    """
    with torch.autocast(unit.device.type, enabled=False):
        cosines = unit.float() @ centers.T
    lowest = cosines.new_full((len(cosines), 1), -1.0)
    inside = torch.cat([cosines[:, matched], lowest], dim=1).max(dim=1).values
    outside = torch.cat([cosines[:, ~matched], lowest], dim=1).max(dim=1).values
    return inside - outside


def otsu(scores: NDArray[np.float64]) -> float:
    """The threshold of ``(n,)`` scores that parts them into two groups with the means furthest apart (Otsu 1979).

    In the middle of the gap between both, since new pictures are cut there too; a histogram's bins would put it at the
    edge of one. Below equal scores, and -1 of none: they give no reason to reject any.
    """
    if len(scores) == 0:
        return -1.0
    ordered = np.sort(scores)
    if ordered[-1] - ordered[0] <= EQUAL:
        return float(ordered[0]) - 1
    below = np.arange(1, len(ordered))
    means_apart = ordered.mean() * below - ordered.cumsum()[:-1]
    between = np.where(np.diff(ordered) > 0, means_apart**2 / (below * (len(ordered) - below)), -1.0)
    last = int(between.argmax())
    return float(ordered[last] + ordered[last + 1]) / 2


class Cut(NamedTuple):
    """A rule as it was found: known is what has ``scores @ weights > threshold``.

    Attributes:
        weights: float64 ``(4,)``, of :data:`SCORES`.
        threshold: of the sum.
    """

    weights: NDArray[np.float64]
    threshold: float


def find_cut(rule: Rule, scores: Tensor) -> Cut:
    """Where a rule cuts.

    ``blend`` is ours. The memory tells what is private to the target as long as the domains look alike, for then they
    use the same items for what they share; where they look different, the target has items of its own for everything.
    How far they share them is known without labels: with ``u_s`` and ``u_t`` the use of an item by either domain,
    ``w = 2 sum u_s u_t / (u_s + u_t)``, which is 1 where both use all items alike and 0 where they share none (and is
    twice the mean usage score of the target). The score is ``w`` times the standardised usage score and ``1 - w`` times
    the standardised sum of confidence and margin; the share of the target that is cut off is the same mean of what
    Otsu's threshold cuts off either.

    Scores that are equal for all pictures count for nothing in any rule with a standardised sum, and where there are
    no others nothing is rejected.

    Args:
        rule: which.
        scores: ``(n, 4)`` of unlabelled target pictures.
    """
    values = scores.detach().cpu().double().numpy()
    usage, margin, sure, _ = values.T
    weights = np.zeros(len(SCORES))
    if rule == "none":
        return Cut(weights, -1.0)
    if rule in ("half_log_c", "cluster", "one_vs_all"):
        weights[SCORES.index(NEEDS[rule][0])] = 1.0
        return Cut(weights, 0.0 if rule == "cluster" else 0.5)
    if not len(values):
        return Cut(weights, -1.0)
    if rule == "blend":
        share = float(np.clip(2 * usage.mean(), 0, 1))
        of_clusters = _standard(margin) * _column("margin") + _standard(sure) * _column("confidence")
        other = values @ of_clusters
        weights = share * _standard(usage) * _column("usage") + (1 - share) * of_clusters
        both = values @ weights
        if np.ptp(both) <= EQUAL:
            return Cut(weights, otsu(both))
        cut_off = share * (usage <= otsu(usage)).mean() + (1 - share) * (other <= otsu(other)).mean()
        return Cut(weights, float(np.quantile(both, cut_off)))
    for name in NEEDS[rule]:
        weights += _standard(values[:, SCORES.index(name)]) * _column(name)
    return Cut(weights, otsu(values @ weights))


def _standard(values: NDArray[np.float64]) -> float:
    """What a score is multiplied by to have deviation 1; 0 where all are equal and it would have to be infinite."""
    deviation = float(values.std()) if len(values) else 0.0
    return 1 / deviation if deviation > EQUAL else 0.0


def _column(name: str) -> NDArray[np.float64]:
    column = np.zeros(len(SCORES))
    column[SCORES.index(name)] = 1.0
    return column


class Rejection(nn.Module):
    """The cut that a trained network judges new pictures by; in its checkpoint."""

    weights: Tensor
    threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(len(SCORES), dtype=torch.float64))
        self.register_buffer("threshold", torch.tensor(-1.0, dtype=torch.float64))

    def set(self, cut: Cut) -> None:
        """Takes a cut over."""
        self.weights.copy_(torch.from_numpy(cut.weights))
        self.threshold.fill_(cut.threshold)

    def forward(self, scores: Tensor) -> Tensor:
        """How far each picture is above the cut, float64 ``(B,)``: known is what is above 0."""
        return scores.double() @ self.weights - self.threshold
