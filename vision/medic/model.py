"""One backbone, several tasks: a trunk and one linear layer whose outputs are cut into tasks.

MEDIC (arXiv 2108.12828) classifies an image four times over with one network, whose last layer is a single linear one
with as many outputs as the tasks have classes together. Separate linear heads are the same thing, with stacked weights.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vision.classifiers import create_trunk
from vision.labels import LabelSchema


def cumulative_tasks(schema: LabelSchema, ordinal: bool) -> set[str]:
    """The tasks with an ordinal head."""
    return {name for name, of in schema.tasks.items() if ordinal and of.ordinal}


def outputs_of(schema: LabelSchema, ordinal: bool) -> dict[str, int]:
    """How many outputs each task has: one a class, or one a step between classes where the head is ordinal."""
    cumulative = cumulative_tasks(schema, ordinal)
    return {name: len(of) - (name in cumulative) for name, of in schema.tasks.items()}


def cumulative_logits(raw: Tensor) -> Tensor:
    """``(..., K - 1)`` outputs of an ordinal head to the logits of "more than class 0", "more than class 1", ...

    Each is the one before it less a positive number, so that the probabilities never increase and the classes' own
    probabilities are never negative.
    """
    steps = torch.cat([raw[..., :1], -nn.functional.softplus(raw[..., 1:])], dim=-1)
    return steps.cumsum(dim=-1)


class MultitaskNetwork(nn.Module):
    """A trunk with a linear layer for all tasks.

    Args:
        backbone: a name for :func:`vision.classifiers.create_classifier`.
        schema: tasks and classes; the rows of ``head`` are the tasks' outputs, in its order.
        image_size: (height, width) in pixels, for trunks that depend on it.
        pretrained: start the trunk from the weights of timm's hub.
        checkpoint: start the trunk from the weights of a classifier's file.
        dropout: of the features, in [0, 1).
        ordinal: ordered tasks get an ordinal head: K - 1 cumulative logits instead of K.

    Raises:
        InputError: as in :func:`vision.classifiers.create_trunk`.
    """

    def __init__(
        self,
        backbone: str,
        schema: LabelSchema,
        image_size: tuple[int, int] | None = None,
        pretrained: bool = False,
        checkpoint: str | Path | None = None,
        dropout: float = 0.0,
        ordinal: bool = False,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.sizes = outputs_of(schema, ordinal)
        self.cumulative = cumulative_tasks(schema, ordinal)
        self.trunk, features = create_trunk(backbone, image_size, pretrained, checkpoint)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, sum(self.sizes.values()))

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """``(B, features)`` to the logits of each task: ``(B, K)``, of an ordinal head ``(B, K - 1)`` cumulative."""
        outputs = self.head(self.dropout(features))
        ends = list(accumulate(self.sizes.values()))
        # Slices with constant ends: split would leave the sizes to be computed in an exported graph.
        found = {name: outputs[:, end - size : end] for (name, size), end in zip(self.sizes.items(), ends, strict=True)}
        return {name: cumulative_logits(raw) if name in self.cumulative else raw for name, raw in found.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``(B, 3, H, W)`` normalised images to the logits of each task."""
        return self.classify(self.trunk(images))

    def no_weight_decay(self) -> set[str]:
        """The parameters that a trunk exempts from weight decay, by their names here."""
        exempt = getattr(self.trunk, "no_weight_decay", set)
        return {f"trunk.{name}" for name in cast("set[str]", exempt())}


def probabilities(logits: Tensor, cumulative: bool) -> Tensor:
    """The classes' probabilities ``(B, K)``, from the logits of a head or the cumulative ones of an ordinal head."""
    if not cumulative:
        return logits.softmax(dim=1)
    above = torch.cat([torch.ones_like(logits[:, :1]), logits.sigmoid(), torch.zeros_like(logits[:, :1])], dim=1)
    return above[:, :-1] - above[:, 1:]


def decisions(logits: Tensor, cumulative: bool) -> Tensor:
    """The classes' indices ``(B,)``: the most likely, or of an ordinal head the number of steps likelier than not."""
    return (logits > 0).sum(dim=1) if cumulative else logits.argmax(dim=1)
