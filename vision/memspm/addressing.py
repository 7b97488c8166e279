"""Which sub-prototypes a feature is made of: the K best by cosine, averaged with their weights (MemSPM, Section 3.2).

Two forms of one thing. :func:`gather` looks the rows up that it needs: a softmax over K similarities. :func:`dense`
is the paper's: a softmax over all sub-prototypes, a threshold, MemAE's shrinkage, and a renormalisation. With the
threshold ``exact`` they give the same embedding; with the paper's own one only K - 1 survive.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12  # MemAE's, of the shrinkage
SHORTEST = 1e-8  # a row has a direction from this length on
Similarity = Literal["cosine", "dot"]


class Addressed(NamedTuple):
    """What features were made of.

    Attributes:
        embedding: ``(B, D)``, the weighted means.
        rows: int64 ``(B, K)``, which sub-prototypes, as ``item * S + sub``, the heaviest first.
        weights: ``(B, K)``, at least 0; a row's sum is 1.
    """

    embedding: Tensor
    rows: Tensor
    weights: Tensor


class Dense(NamedTuple):
    """Everything that the paper's form computes on its way, in the order of its equations.

    Attributes:
        similarity: ``(B, N, S)``.
        weights: ``(B, N, S)``, softmax over all of them.
        best: int64 ``(B, N)``: each item's best sub-prototype.
        item_weights: ``(B, N)``, the weight of that one.
        threshold: ``(B,)``.
        shrunk: ``(B, N)``, what is left above the threshold, of sum 1.
        embedding: ``(B, D)``.
    """

    similarity: Tensor
    weights: Tensor
    best: Tensor
    item_weights: Tensor
    threshold: Tensor
    shrunk: Tensor
    embedding: Tensor


def gather(features: Tensor, memory: Tensor, top_k: int, temperature: float, one_per_item: bool = True) -> Addressed:
    """The mean of the ``top_k`` most similar sub-prototypes, weighted by a softmax over their cosines alone.

    A softmax over a part of the similarities is the renormalised part of the softmax over all of them, so nothing has
    to be computed over all, and no gradient is lost: only chosen rows have one. In float32, whatever surrounds it.

    Args:
        features: ``(B, D)``.
        memory: ``(N, S, D)``.
        top_k: how many, at most ``N`` (``N * S`` without ``one_per_item``).
        temperature: of the softmax, positive.
        one_per_item: choose among the items' best sub-prototypes, so that the chosen belong to different items.
    """
    with torch.autocast(features.device.type, enabled=False):
        table = memory.float().flatten(0, 1)
        unit = _unit(features.float())
        with torch.no_grad():
            similarity = unit @ _unit(table).T
            if one_per_item:
                items, subs = memory.shape[:2]
                best, place = similarity.unflatten(1, (items, subs)).max(dim=2)
                chosen = best.topk(top_k, dim=1).indices
                rows = chosen * subs + place.gather(1, chosen)
            else:
                rows = similarity.topk(top_k, dim=1).indices
        picked = table[rows]
        cosines = torch.einsum("bd,bkd->bk", unit, _unit(picked))
        weights = (cosines / temperature).softmax(dim=1)
        return Addressed(torch.einsum("bk,bkd->bd", weights, picked), rows, weights)


def shrink(weights: Tensor, threshold: Tensor | float) -> Tensor:
    """MemAE's hard shrinkage in its differentiable form (Equation 7 there, 6 in MemSPM): 0 up to the threshold."""
    above = weights - threshold
    return above.relu() * weights / (above.abs() + EPS)


def dense(
    features: Tensor,
    memory: Tensor,
    top_k: int,
    temperature: float,
    threshold: Literal["paper", "exact"] | float = "paper",
    similarity: Similarity = "cosine",
) -> Dense:
    """The addressing as it is printed, over all ``N * S`` sub-prototypes.

    Args:
        features: ``(B, D)``.
        memory: ``(N, S, D)``; with ``S = 1``, dot products and a number as threshold this is MemAE's unit.
        top_k: how many items survive. Not used where the threshold is a number.
        temperature: of the softmax, positive.
        threshold: ``paper``, the smallest of the K largest, above which only K - 1 are; ``exact``, the one behind
            them, so that K are (0 if K = N); or a number, as in MemAE (0: no shrinkage).
        similarity: cosine (MemSPM) or dot product (MemAE).
    """
    with torch.autocast(features.device.type, enabled=False):
        features, memory = features.float(), memory.float()
        if similarity == "cosine":
            found = torch.einsum("bd,nsd->bns", _unit(features), _unit(memory))
        else:
            found = torch.einsum("bd,nsd->bns", features, memory)
        weights = (found / temperature).flatten(1).softmax(dim=1).view_as(found)
        item_weights, best = weights.max(dim=2)
        edge = _threshold(item_weights.detach(), top_k, threshold)
        kept = item_weights if threshold == 0 else shrink(item_weights, edge[:, None])
        kept = F.normalize(kept, p=1, dim=1)
        picked = memory[torch.arange(len(memory), device=best.device), best]
        return Dense(found, weights, best, item_weights, edge, kept, torch.einsum("bn,bnd->bd", kept, picked))


def _unit(rows: Tensor) -> Tensor:
    """Rows of length 1. Those of none stay 0, and have no gradient: it grows with the inverse of the length."""
    length = rows.norm(dim=-1, keepdim=True)
    found: Tensor = rows / length.where(length > SHORTEST, math.inf)
    return found


def _threshold(item_weights: Tensor, top_k: int, threshold: str | float) -> Tensor:
    """``(B,)``, from detached weights: its gradient near ties would be unbounded."""
    if isinstance(threshold, str):
        place = top_k if threshold == "paper" else top_k + 1
        if place > item_weights.shape[1]:
            return item_weights.new_zeros(len(item_weights))
        return item_weights.topk(place, dim=1).values[:, -1]
    return item_weights.new_full((len(item_weights),), threshold)
