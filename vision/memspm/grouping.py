"""What a round of clustering says of every picture: which pair of class and cluster it is of, and which cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vision.errors import InputError
from vision.memspm.consensus import KRule, Matching
from vision.memspm.regulariser import NO_CLASS


@dataclass(frozen=True)
class ClusterOptions:
    """How the target is clustered.

    Attributes:
        assign: ``kmeans`` over the whole target, with a search for K; or ``online``, by balanced assignment of what
            the batches bring, with a fixed K and without a pass over the data.
        every: steps between one round and the next.
        warmup: steps before the first round, in which the source alone is learned.
        interval: between one K and the next (``kmeans``).
        max_search: the largest K, in multiples of the source's classes.
        rule: which K: of the ``best`` consensus, or as DCC's code stops (``last_drop``).
        settle: search no more once two rounds in a row have found the same K; k-means then starts from the centers.
        smallest: the first K; by default the number of source classes.
        restarts: of k-means for each K.
        clusters: K of ``online``; by default twice the source's classes.
        least: a pair whose cluster has no more pictures than this is dropped.
    """

    assign: Literal["kmeans", "online"] = "kmeans"
    every: int = 200
    warmup: int = 0
    interval: int = 1
    max_search: float = 3.0
    rule: KRule = "best"
    settle: bool = False
    smallest: int | None = None
    restarts: int = 3
    clusters: int | None = None
    least: int = 3

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("warmup", 0), ("interval", 1), ("restarts", 1), ("least", 0)):
            if getattr(self, name) < least:
                raise InputError(f"clustering.{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("smallest", "clusters"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise InputError(f"clustering.{name} must be at least 1, got {number}")
        if not self.max_search >= 1:
            raise InputError(f"clustering.max_search must be at least 1, got {self.max_search}")


class Grouping(NamedTuple):
    """The pictures of both domains by pair and cluster, -1 for none.

    Attributes:
        source: int64 ``(n,)``, the pair of each source picture.
        target: int64 ``(m,)``, the pair of each target picture.
        clusters: int64 ``(m,)``, the cluster of each target picture.
        to_class: int64 ``(K,)``, the class of each cluster.
    """

    source: Tensor
    target: Tensor
    clusters: Tensor
    to_class: Tensor


def group(matching: Matching, labels: Tensor, codes: Tensor, clusters: int, least: int) -> Grouping:
    """The groups of a matching.

    Args:
        matching: pairs of classes and clusters.
        labels: int64 ``(n,)``, the classes of the source, -1 for pictures that could not be read.
        codes: int64 ``(m,)``, the clusters of the target, -1 likewise.
        clusters: how many there are.
        least: pairs whose cluster has no more pictures are dropped.
    """
    counts = torch.bincount(codes[codes >= 0], minlength=clusters)
    pairs = matching.pairs[counts[matching.pairs[:, 1]] > least]
    to_class = torch.full((clusters,), NO_CLASS, device=codes.device)
    to_class[pairs[:, 1]] = pairs[:, 0]
    numbers = torch.arange(len(pairs), device=codes.device)
    of_class = torch.full((int(torch.cat([labels, pairs[:, 0]]).max()) + 1,), -1, device=codes.device)
    of_class[pairs[:, 0]] = numbers
    of_cluster = torch.full((clusters,), -1, device=codes.device)
    of_cluster[pairs[:, 1]] = numbers
    return Grouping(
        torch.where(labels >= 0, of_class[labels.clamp(min=0)], -1),
        torch.where(codes >= 0, of_cluster[codes.clamp(min=0)], -1),
        codes,
        to_class,
    )
