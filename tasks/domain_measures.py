"""What is measured of domain adaptation: every rule of rejection on the same predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from tasks.reporting import text_table
from vision.labels import MISSING
from vision.memspm.health import Health
from vision.memspm.open_set import Scores, auroc, class_recalls, h3_score, open_set_scores, oscr, private_nmi
from vision.memspm.rejection import RULES, SCORES, Cut, Rule

COLUMNS = ("h", "h3", "common", "unknown", "h_micro", "average", "accuracy", "auroc", "oscr")


class OpenSetScores(Metric):
    """Recall of known classes and of the unknown, their harmonic means, and what needs no threshold.

    Pictures without a label are left out.

    Args:
        classes: how many are known; labels from there on are private to the target.
        width: of the features.
    """

    full_state_update = False
    labels: list[Tensor]
    predicted: list[Tensor]
    scores: list[Tensor]
    features: list[Tensor]

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes, self.width = classes, width
        for name in ("labels", "predicted", "scores", "features"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, labels: Tensor, predicted: Tensor, scores: Tensor, features: Tensor) -> None:
        """Adds a batch.

        Args:
            labels: int64 ``(B,)``, -1 for none.
            predicted: int64 ``(B,)``, without rejection.
            scores: ``(B, 4)``, see :mod:`vision.memspm.rejection`.
            features: ``(B, D)``, for NMI.
        """
        labelled = labels != MISSING
        for name, values in (("labels", labels), ("predicted", predicted), ("scores", scores), ("features", features)):
            getattr(self, name).append(
                values[labelled].detach().float() if values.is_floating_point() else values[labelled]
            )

    def compute(self) -> dict[str, Tensor]:
        """The pictures of all processes, by the names of ``update``'s arguments."""
        return {name: dim_zero_cat(getattr(self, name)).cpu() for name in ("labels", "predicted", "scores", "features")}

    def measure(self, cuts: Mapping[Rule, Cut]) -> dict[str, dict[str, Any]]:
        """The measures of every rule, shares in [0, 1], None where nothing is to be measured; empty without labels.

        Args:
            cuts: by the rules' names.
        """
        if not self.update_called:  # other processes may have pictures, and wait for this one
            none = torch.zeros(0, device=self.device)
            self.update(none.long(), none.long(), none.view(0, len(SCORES)), none.view(0, self.width))
        found = self.compute()
        labels, predicted = found["labels"], found["predicted"]
        if not len(labels):
            return {}
        nmi = private_nmi(labels, found["features"], self.classes)
        measured: dict[str, dict[str, Any]] = {}
        for rule, cut in cuts.items():
            sums = found["scores"].double() @ torch.from_numpy(cut.weights)
            answers = torch.where(sums > cut.threshold, predicted, torch.full_like(predicted, self.classes))
            scores: Scores = open_set_scores(labels, answers, self.classes)
            measured[rule] = {
                **scores,
                "h3": h3_score(scores, nmi),
                "nmi": nmi,
                "auroc": auroc(labels, sums, self.classes) if cut.weights.any() else None,
                "oscr": oscr(labels, predicted, sums, self.classes) if cut.weights.any() else None,
                "recall_by_class": class_recalls(labels, answers, self.classes),
                "rejected": float((sums <= cut.threshold).double().mean()),
                "weights": cut.weights.tolist(),
                "threshold": cut.threshold,
            }
        return measured


def rules_table(measured: Mapping[Rule, Mapping[str, Any]], chosen: Rule) -> str:
    """The measures by rule, for the terminal, in percent; the rule that the checkpoint has is marked."""
    shown = [name for name in COLUMNS if any(of[name] is not None for of in measured.values())]
    rows = [
        [f"{'* ' if rule == chosen else '  '}{RULES[rule]}", *(percent(of[name]) for name in shown)]
        for rule, of in measured.items()
    ]
    return text_table(["  unknown is what has", *(name.replace("_", " ") for name in shown)], rows)


def percent(share: float | None) -> str:
    """A share for a table."""
    return "-" if share is None else f"{share:.1%}"


def report_text(report: Mapping[str, Any]) -> str:
    """The terminal's account of ``adaptation.json``."""
    lines = []
    if report["rules"]:
        lines.append(rules_table(report["rules"], report["rule"]))
        recalls = report["rules"][report["rule"]]["recall_by_class"]
        names = [*report["classes"], "unknown"]
        lines.append("recall: " + ", ".join(f"{names[c]} {percent(share)}" for c, share in recalls.items()))
    else:
        lines.append("the target has no labels, so nothing could be measured; 'vision predict' writes the answers")
    if report["rule"] == "none" and not report["rejects"]:
        lines.append(f"nothing is rejected in the setting {report['setting']}")
    if (found := report["clusters"]) is not None:
        lines.append(f"target clusters: {found['with_a_class']} with a class, {found['without']} without")
    if (memory := report["memory"]) is not None:
        lines.append(f"memory: {Health(**memory)}")
    return "\n".join(lines)


class DomainPrediction(TypedDict):
    """What ``predict_step`` gives for a batch.

    Keys:
        path: the files, ``B`` strings.
        classes: int64 ``(B,)``; the number of classes stands for unknown.
        scores: float64 ``(B,)``: how far above the cut; unknown is what is not above 0.
        rows: int64 ``(B, K)``: the sub-prototypes, the heaviest first; ``(B, 0)`` without a memory.
        weights: ``(B, K)``: theirs.
    """

    path: list[str]
    classes: Tensor
    scores: Tensor
    rows: Tensor
    weights: Tensor


def prediction_rows(outputs: DomainPrediction, class_names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """A header and a row a picture: class or unknown, score, and the sub-prototypes with their weights."""
    names = [*class_names, "unknown"]
    rows = []
    for number, path in enumerate(outputs["path"]):
        made_of = zip(outputs["rows"][number].tolist(), outputs["weights"][number].tolist(), strict=True)
        rows.append(
            [
                path,
                names[int(outputs["classes"][number])],
                f"{float(outputs['scores'][number]):.4f}",
                " ".join(f"{row}:{weight:.3f}" for row, weight in made_of),
            ]
        )
    return ["path", "class", "score", "sub_prototypes"], rows
