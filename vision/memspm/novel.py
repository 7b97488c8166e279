"""What unknown pictures may be classes of: how many clusters of them lie apart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from vision.memspm.clustering import spherical_kmeans

FEWEST = 10  # pictures that are divided at all
APART = 0.1  # the silhouette from which clusters are taken for more than one
SAMPLE = 2000  # rows that the number is found with: the cost of a silhouette grows with their square
RESTARTS = 4


class NovelClasses(NamedTuple):
    """Classes that unknown pictures may be of, the largest first.

    Attributes:
        codes: int64 ``(n,)``, the class of each picture.
        centers: ``(K, D)``, of length 1; ``(0, D)`` of no pictures.
        silhouettes: of every number of clusters that was tried the mean silhouette, in [-1, 1].
    """

    codes: Tensor
    centers: Tensor
    silhouettes: dict[int, float]


def suggest_classes(unit: Tensor, seed: int = 0, largest: int = 10) -> NovelClasses:
    """Clusters rows by cosine, into as many clusters as have the best silhouette (Rousseeuw, 1987).

    All are one where no number of clusters has a silhouette of 0.1, and where there are fewer than 10.

    Args:
        unit: ``(n, D)``, of length 1.
        seed: of the clusterings, and of the sample of at most 2000 rows that the number of clusters is found with.
        largest: number of clusters that is tried; never more than ``n - 1``.
    """
    if not len(unit):
        return NovelClasses(torch.zeros(0, dtype=torch.long), unit.float(), {})
    rows = unit.float()
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))[:SAMPLE])
    sample = rows[chosen.to(rows.device)]
    start = spherical_kmeans(sample, 1).centers
    silhouettes: dict[int, float] = {}
    for clusters in range(2, min(largest, len(rows) - 1) + 1) if len(rows) >= FEWEST else ():
        found = spherical_kmeans(sample, clusters, seed, RESTARTS)
        if len(found.codes.unique()) < clusters:  # of equal rows there can be fewer kinds
            continue
        silhouette = float(silhouette_score(sample.cpu().numpy(), found.codes.cpu().numpy(), metric="cosine"))
        if silhouette >= APART and silhouette > max(silhouettes.values(), default=-1.0):
            start = found.centers
        silhouettes[clusters] = silhouette
    best = spherical_kmeans(rows, len(start), start=start)
    order = torch.bincount(best.codes, minlength=len(best.centers)).argsort(descending=True, stable=True)
    return NovelClasses(order.argsort()[best.codes], best.centers[order], silhouettes)
