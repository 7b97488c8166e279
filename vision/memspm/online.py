"""Clusters that follow the batches: balanced assignment and moving centers in the place of k-means over everything."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.memspm.clustering import spherical_kmeans
from vision.memspm.consensus import Matching, class_centers, match

MOMENTUM = 0.95  # of centers
QUEUE = 2048  # features of a domain that centers, consensus and balance are taken over, at least
ROWS_A_CENTER = 8
SHARPNESS = 0.05  # of the assignment
BALANCE_STEPS = 3
DEAD = 0.1  # of an even share of the queue: a center with less takes the worst placed feature
SEED_ROWS = 4  # features a center, before the centers are seeded


def balanced_assignment(similarity: Tensor, steps: int = BALANCE_STEPS) -> Tensor:
    """Sinkhorn's iteration towards clusters of equal weight (SwAV, arXiv 2006.09882, Appendix A).

    Args:
        similarity: ``(n, K)`` cosines.
        steps: of the iteration; few leave room for unequal clusters.

    Returns:
        ``(n, K)``, of which every row has sum 1.
    """
    logs = similarity.float() / SHARPNESS  # logarithms, for exponentials of these would vanish
    for _ in range(steps):
        logs = logs.log_softmax(dim=0).log_softmax(dim=1)
    return logs.exp()


class Queue(nn.Module):
    """The last features of a domain, with a number each.

    Args:
        width: of a feature.
        length: how many.
    """

    rows: Tensor
    tags: Tensor
    filled: Tensor

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, width))
        self.register_buffer("tags", torch.zeros(length, dtype=torch.long))
        self.register_buffer("filled", torch.tensor(0))

    @property
    def features(self) -> Tensor:
        """``(n, D)``."""
        return self.rows[: int(self.filled)]

    @property
    def numbers(self) -> Tensor:
        """Int64 ``(n,)``."""
        return self.tags[: int(self.filled)]

    def put(self, features: Tensor, numbers: Tensor) -> None:
        """Takes ``(B, D)`` features and ``(B,)`` numbers in, in the place of the oldest."""
        places = (self.filled + torch.arange(len(features), device=features.device)) % len(self.rows)
        self.rows[places] = features.float()
        self.tags[places] = numbers
        self.filled += len(features)


class OnlineClusters(nn.Module):
    """The target's clusters, kept up with each batch; no pass over the whole target is needed.

    Args:
        clusters: how many; they do not change.
        width: of a feature.
        rows: target pictures, whose last cluster is remembered.
    """

    centers: Tensor
    codes: Tensor

    def __init__(self, clusters: int, width: int, rows: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(clusters, width))
        self.register_buffer("codes", torch.full((rows,), -1))
        length = max(QUEUE, ROWS_A_CENTER * clusters)
        self.source, self.target = Queue(width, length), Queue(width, length)

    @property
    def seeded(self) -> bool:
        """Whether enough features have come for there to be centers."""
        return bool(self.centers.any())

    @torch.no_grad()
    def update(self, source: Tensor, labels: Tensor, target: Tensor, index: Tensor) -> None:
        """Takes in a batch of either domain.

        Args:
            source: ``(B, D)``, of length 1.
            labels: int64 ``(B,)``, their classes.
            target: ``(B, D)``, of length 1.
            index: int64 ``(B,)``, which target pictures they are.
        """
        with torch.autocast(source.device.type, enabled=False):
            self.source.put(source, labels)
            self.target.put(target, index)
            seen = self.target.features
            if not self.seeded:
                if len(seen) >= SEED_ROWS * len(self.centers):
                    self.centers.copy_(spherical_kmeans(seen, len(self.centers)).centers)
                return
            plan = balanced_assignment(seen @ self.centers.T)
            means = F.normalize(plan.T @ seen, dim=1)
            self.centers.copy_(F.normalize(MOMENTUM * self.centers + (1 - MOMENTUM) * means, dim=1))
            self._revive(seen)
            self.codes[index] = (target.float() @ self.centers.T).argmax(dim=1)

    def match(self, classes: int) -> Matching:
        """Clusters and classes by what the queues hold; see :func:`vision.memspm.consensus.match`."""
        source, target = self.source.features, self.target.features
        labels, codes = self.source.numbers, (target @ self.centers.T).argmax(dim=1)
        return match(source, labels, class_centers(source, labels, classes), target, codes, self.centers)

    def _revive(self, seen: Tensor) -> None:
        """Centers that hardly any feature is nearest to start anew where features are badly placed."""
        best, nearest = (seen @ self.centers.T).max(dim=1)
        counts = torch.bincount(nearest, minlength=len(self.centers))
        dead = (counts < DEAD * len(seen) / len(self.centers)).nonzero().flatten()
        if len(dead):
            self.centers[dead] = seen[best.topk(len(dead), largest=False).indices]
            self.codes[torch.isin(self.codes, dead)] = -1
