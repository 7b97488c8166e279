"""What is measured and told of domain adaptation, on a case of eight pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.domain_measures import OpenSetScores, percent, prediction_rows, report_text, rules_table
from vision.memspm.health import Health
from vision.memspm.rejection import SCORES, Cut, Rule

# Two known classes; 2 and 3 are private to the target, -1 has no label.
LABELS = torch.tensor([0, 0, 1, -1, 2, 3, 3, 1])
PREDICTED = torch.tensor([0, 1, 1, 0, 0, 1, 1, 1])
CONFIDENCE = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.6, 0.2, 0.3, 0.4])
NOTHING: Cut = Cut(np.zeros(4), -1.0)
HALF: Cut = Cut(np.eye(4)[SCORES.index("confidence")], 0.5)


def scores() -> Tensor:
    found = torch.full((8, 4), 0.3)
    found[:, SCORES.index("confidence")] = CONFIDENCE
    return found


def measured(order: list[slice], cuts: dict[Rule, Cut] | None = None) -> dict:
    measures = OpenSetScores(2, 8)
    features = torch.eye(8)[LABELS.clamp(min=0)]
    for of in order:
        measures.update(LABELS[of], PREDICTED[of], scores()[of], features[of])
    return measures.measure(cuts or {"none": NOTHING, "half_log_c": HALF})


def test_every_rule_on_the_same_predictions():
    """Above 0.5 are the pictures 0, 1, 2 and 4: right are 0 and 2, and the unknown 5 and 6."""
    found = measured([slice(0, 8)])
    assert list(found) == ["none", "half_log_c"]
    half = found["half_log_c"]
    assert half["recall_by_class"] == {0: 0.5, 1: 0.5, 2: pytest.approx(2 / 3)}
    assert half["common"] == pytest.approx(0.5)
    assert half["unknown"] == pytest.approx(2 / 3)
    assert half["h"] == pytest.approx(2 / (2 + 3 / 2))
    assert half["nmi"] == pytest.approx(1)
    assert half["h3"] == pytest.approx(3 / (2 + 3 / 2 + 1))
    assert half["accuracy"] == pytest.approx(4 / 7)
    assert half["rejected"] == pytest.approx(3 / 7)
    # Known pictures .9 .8 .7 .4, others .6 .2 .3: 11 of 12 pairs are in order.
    assert half["auroc"] == pytest.approx(11 / 12)
    assert half["threshold"] == 0.5
    assert half["weights"] == HALF.weights.tolist()


def test_without_a_score_there_is_no_ranking():
    none = measured([slice(0, 8)])["none"]
    assert none["auroc"] is none["oscr"] is None
    assert none["h"] == none["unknown"] == none["rejected"] == 0
    assert none["common"] == pytest.approx(0.75)


def test_batches_and_unlabelled_ones_make_no_difference():
    assert measured([slice(0, 3), slice(3, 4), slice(4, 8)]) == measured([slice(0, 8)])


def test_without_labels_nothing_is_measured():
    assert measured([]) == {}
    assert measured([slice(3, 4)]) == {}


def test_without_private_classes_there_is_an_accuracy():
    found = measured([slice(0, 4)])["half_log_c"]
    assert found["h"] is found["h3"] is found["nmi"] is found["auroc"] is None
    assert found["accuracy"] == found["oscr"] == pytest.approx(2 / 3)


def test_a_reset_forgets():
    measures = OpenSetScores(2, 8)
    measures.update(LABELS, PREDICTED, scores(), torch.eye(8))
    measures.reset()
    assert measures.measure({"half_log_c": HALF}) == {}


# ------------------------------------------------------------------------------------------------------- the report
def test_the_table_marks_the_checkpoints_rule_and_leaves_out_what_no_rule_has():
    lines = rules_table(measured([slice(0, 4)]), "half_log_c").splitlines()
    assert lines[0].split() == ["unknown", "is", "what", "has", "common", "average", "accuracy", "oscr"]
    assert lines[1].startswith("  nothing is unknown ")
    assert lines[1].endswith("-")
    assert lines[2].startswith("* entropy above half of log C ")
    assert lines[2].endswith("66.7%")


def report(**changed) -> dict:
    return {
        "method": "memspm",
        "setting": "unida",
        "rejects": True,
        "rule": "half_log_c",
        "classes": ["cat", "dog"],
        "clusters": {"with_a_class": 2, "without": 3},
        "memory": Health(40, 160, 0.9).as_dict(),
        "rules": measured([slice(0, 8)]),
        **changed,
    }


def test_the_account_of_a_report():
    lines = report_text(report()).splitlines()
    memory = "memory: 40 of 160 sub-prototypes used, class purity 0.90: the memory has collapsed "
    assert lines[-3:] == [
        "recall: cat 50.0%, dog 50.0%, unknown 66.7%",
        "target clusters: 2 with a class, 3 without",
        memory + "(begin it from the data, at a lower temperature)",
    ]
    assert lines[0].split()[3:6] == ["has", "h", "h3"]


def test_the_account_where_there_is_less():
    short = report(rules={}, clusters=None, memory=None)
    assert report_text(short) == (
        "the target has no labels, so nothing could be measured; 'vision predict' writes the answers"
    )
    closed = report_text(report(rules={}, rule="none", rejects=False, setting="pda", clusters=None, memory=None))
    assert closed.splitlines()[-1] == "nothing is rejected in the setting pda"


def test_shares_for_a_table():
    assert [percent(share) for share in (None, 0.0, 0.12345, 1.0)] == ["-", "0.0%", "12.3%", "100.0%"]


# ------------------------------------------------------------------------------------------------------- predictions
def test_rows_of_predictions():
    outputs = {
        "path": ["a b.png", "c.png"],
        "classes": torch.tensor([1, 2]),
        "scores": torch.tensor([0.25, -0.00004], dtype=torch.float64),
        "rows": torch.tensor([[17, 4], [0, 159]]),
        "weights": torch.tensor([[0.75, 0.25], [0.6, 0.4]]),
    }
    header, rows = prediction_rows(outputs, ["cat", "dog"])
    assert header == ["path", "class", "score", "sub_prototypes"]
    assert rows == [
        ["a b.png", "dog", "0.2500", "17:0.750 4:0.250"],
        ["c.png", "unknown", "-0.0000", "0:0.600 159:0.400"],
    ]
    without = {**outputs, "rows": torch.zeros(2, 0, dtype=torch.long), "weights": torch.zeros(2, 0)}
    assert [row[3] for row in prediction_rows(without, ["cat", "dog"])[1]] == ["", ""]
