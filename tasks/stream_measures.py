"""What is measured of several methods on one stream: errors by corruption and round, on clean probes, and costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from tasks.reporting import text_table
from vision.batches import StreamBatch
from vision.ecotta import Step
from vision.labels import IGNORED
from vision.measure import AdaptationProfile


class Score:
    """Wrong predictions and all of them; of pixels a confusion matrix.

    Args:
        classes: of the network.
        pixels: labels are pixel by pixel, and the error is one less the mean intersection over union.
    """

    def __init__(self, classes: int, pixels: bool) -> None:
        self.classes, self.pixels = classes, pixels
        self.matrix: Tensor = torch.zeros(classes, classes, dtype=torch.int64)
        self.wrong = self.total = 0

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Logits ``(B, C)`` and classes ``(B,)``, or ``(B, C, H, W)`` and ``(B, H, W)``."""
        if self.pixels:
            found = multiclass_confusion_matrix(logits.argmax(dim=1), target, self.classes, ignore_index=IGNORED)
            self.matrix += found.cpu()
        else:
            self.wrong += int((logits.argmax(dim=1) != target).sum())
        self.total += len(target)

    @property
    def error(self) -> float:
        """In [0, 1]; NaN where nothing was seen."""
        if not self.total:
            return float("nan")
        if not self.pixels:
            return self.wrong / self.total
        both = self.matrix.diagonal().double()
        union = self.matrix.sum(dim=0) + self.matrix.sum(dim=1) - both
        seen = union > 0
        return 1 - float((both[seen] / union[seen]).mean())


@dataclass
class MethodRecord:
    """One method's way through the stream.

    Attributes:
        scores: by (round, corruption).
        probes: on clean images, by the position of the stretch before.
        milliseconds: of each step.
        kept: share of the predictions that each step learned from.
        events: what the guard did: (step, words).
        profile: memory of a step, by the first batch.
    """

    scores: dict[tuple[int, str], Score] = field(default_factory=dict)
    probes: dict[int, Score] = field(default_factory=dict)
    milliseconds: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    profile: AdaptationProfile | None = None


class StreamMeasures:
    """Measures of several methods side by side.

    Args:
        methods: their names.
        classes: of the network.
    """

    def __init__(self, methods: Sequence[str], classes: int) -> None:
        self.classes = classes
        self.records = {name: MethodRecord() for name in methods}

    def add(self, name: str, batch: StreamBatch, logits: Tensor) -> None:
        """Adds a method's answers to a batch, which were given before it learned from the batch."""
        record, target = self.records[name], batch["target"]
        pixels = target.dim() > 1
        if batch["probe"]:
            record.probes.setdefault(batch["position"], Score(self.classes, pixels)).add(logits, target)
            return
        domains = np.array(batch["domain"])
        for domain in dict.fromkeys(batch["domain"]):
            chosen = torch.from_numpy(np.flatnonzero(domains == domain)).to(target.device)
            score = record.scores.setdefault((batch["round"], domain), Score(self.classes, pixels))
            score.add(logits[chosen], target[chosen])

    def note(self, name: str, step: Step, milliseconds: float) -> None:
        """Adds what a method said of its step, and the step's time."""
        record = self.records[name]
        record.milliseconds.append(milliseconds)
        record.kept.append(step.kept)
        if step.event is not None:
            record.events.append((len(record.kept) - 1, step.event))

    # ------------------------------------------------------------------------------------------------- the results
    def report(self) -> dict[str, dict[str, Any]]:
        """Every method's figures: errors in [0, 1], megabytes of 1e6 bytes, milliseconds."""
        return {name: self._of(record) for name, record in self.records.items()}

    def _of(self, record: MethodRecord) -> dict[str, Any]:
        rounds = sorted({number for number, _ in record.scores})
        domains = list(dict.fromkeys(domain for _, domain in record.scores))
        by_round = {
            number: {domain: score.error for (of, domain), score in record.scores.items() if of == number}
            for number in rounds
        }
        rounds_mean = [statistics.fmean(by_round[number].values()) for number in rounds]
        clean = [[position, score.error] for position, score in sorted(record.probes.items())]
        found: dict[str, Any] = {
            "error": statistics.fmean(rounds_mean) if rounds_mean else float("nan"),
            "error_by_round": rounds_mean,
            "error_by_corruption": {
                domain: statistics.fmean(errors[domain] for errors in by_round.values() if domain in errors)
                for domain in domains
            },
            "clean": clean,
            "clean_error_at_the_end": clean[-1][1] if clean else None,
            "ms": statistics.median(record.milliseconds) if record.milliseconds else float("nan"),
            "kept": statistics.fmean(record.kept) if record.kept else 0.0,
            "events": [{"step": step, "what": what} for step, what in record.events],
        }
        if record.profile is not None:
            found |= {
                "paper_mb": record.profile.paper_mb(),
                "held_mb": record.profile.held_mb,
                "trained_parameters": record.profile.trained,
            }
        return found


def method_table(report: dict[str, dict[str, Any]]) -> str:
    """The methods side by side, for the terminal."""
    rows = []
    for name, of in report.items():
        clean = [error for _, error in of["clean"]]
        rows.append(
            [
                name,
                f"{of['error']:.1%}",
                f"{of['error_by_round'][-1]:.1%}" if of["error_by_round"] else "",
                f"{clean[0]:.1%}" if clean else "",
                f"{clean[-1]:.1%}" if clean else "",
                f"{of['paper_mb']:.1f}" if "paper_mb" in of else "",
                f"{of['held_mb']:.1f}" if "held_mb" in of else "",
                f"{of['ms']:.1f}",
                str(len(of["events"])),
            ]
        )
    columns = ["", "error", "last round", "clean: first", "last", "paper MB", "held MB", "ms a step", "rollbacks"]
    return text_table(columns, rows)


def corruption_table(report: dict[str, dict[str, Any]]) -> str:
    """The error of every method on every corruption, over all rounds, for the terminal."""
    domains = list(dict.fromkeys(domain for of in report.values() for domain in of["error_by_corruption"]))
    rows = [
        [domain, *(f"{of['error_by_corruption'].get(domain, float('nan')):.1%}" for of in report.values())]
        for domain in domains
    ]
    return text_table(["", *report], rows)


COLOURS = ["#7b8794", "#b45309", "#b91c1c", "#7c3aed", "#0891b2", "#15803d", "#2563eb", "#db2777", "#4d7c0f"]


def forgetting_figure(report: dict[str, dict[str, Any]]) -> Figure:
    """Error on the stream by round, and on clean probes after each stretch."""
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, of), colour in zip(report.items(), COLOURS * len(report), strict=False):
        style = {"color": colour, "label": name, "linewidth": 2.2 if name == "ecotta" else 1.4}
        errors = [100 * error for error in of["error_by_round"]]
        left.plot(range(1, len(errors) + 1), errors, marker="o", markersize=3, **style)
        right.plot([position + 1 for position, _ in of["clean"]], [100 * error for _, error in of["clean"]], **style)
    left.set(title="corrupted images, as they come", xlabel="round", ylabel="error, %")
    right.set(title="clean images, no updates", xlabel="stretches of the stream adapted on", ylabel="error, %")
    left.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.grid(color="#e4e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, fontsize=9)
    return figure
