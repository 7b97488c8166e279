"""What is measured of videos that are labelled in one or several label sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from tasks.classification import Measures
from vision.labels import MISSING, LabelSchema
from vision.vivit.scores import joint_scores


class VideoMeasures(nn.Module):
    """The measures of a pass over a data set, reduced over all processes.

    Args:
        schema: the label sets. Of several, the measures have the set's name in front, and ``top1`` asks for all sets to
            be right; of two, ``top5`` is that of the pair, from six pairs on.
    """

    def __init__(self, schema: LabelSchema) -> None:
        super().__init__()
        self.several = len(schema.names) > 1
        self.sets = nn.ModuleDict({name: Measures(len(of)) for name, of in schema.tasks.items()})
        self.joint = nn.ModuleDict({"top1": MeanMetric(), "top5": MeanMetric()})

    def update(self, scores: Mapping[str, Tensor], labels: Tensor) -> None:
        """Adds a batch.

        Args:
            scores: logits ``(B, classes)`` of each label set.
            labels: ``(B, sets)``, -1 where a label is missing.
        """
        for (name, found), column in zip(scores.items(), labels.unbind(dim=1), strict=True):
            known = column != MISSING
            if bool(known.any()):
                losses = F.cross_entropy(found[known], column[known], reduction="none")
                cast("Measures", self.sets[name]).update(found[known], column[known], losses)
        known = (labels != MISSING).all(dim=1)
        if self.several and bool(known.any()):
            self._update_joint(list(scores.values()), labels, known)

    def _update_joint(self, scores: list[Tensor], labels: Tensor, known: Tensor) -> None:
        joint: Any = self.joint
        right = [found.argmax(dim=1) == column for found, column in zip(scores, labels.T, strict=True)]
        joint["top1"].update(torch.stack(right).all(dim=0)[known].float())
        if len(scores) == 2:
            first, second = (found[known] for found in scores)
            pair = labels[known, 0] * second.shape[1] + labels[known, 1]
            pairs = joint_scores(first, second)
            if pairs.shape[1] > 5:
                joint["top5"].update((pairs.topk(5, dim=1).indices == pair[:, None]).any(dim=1).float())

    def finish(self, anywhere: Callable[[bool], bool]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The measures by name, and a confusion matrix ``(classes, classes)`` of each label set; starts anew.

        Args:
            anywhere: whether something holds on one of the processes; asked by all of them alike. What no process has
                seen a label of is left out.
        """
        measured: dict[str, Tensor] = {}
        matrices: dict[str, Tensor] = {}
        losses = []
        for name, module in self.sets.items():
            of = cast("Measures", module)
            if not anywhere(bool(of.loss.update_called)):
                continue
            found, matrices[name] = of.finish()
            losses.append(found["loss"])
            measured |= {f"{name}_{key}" if self.several else key: value for key, value in found.items()}
        if self.several and losses:
            measured["loss"] = torch.stack(losses).mean()
            joint: Any = self.joint
            for name, metric in joint.items():
                if anywhere(bool(metric.update_called)):
                    measured[name] = metric.compute()
                metric.reset()
        return measured, matrices
