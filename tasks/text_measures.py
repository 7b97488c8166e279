"""What is measured of readings of words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from tasks.reporting import text_table
from vision.text import in_charset, normalised_distances

# The sets whose averages are published, by the names of their folders; where two sizes of a set are about, either.
COMMON = (("IIIT5k",), ("SVT",), ("IC13_857", "IC13_1015"), ("IC15_1811", "IC15_2077"), ("SVTP",), ("CUTE80",))
UNION = tuple(
    (name,) for name in ("curve", "multi_oriented", "artistic", "contextless", "salient", "multi_words", "general")
)
AVERAGES = ("accuracy_plain", "accuracy_weighted", "ned_plain", "ned_weighted")
GROUPS = {"common benchmarks": COMMON, "Union14M": UNION}


class WordScores(Metric):
    """Word accuracy and 1 - NED: readings and labels are both mapped to the charset before they are compared.

    Args:
        charset: whose case and characters count.
    """

    full_state_update = False
    words: Tensor
    right: Tensor
    distance: Tensor
    confidence: Tensor
    characters: Tensor

    def __init__(self, charset: str) -> None:
        super().__init__()
        self.charset = charset
        for name in ("words", "right", "distance", "confidence", "characters"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, readings: Sequence[str], labels: Sequence[str], confidence: Tensor) -> None:
        """Adds a batch: ``B`` readings, their labels, and confidences ``(B,)`` in [0, 1]."""
        pairs = [
            (in_charset(a, self.charset), in_charset(b, self.charset)) for a, b in zip(readings, labels, strict=True)
        ]
        self.words += len(pairs)
        self.right += sum(a == b for a, b in pairs)
        self.distance += (
            normalised_distances([a for a, _ in pairs], [b for _, b in pairs]).double().sum().to(self.distance)
        )
        self.confidence += confidence.double().sum().to(self.confidence)
        self.characters += sum(len(b) for _, b in pairs)

    def compute(self) -> dict[str, float]:
        """``words``, and the means ``accuracy``, ``ned`` (1 - NED), ``confidence`` and ``length``; NaN of none."""
        words = float(self.words)
        if not words:
            return {"words": 0.0, **dict.fromkeys(("accuracy", "ned", "confidence", "length"), float("nan"))}
        return {
            "words": words,
            "accuracy": float(self.right) / words,
            "ned": 1 - float(self.distance) / words,
            "confidence": float(self.confidence) / words,
            "length": float(self.characters) / words,
        }


def averages(measured: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The averages of the published tables: plain (OpenOCR's) and weighted by words (PARSeq's), in [0, 1].

    Args:
        measured: what :class:`WordScores` gave, by set.

    Returns:
        By table's name, for tables all of whose sets were measured; ``all`` over everything where there are several.
    """
    found: dict[str, list[Mapping[str, float]]] = {}
    for name, wanted in GROUPS.items():
        chosen = [next((measured[one] for one in either if one in measured), None) for either in wanted]
        if all(of is not None and of["words"] for of in chosen):
            found[name] = [of for of in chosen if of is not None]
    if len(measured) > 1:
        found["all"] = [of for of in measured.values() if of["words"]]
    return {name: _average(of) for name, of in found.items() if of}


def _average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    words = sum(row["words"] for row in rows)
    weighted = {key: sum(row[key] * row["words"] for row in rows) / words for key in ("accuracy", "ned")}
    plain = {key: sum(row[key] for row in rows) / len(rows) for key in ("accuracy", "ned")}
    return {"sets": len(rows), "words": words, **{f"{key}_plain": value for key, value in plain.items()}, **{
        f"{key}_weighted": value for key, value in weighted.items()
    }}  # fmt: skip


def report_text(report: Mapping[str, Any]) -> str:
    """What ``vision test`` prints: a row a set, then the averages."""

    def percent(value: float) -> str:
        return f"{100 * value:.2f}"

    rows = [
        [name, f"{of['words']:.0f}", percent(of["accuracy"]), percent(of["ned"]), f"{of['confidence']:.3f}"]
        for name, of in report["sets"].items()
    ]
    text = text_table(["set", "words", "accuracy, %", "1-NED, %", "confidence"], rows)
    means = [
        [name, f"{of['sets']:.0f}", f"{of['words']:.0f}", *(percent(of[key]) for key in AVERAGES)]
        for name, of in report["averages"].items()
    ]
    if means:
        columns = ["average over", "sets", "words", "accuracy, plain", "weighted", "1-NED, plain", "weighted"]
        text += "\n\n" + text_table(columns, means)
    return text
