"""Clusters of the target, and the prototypical regulariser (DCC, Section 3.3): features keep to their clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 0.1
NO_CLASS = -1


class ClusterMemory(nn.Module):
    """Centers of the target's clusters that follow the features as they are trained.

    Args:
        width: of a feature.
        clusters: how many at first.
    """

    centers: Tensor
    to_class: Tensor

    def __init__(self, width: int, clusters: int = 0) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(clusters, width))
        self.register_buffer("to_class", torch.full((clusters,), NO_CLASS))

    def __len__(self) -> int:
        return len(self.centers)

    @property
    def matched(self) -> Tensor:
        """Which clusters, bool ``(K,)``, are a class of the source's."""
        return self.to_class != NO_CLASS

    @property
    def paired_classes(self) -> Tensor:
        """The classes that have a cluster, ascending: those of the pairs in their order."""
        return self.to_class[self.matched].sort().values

    def set(self, centers: Tensor, to_class: Tensor | None = None) -> None:
        """Other clusters.

        Args:
            centers: ``(K, D)``; kept at length 1.
            to_class: int64 ``(K,)``, the class that each is taken for, -1 for none; all -1 if not given.
        """
        self.centers = F.normalize(centers.detach().float(), dim=1).to(self.centers.device)
        none = torch.full((len(centers),), NO_CLASS)
        self.to_class = (none if to_class is None else to_class).to(self.centers.device)

    def resize(self, state: Mapping[str, Tensor], prefix: str = "clusters.") -> None:
        """As many clusters as a state dict has, which is to be loaded then: their number is found in training."""
        if f"{prefix}centers" in state and (count := len(state[f"{prefix}centers"])) != len(self):
            self.set(self.centers.new_zeros(count, self.centers.shape[1]))

    @torch.no_grad()
    def update(self, unit: Tensor, codes: Tensor) -> None:
        """Moves the centers of the clusters that are there; the others stay as they are.

        A center ``c`` becomes ``normalise(a c + (1 - a) b)``, ``b`` being the normalised sum of its features and
        ``a`` the cosine of both.

        Args:
            unit: ``(B, D)``, of length 1.
            codes: int64 ``(B,)``, their clusters.
        """
        present = codes.unique()
        sums = torch.zeros_like(self.centers).index_add_(0, codes, unit.float())
        batch = F.normalize(sums[present], dim=1)
        kept = self.centers[present]
        share = (kept * batch).sum(dim=1, keepdim=True)
        self.centers[present] = F.normalize(share * kept + (1 - share) * batch, dim=1)

    def forward(self, features: Tensor, codes: Tensor, negatives: Tensor | None = None) -> Tensor:
        """Updates the centers, then the cross entropy of the features' cosines to them.

        Args:
            features: ``(B, D)``, of any length. Without rows the loss is 0.
            codes: int64 ``(B,)``, their clusters.
            negatives: ``(P, D)``: further centers that no feature belongs to, those of the source's private classes.
        """
        if not len(features):
            return features.sum() * 0.0
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(features.float(), dim=1)
            self.update(unit.detach(), codes)
            centers = self.centers.clone()
            if negatives is not None:
                centers = torch.cat([centers, F.normalize(negatives.float(), dim=1)])
            return F.cross_entropy(unit @ centers.T / TEMPERATURE, codes)


def ramp(step: int, steps: int = 5000) -> float:
    """The regulariser's weight in the course of a training: ``exp(-3 (steps - step) / steps)`` (DCC's code).

    It is 1 after ``steps``, and goes on rising.
    """
    return math.exp(-3 * (steps - step) / steps)
