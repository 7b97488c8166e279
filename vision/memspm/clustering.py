"""Spherical k-means: rows are compared by cosine. On CPU and GPU, without faiss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vision.errors import InputError


class Clusters(NamedTuple):
    """Clusters of rows.

    Attributes:
        centers: ``(K, D)``, of length 1.
        codes: int64 ``(n,)``, the cluster of each row.
        similarity: the mean cosine of the rows to their centers.
    """

    centers: Tensor
    codes: Tensor
    similarity: float


def spherical_kmeans(
    rows: Tensor,
    clusters: int,
    seed: int = 0,
    restarts: int = 1,
    iterations: int = 100,
    start: Tensor | None = None,
) -> Clusters:
    """K-means by cosine: each center is the normalised sum of its rows.

    Seeded as k-means++ does; the best of the restarts is taken. A center that has lost all rows takes the row that is
    farthest from its own center.

    Args:
        rows: ``(n, D)``; their lengths make no difference.
        clusters: how many, at most ``n``.
        seed: of the seeding.
        restarts: how often to begin anew.
        iterations: at most so many; it ends where no row moves.
        start: ``(clusters, D)``, centers to start from in the place of seeds; one start then.

    Raises:
        InputError: there are more clusters than rows, or none is asked for.
    """
    if not 1 <= clusters <= len(rows):
        raise InputError(f"k-means: {clusters} clusters of {len(rows)} rows; at least 1 and at most a cluster a row")
    unit = F.normalize(rows.float(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    best: Clusters | None = None
    for _ in range(1 if start is not None else restarts):
        centers = _seeds(unit, clusters, generator) if start is None else F.normalize(start.float(), dim=1)
        found = _descend(unit, centers, iterations)
        if best is None or found.similarity > best.similarity:
            best = found
    assert best is not None
    return best


def _seeds(unit: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """K-means++: each seed is drawn in proportion to its squared distance from those before it."""
    chosen = [int(torch.randint(len(unit), (1,), generator=generator))]
    distance = 1 - unit @ unit[chosen[0]]
    for _ in range(clusters - 1):
        share = distance.clamp(min=0).cpu()
        place = int(torch.multinomial(share, 1, generator=generator)) if share.sum() > 0 else 0
        chosen.append(place)
        distance = torch.minimum(distance, 1 - unit @ unit[place])
    return unit[chosen]


def _descend(unit: Tensor, centers: Tensor, iterations: int) -> Clusters:
    codes = torch.full((len(unit),), -1, device=unit.device)
    for _ in range(iterations):
        best, now = (unit @ centers.T).max(dim=1)
        if torch.equal(now, codes):
            break
        codes = _revived(best, now, len(centers))
        sums = torch.zeros_like(centers).index_add_(0, codes, unit)
        centers = F.normalize(sums, dim=1)
    best, codes = (unit @ centers.T).max(dim=1)
    return Clusters(centers, codes, float(best.mean()))


def _revived(best: Tensor, codes: Tensor, clusters: int) -> Tensor:
    """Codes in which empty clusters have taken the rows that are farthest from their centers."""
    counts = torch.bincount(codes, minlength=clusters).tolist()
    empty = [cluster for cluster, count in enumerate(counts) if not count]
    if not empty:
        return codes
    codes = codes.clone()
    # As many rows as there are clusters may be passed over, and as many be taken.
    far = best.topk(min(2 * clusters, len(best)), largest=False).indices
    for place, cluster in zip(far.tolist(), codes[far].tolist(), strict=True):
        if not empty:
            break
        if counts[cluster] > 1:  # or it would be empty in its turn
            counts[cluster] -= 1
            codes[place] = empty.pop()
    return codes
