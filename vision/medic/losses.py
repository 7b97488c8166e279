"""The loss of each task over the images that are labelled for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.labels import MISSING, LabelSchema


def class_balanced_weights(counts: Sequence[int], beta: float = 0.999) -> Tensor:
    """Weights of classes by their effective numbers: proportional to ``(1 - beta) / (1 - beta^n)`` (arXiv 1901.05555).

    They are scaled so that the mean over the labelled images is 1, which keeps the loss's scale. A class without
    images has weight 0.

    Args:
        counts: labelled training images of every class.
        beta: in [0, 1): 0 gives equal weights, towards 1 they become inversely proportional to the counts.
    """
    number = torch.tensor(counts, dtype=torch.float64)
    weights = torch.where(number > 0, (1 - beta) / (1 - beta ** number.clamp(min=1)), 0.0)
    return (weights * number.sum() / (weights * number).sum()).float()


def log_priors(counts: Sequence[int]) -> Tensor:
    """Logarithms of the classes' shares of the labelled images; a class without images is taken to have one."""
    number = torch.tensor(counts, dtype=torch.float64).clamp(min=1)
    return (number / number.sum()).log().float()


class MaskedLosses(nn.Module):
    """Sums of the tasks' losses over the labelled images of a batch: a missing label contributes nothing.

    They are sums, since what they are to be divided by is not known here: the labels of all processes and of all
    batches of an optimizer step (see ``MultitaskBatch.labelled``). A mean of each batch's own would weigh an image
    the more the fewer labelled ones happen to be in its batch.

    Args:
        schema: the tasks, in the order of the labels' columns.
        cumulative: tasks with an ordinal head; theirs is the binary cross entropy of each step, summed over the steps.
        label_smoothing: of the cross entropy, in [0, 1].
        class_weights: by task, ``(K,)``.
        adjustment: by task, ``(K,)``, added to the logits: with ``tau * log prior`` logit adjustment
            (arXiv 2007.07314). Ordinal heads take none.
    """

    def __init__(
        self,
        schema: LabelSchema,
        cumulative: set[str] | frozenset[str] = frozenset(),
        label_smoothing: float = 0.0,
        class_weights: Mapping[str, Tensor] | None = None,
        adjustment: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.names, self.cumulative, self.label_smoothing = schema.names, cumulative, label_smoothing
        for kind, given in (("weight", class_weights), ("adjustment", adjustment)):
            for name in self.names:
                self.register_buffer(f"{kind}_{name}", (given or {}).get(name), persistent=False)

    def forward(self, logits: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """The sums ``(tasks,)``, in float32.

        Args:
            logits: by task ``(B, K)``, or ``(B, K - 1)`` of ordinal heads.
            labels: int64 ``(B, tasks)``, -1 where missing.
        """
        return torch.stack([self._sum(name, logits[name].float(), labels[:, i]) for i, name in enumerate(self.names)])

    def _sum(self, name: str, logits: Tensor, labels: Tensor) -> Tensor:
        weight: Tensor | None = getattr(self, f"weight_{name}")
        if name in self.cumulative:
            steps = torch.arange(logits.shape[1], device=labels.device)
            exceeds = (labels[:, None] > steps).to(logits.dtype)
            each = F.binary_cross_entropy_with_logits(logits, exceeds, reduction="none").sum(dim=1)
            labelled = labels != MISSING
            each = each * weight[labels.clamp(min=0)] if weight is not None else each
            return torch.where(labelled, each, 0.0).sum()
        adjustment: Tensor | None = getattr(self, f"adjustment_{name}")
        return F.cross_entropy(
            logits if adjustment is None else logits + adjustment,
            labels,
            weight,
            ignore_index=MISSING,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )


def means(sums: Tensor, counts: Tensor) -> Tensor:
    """Sums over labelled images to means ``(tasks,)``; 0, with a gradient of 0, where there are none."""
    return sums / counts.clamp(min=1)
