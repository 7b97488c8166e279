"""How well known classes are told apart and unknown ones are told from them."""

from __future__ import annotations

import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from vision.memspm.clustering import spherical_kmeans

Scores = dict[str, float | None]


def harmonic(*shares: float) -> float:
    """The harmonic mean; 0 where one of them is."""
    return len(shares) / sum(1 / share for share in shares) if min(shares) > 0 else 0.0


def class_recalls(labels: Tensor, answers: Tensor, classes: int) -> dict[int, float]:
    """The recall of every class that occurs, ``classes`` being the unknown.

    Args:
        labels: int64 ``(n,)``; every label from ``classes`` on is unknown.
        answers: int64 ``(n,)``, at most ``classes``.
        classes: how many are known.
    """
    truth = labels.clamp(max=classes)
    right = (truth == answers).double()
    return {int(c): float(right[truth == c].mean()) for c in truth.unique()}


def open_set_scores(labels: Tensor, answers: Tensor, classes: int) -> Scores:
    """H and its parts, all in [0, 1]; None where there is nothing to measure it on.

    ``h`` is the harmonic mean of ``common`` (mean recall of the common classes that occur) and ``unknown`` (recall of
    what is private to the target); ``h_micro`` takes ``common_micro``, the mean over pictures, as DCC's code does.
    ``average`` is the mean recall over common classes and the unknown one, ``accuracy`` the mean over all pictures.

    Args:
        labels: see :func:`class_recalls`.
        answers: see :func:`class_recalls`.
        classes: see :func:`class_recalls`.
    """
    recalls = class_recalls(labels, answers, classes)
    unknown = recalls.get(classes)
    known = [share for c, share in recalls.items() if c < classes]
    inside = labels < classes
    common = sum(known) / len(known) if known else None
    micro = float((labels == answers)[inside].double().mean()) if known else None
    both = common is not None and unknown is not None
    return {
        "h": harmonic(common, unknown) if both else None,  # type: ignore[arg-type]
        "h_micro": harmonic(micro, unknown) if both else None,  # type: ignore[arg-type]
        "common": common,
        "common_micro": micro,
        "unknown": unknown,
        "average": sum(recalls.values()) / len(recalls) if recalls else None,
        "accuracy": float((labels.clamp(max=classes) == answers).double().mean()) if len(labels) else None,
    }


def private_nmi(labels: Tensor, features: Tensor, classes: int) -> float | None:
    """How well target-private classes come out by clustering: arithmetic NMI with as many clusters as there are.

    Args:
        labels: int64 ``(n,)``.
        features: ``(n, D)``.
        classes: how many are known; None is returned where nothing is unknown.
    """
    private = labels >= classes
    count = len(labels[private].unique())
    if not count:
        return None
    codes = spherical_kmeans(features[private], count, restarts=5, iterations=20).codes
    return float(normalized_mutual_info_score(labels[private].cpu().numpy(), codes.cpu().numpy()))


def h3_score(scores: Scores, nmi: float | None) -> float | None:
    """The harmonic mean of ``common``, ``unknown`` and NMI (UniOT)."""
    common, unknown = scores["common"], scores["unknown"]
    return None if common is None or unknown is None or nmi is None else harmonic(common, unknown, nmi)


def auroc(labels: Tensor, known: Tensor, classes: int) -> float | None:
    """That a picture of a known class has a higher score than one of none; None where either is missing.

    Args:
        labels: int64 ``(n,)``.
        known: ``(n,)``, the score.
        classes: how many are known.
    """
    inside = labels < classes
    if inside.all() or not inside.any():
        return None
    ranks = known.unique(return_inverse=True)[1].double()  # binary_auroc takes scores outside [0, 1] for logits
    return float(binary_auroc(ranks / max(1, int(ranks.max())), inside.long()))


def oscr(labels: Tensor, predicted: Tensor, known: Tensor, classes: int) -> float | None:
    """The area under the rate of known pictures that are let through and right, over that of unknown let through.

    Args:
        labels: int64 ``(n,)``.
        predicted: int64 ``(n,)``, classes without rejection.
        known: ``(n,)``, the score.
        classes: how many are known. Where nothing is unknown this is the accuracy, where all is, None.
    """
    inside = labels < classes
    if not inside.any():
        return None
    right = inside & (labels == predicted)
    if inside.all():
        return float(right.double().mean())
    levels = known.unique().flip(0)
    place = torch.searchsorted(-levels, -known)  # of the threshold at which each is let through
    hits, false = (torch.bincount(place[of], minlength=len(levels)).cumsum(0).double() for of in (right, ~inside))
    zero = hits.new_zeros(1)
    return float(torch.trapezoid(torch.cat([zero, hits / inside.sum()]), torch.cat([zero, false / (~inside).sum()])))
