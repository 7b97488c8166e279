"""What is measured of a network for several tasks, over the images that are labelled for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

from tasks.reporting import text_table
from vision.labels import MISSING, LabelSchema, count_labels
from vision.medic.measures import confusion_measures, majority_confusion, per_class
from vision.medic.model import decisions, probabilities

Confusion = NDArray[np.int64]


class MultitaskMeasures(nn.Module):
    """Counts over one pass, added up over all processes; nothing is averaged over batches.

    Args:
        schema: the tasks.
        cumulative: those with an ordinal head.
    """

    def __init__(self, schema: LabelSchema, cumulative: set[str]) -> None:
        super().__init__()
        self.schema, self.cumulative = schema, cumulative
        sizes = [len(of) for of in schema.tasks.values()]
        self.confusions = nn.ModuleList(MulticlassConfusionMatrix(size, ignore_index=MISSING) for size in sizes)
        self.calibrations = nn.ModuleList(
            MulticlassCalibrationError(size, n_bins=15, ignore_index=MISSING) for size in sizes
        )
        self.losses = nn.ModuleList(SumMetric() for _ in sizes)

    def update(self, logits: Mapping[str, Tensor], labels: Tensor, sums: Tensor) -> None:
        """Adds a batch: logits by task, labels ``(B, tasks)``, and the sums of their losses ``(tasks,)``."""
        labelled = count_labels(labels)
        for i, name in enumerate(self.schema.tasks):
            scores = logits[name].float()
            cast("Any", self.confusions[i]).update(decisions(scores, name in self.cumulative), labels[:, i])
            cast("Any", self.losses[i]).update(sums[i])
            if labelled[i]:
                cast("Any", self.calibrations[i]).update(probabilities(scores, name in self.cumulative), labels[:, i])

    def finish(self) -> tuple[dict[str, dict[str, float]], dict[str, Confusion]]:
        """The measures and the confusion matrix of every task that had labels, by its name; starts anew."""
        measured: dict[str, dict[str, float]] = {}
        matrices: dict[str, Confusion] = {}
        for i, (name, of) in enumerate(self.schema.tasks.items()):
            metrics: list[Any] = [self.confusions[i], self.calibrations[i], self.losses[i]]
            matrix = metrics[0].compute().cpu().numpy()
            if number := int(matrix.sum()):
                matrices[name] = matrix
                measured[name] = {
                    "loss": float(metrics[2].compute()) / number,
                    **confusion_measures(matrix, of.ordinal),
                    "calibration_error": float(metrics[1].compute()),
                }
            for metric in metrics:
                metric.reset()
        return measured, matrices


def report(
    schema: LabelSchema,
    measured: Mapping[str, Mapping[str, float]],
    matrices: Mapping[str, Confusion],
    majorities: Mapping[str, int],
) -> dict[str, Any]:
    """Everything about a pass, for a JSON file; what is not defined is null.

    Args:
        schema: the tasks.
        measured: as :meth:`MultitaskMeasures.finish` gives it.
        matrices: likewise.
        majorities: the most frequent class of each task in training.
    """
    found: dict[str, Any] = {}
    for name, matrix in matrices.items():
        of = schema.tasks[name]
        constant = confusion_measures(majority_confusion(matrix, majorities[name]), of.ordinal)
        found[name] = {
            "images": int(matrix.sum()),
            **{key: _json(value) for key, value in measured[name].items()},
            "majority": {"class": of.classes[majorities[name]], **{key: _json(v) for key, v in constant.items()}},
            "classes": per_class(matrix, of.classes),
            "confusion": matrix.tolist(),
        }
    return found


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def report_table(content: Mapping[str, Any]) -> str:
    """The report's main figures for the terminal, the majority's beside each."""
    keys = ("accuracy", "precision_weighted", "recall_weighted", "f1_weighted", "f1_macro", "balanced_accuracy")
    columns = ["task", "images", "acc", "P", "R", "F1", "macro F1", "bal. acc", "worst recall"]
    rows = []
    for name, of in content.items():
        worst = min((c["recall"], label) for label, c in of["classes"].items() if c["images"])
        cells = [f"{of[key]:.3f}" for key in keys]
        rows.append([name, str(of["images"]), *cells, f"{worst[0]:.3f} {worst[1]}"])
        constant = [f"{of['majority'][key]:.3f}" for key in keys]
        rows.append([f"  always '{of['majority']['class']}'", "", *constant, ""])
    return text_table(columns, rows)


def mean_of(measured: Mapping[str, Mapping[str, float]], key: str) -> float:
    """The plain mean of a measure over the tasks that had labels."""
    return sum(of[key] for of in measured.values()) / len(measured)


def most_frequent(counts: Sequence[int]) -> int:
    """The index of the largest count."""
    return int(np.argmax(counts))
