"""Which target clusters are which source classes: mutually nearest centers, and how far the samples agree (DCC)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vision.errors import InputError
from vision.memspm.clustering import Clusters, spherical_kmeans

KRule = Literal["best", "last_drop"]


class Matching(NamedTuple):
    """Pairs of a source class and a target cluster.

    Attributes:
        pairs: int64 ``(P, 2)``, (class, cluster), ascending; those left over are private.
        source_share: ``(P,)``: of the class's samples, how many have that cluster's center as their nearest.
        target_share: ``(P,)``: of the cluster's samples, how many have that class's center as their nearest.
        score: the mean over the pairs of the mean of both; 0 without a pair.
    """

    pairs: Tensor
    source_share: Tensor
    target_share: Tensor
    score: float


def class_centers(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The normalised means ``(classes, D)`` of the normalised features of each class."""
    unit = F.normalize(features.float(), dim=1)
    sums = torch.zeros(classes, unit.shape[1], device=unit.device).index_add_(0, labels, unit)
    return F.normalize(sums, dim=1)


def match(
    source: Tensor, labels: Tensor, source_centers: Tensor, target: Tensor, codes: Tensor, target_centers: Tensor
) -> Matching:
    """The domain consensus of one clustering (DCC, Section 3.2).

    Args:
        source: ``(n, D)``.
        labels: int64 ``(n,)``.
        source_centers: ``(C, D)``; a class without samples has zeros, and is in no pair.
        target: ``(m, D)``.
        codes: int64 ``(m,)``, the cluster of each.
        target_centers: ``(K, D)``.
    """
    source_centers, target_centers = F.normalize(source_centers, dim=1), F.normalize(target_centers, dim=1)
    # Zeros would be nearer to a cluster than all the classes that it is unlike.
    without_samples = ~source_centers.any(dim=1)
    similarity = (source_centers @ target_centers.T).masked_fill(without_samples[:, None], -math.inf)
    to_target, to_source = similarity.argmax(dim=1), similarity.argmax(dim=0)
    classes = torch.arange(len(source_centers), device=similarity.device)
    mutual = (to_source[to_target] == classes) & ~without_samples
    pairs = torch.stack([classes[mutual], to_target[mutual]], dim=1)
    if not len(pairs):
        nothing = source_centers.new_zeros(0)
        return Matching(pairs, nothing, nothing, 0.0)
    source_agrees = (source @ target_centers.T).argmax(dim=1) == to_target[labels]
    to_class = (target @ source_centers.T).masked_fill(without_samples, -math.inf).argmax(dim=1)
    target_agrees = to_class == to_source[codes]
    source_share = _shares(source_agrees, labels, len(source_centers))[pairs[:, 0]]
    target_share = _shares(target_agrees, codes, len(target_centers))[pairs[:, 1]]
    return Matching(pairs, source_share, target_share, float((source_share + target_share).mean() / 2))


def _shares(agrees: Tensor, groups: Tensor, count: int) -> Tensor:
    sums = torch.zeros(count, device=agrees.device).index_add_(0, groups, agrees.float())
    return sums / torch.bincount(groups, minlength=count).clamp(min=1)


def dropping(scores: Sequence[float], length: int = 4, consecutive: bool = True) -> bool:
    """Whether the last scores do not rise (DCC, ``detect_continuous_drop``), so that the search may stop.

    Args:
        scores: of the search, in order.
        length: how many scores to look at; fewer never stop it.
        consecutive: each is at most the one before it; otherwise each is at most the first of them.
    """
    if len(scores) < length:
        return False
    last = scores[-length:]
    if consecutive:
        return all(later <= earlier for earlier, later in pairwise(last))
    return all(later <= last[0] for later in last[1:])


def settled(found: Sequence[int], rounds: int = 2) -> bool:
    """Whether the last rounds of clustering found the same K (DCC, ``fix_k``), so that it is searched no more."""
    return len(found) >= rounds and len(set(found[-rounds:])) == 1


class Search(NamedTuple):
    """What a search for the number of clusters found.

    Attributes:
        clusters: of the target.
        matching: with the source's classes.
        scores: (K, consensus) of every K that was tried.
    """

    clusters: Clusters
    matching: Matching
    scores: list[tuple[int, float]]


def search_clusters(
    source: Tensor,
    labels: Tensor,
    classes: int,
    target: Tensor,
    interval: int = 2,
    max_search: float = 3.0,
    rule: KRule = "best",
    smallest: int | None = None,
    restarts: int = 1,
    seed: int = 0,
) -> Search:
    """Clusters the target with the K at which both domains agree best.

    The search goes on until four scores in a row do not rise, whatever the rule.

    Args:
        source: ``(n, D)``, of length 1.
        labels: int64 ``(n,)``.
        classes: how many source classes there are.
        target: ``(m, D)``, of length 1.
        interval: between one K and the next.
        max_search: the largest K in multiples of the classes.
        rule: ``best`` consensus; or ``last_drop``, DCC's code: the first of the four scores that do not rise.
        smallest: the first K; by default the number of classes. A smaller one lets every cluster find a class, and
            nothing is unknown any more.
        restarts: of k-means, for each K.
        seed: of the clusterings.

    Raises:
        InputError: the target has fewer rows than the smallest K, or that is above the largest.
    """
    first, largest = smallest or classes, int(classes * max_search)
    if largest < first:
        raise InputError(
            f"clustering.smallest is {first}, the largest K {largest} ({classes} classes, max_search {max_search:g})"
        )
    last = min(largest, len(target))
    if last < first:
        raise InputError(f"{len(target)} target pictures, at least {first} are needed to look for {first} clusters")
    source_centers = class_centers(source, labels, classes)
    tried: list[tuple[Clusters, Matching]] = []
    scores: list[tuple[int, float]] = []
    for count in range(first, last + 1, interval):
        clusters = spherical_kmeans(target, count, seed, restarts)
        matching = match(source, labels, source_centers, target, clusters.codes, clusters.centers)
        tried.append((clusters, matching))
        scores.append((count, matching.score))
        if dropping([score for _, score in scores]):
            break
    chosen = max(range(len(scores)), key=lambda place: scores[place][1])
    if rule == "last_drop" and dropping([score for _, score in scores]):
        chosen = len(scores) - 4
    return Search(*tried[chosen], scores)
