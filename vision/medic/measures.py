"""What is said of a task's predictions, all of it from the confusion matrix.

The definitions are scikit-learn's own functions, called with one weighted sample for each cell of the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support


def majority_confusion(matrix: NDArray[np.int64], majority: int) -> NDArray[np.int64]:
    """The confusion matrix of a predictor that always says ``majority``, on the same images."""
    constant = np.zeros_like(matrix)
    constant[:, majority] = matrix.sum(axis=1)
    return constant


def confusion_measures(matrix: NDArray[np.int64], ordinal: bool = False) -> dict[str, float]:
    """The measures of a task, shares in [0, 1].

    ``accuracy``; ``precision_weighted``, ``recall_weighted`` and ``f1_weighted``, means over the classes weighted by
    their numbers of images, as in the official script; ``precision_macro``, ``recall_macro`` and ``f1_macro``, plain
    means over all classes of the schema, where a class that neither occurs nor is predicted counts 0 (scikit-learn's
    definition with all labels; torchmetrics leaves such classes out); ``balanced_accuracy``, the mean recall of the
    classes that occur. Of ordered classes also ``mean_absolute_error`` in steps, and ``quadratic_kappa``, Cohen's with
    quadratic weights (NaN where it is not defined). What would be a division by zero is 0.

    Args:
        matrix: counts ``(K, K)``, rows the truth; at least one image.
        ordinal: whether the classes are steps of a scale.
    """
    found = {"accuracy": float(np.trace(matrix) / matrix.sum())}
    for average in ("weighted", "macro"):
        shares = _precision_recall_f1(matrix, average)
        names = ("precision", "recall", "f1")
        found |= {f"{name}_{average}": float(share) for name, share in zip(names, shares[:3], strict=True)}
    _, recalls, _, images = _precision_recall_f1(matrix, None)
    found["balanced_accuracy"] = float(recalls[images > 0].mean())
    if ordinal:
        truth, guess = np.indices(matrix.shape)
        found["mean_absolute_error"] = float((np.abs(truth - guess) * matrix).sum() / matrix.sum())
        found["quadratic_kappa"] = _quadratic_kappa(matrix)
    return found


def per_class(matrix: NDArray[np.int64], classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``precision``, ``recall`` and ``f1`` of each class, and its ``images``; 0 where there is nothing to divide by."""
    precision, recall, f1, images = _precision_recall_f1(matrix, None)
    return {
        name: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "images": int(images[i]),
        }
        for i, name in enumerate(classes)
    }


def _precision_recall_f1(matrix: NDArray[np.int64], average: str | None) -> Any:
    """Precision, recall, F1 and support: numbers, or arrays by class where ``average`` is None."""
    truth, guess = np.nonzero(matrix)
    return precision_recall_fscore_support(
        truth,
        guess,
        labels=np.arange(len(matrix)),
        average=average,
        sample_weight=matrix[truth, guess],
        zero_division=0,
    )


def _quadratic_kappa(matrix: NDArray[np.int64]) -> float:
    truth, guess = np.nonzero(matrix)
    if len(set(truth) | set(guess)) < 2:
        return math.nan  # truth and predictions are one and the same class: chance alone agrees fully
    weight, labels = matrix[truth, guess], np.arange(len(matrix))
    return float(cohen_kappa_score(truth, guess, labels=labels, weights="quadratic", sample_weight=weight))
