"""What a network says of an image, in words: for every task a class, its probability and how unsure it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

from torch import Tensor

from vision.labels import LabelSchema
from vision.medic.model import decisions, probabilities


class Answer(TypedDict):
    """One task's answer.

    Keys:
        label: the class.
        probability: its own, in [0, 1].
        entropy: of all classes' probabilities, divided by the logarithm of their number: 0 is sure, 1 knows nothing.
        probabilities: of every class.
    """

    label: str
    probability: float
    entropy: float
    probabilities: dict[str, float]


def answers(schema: LabelSchema, cumulative: set[str], logits: Mapping[str, Tensor]) -> list[dict[str, Answer]]:
    """The answers of every task, image by image.

    Args:
        schema: the tasks.
        cumulative: those with an ordinal head.
        logits: by task, as :class:`~vision.medic.model.MultitaskNetwork` gives them.
    """
    columns: list[list[Answer]] = []
    for name, of in schema.tasks.items():
        scores = logits[name].detach().float().cpu()
        shares = probabilities(scores, name in cumulative)
        entropy = normalised_entropy(shares)
        column = []
        for i, decision in enumerate(decisions(scores, name in cumulative).tolist()):
            by_class = dict(zip(of.classes, shares[i].tolist(), strict=True))
            label = of.classes[decision]
            column.append(
                Answer(label=label, probability=by_class[label], entropy=float(entropy[i]), probabilities=by_class)
            )
        columns.append(column)
    return [dict(zip(schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def normalised_entropy(shares: Tensor) -> Tensor:
    """Entropy of ``(B, K)`` probabilities over ``log K``: ``(B,)`` in [0, 1]."""
    logs = shares.clamp_min(1e-12).log()
    return (-(shares * logs).sum(dim=1) / math.log(shares.shape[1])).clamp(0, 1)


def review_ranks(found: Sequence[Mapping[str, Answer]]) -> list[int]:
    """Which image a person should look at first: 1 for the one whose least sure answer has the largest entropy."""
    doubt = [max(answer["entropy"] for answer in image.values()) for image in found]
    order = sorted(range(len(doubt)), key=lambda i: -doubt[i])
    ranks = [0] * len(doubt)
    for rank, i in enumerate(order, start=1):
        ranks[i] = rank
    return ranks


def severity(schema: LabelSchema, found: Mapping[str, Answer]) -> float:
    """Where on the scale of the first ordered task an image lies: the mean step, in [0, 1]; 0 without such a task."""
    for name, of in schema.tasks.items():
        if of.ordinal:
            shares = found[name]["probabilities"].values()
            return sum(step * share for step, share in enumerate(shares)) / (len(of) - 1)
    return 0.0
