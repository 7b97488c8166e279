"""Measures of known and unknown, by hand and against the plainest way to count them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision.memspm.open_set import auroc, class_recalls, h3_score, harmonic, open_set_scores, oscr, private_nmi


def test_the_harmonic_mean():
    assert harmonic(0.5, 0.25) == pytest.approx(1 / 3)
    assert harmonic(0.5, 0.25, 1.0) == pytest.approx(3 / 7)
    assert harmonic(0.5, 0.0) == 0


# ---------------------------------------------------------------------------------------------- recalls and their H
#          class 0 (3 of 4 right)  class 1 (0 of 1)  private classes 3 and 5 (2 of 3)
LABELS = torch.tensor([0, 0, 0, 0, 1, 3, 3, 5])
ANSWERS = torch.tensor([0, 0, 0, 3, 0, 3, 1, 3])


def test_a_case_by_hand():
    """Of three known classes the third is the source's own: none of the target's pictures is of it."""
    assert class_recalls(LABELS, ANSWERS, 3) == {0: 0.75, 1: 0.0, 3: pytest.approx(2 / 3)}
    found = open_set_scores(LABELS, ANSWERS, 3)
    assert found["common"] == pytest.approx(0.375)
    assert found["common_micro"] == pytest.approx(3 / 5)
    assert found["unknown"] == pytest.approx(2 / 3)
    assert found["h"] == pytest.approx(2 * 0.375 * (2 / 3) / (0.375 + 2 / 3))
    assert found["h_micro"] == pytest.approx(2 * 0.6 * (2 / 3) / (0.6 + 2 / 3))
    assert found["average"] == pytest.approx((0.75 + 0 + 2 / 3) / 3)
    assert found["accuracy"] == pytest.approx(5 / 8)


def test_without_private_classes_there_is_no_h_but_an_accuracy():
    found = open_set_scores(LABELS[:5], ANSWERS[:5], 3)
    assert found["h"] is found["h_micro"] is found["unknown"] is None
    assert found["common"] == found["average"] == pytest.approx(0.375)
    assert found["accuracy"] == pytest.approx(0.6)


def test_without_common_classes_there_is_none_either():
    found = open_set_scores(LABELS[5:], ANSWERS[5:], 3)
    assert found["h"] is found["common"] is found["common_micro"] is None
    assert found["unknown"] == found["accuracy"] == pytest.approx(2 / 3)


def test_without_pictures_there_is_nothing():
    assert set(open_set_scores(LABELS[:0], ANSWERS[:0], 3).values()) == {None}


def test_h_is_0_where_nothing_is_rejected():
    assert open_set_scores(LABELS, LABELS.clamp(max=2), 3)["h"] == 0


# -------------------------------------------------------------------------------------------------------------- NMI
def test_nmi_of_private_classes_alone():
    """Known pictures lie in the midst of the private ones, and do not count."""
    labels = torch.tensor([0] * 6 + [3] * 6 + [4] * 6)
    noise = 0.05 * torch.randn(18, 4, generator=torch.Generator().manual_seed(0))
    apart = F.one_hot(torch.tensor([0, 1] * 3 + [0] * 6 + [1] * 6), 4) + noise
    assert private_nmi(labels, apart, 3) == pytest.approx(1)
    mixed = F.one_hot(torch.tensor([0, 1] * 9), 4) + noise
    assert private_nmi(labels, mixed, 3) == pytest.approx(0, abs=1e-9)
    assert private_nmi(labels[:6], apart[:6], 3) is None


def test_h3_is_the_harmonic_mean_of_three():
    scores = open_set_scores(LABELS, ANSWERS, 3)
    assert h3_score(scores, 0.5) == pytest.approx(3 / (1 / 0.375 + 3 / 2 + 2))
    assert h3_score(scores, None) is None
    assert h3_score(open_set_scores(LABELS[:5], ANSWERS[:5], 3), 0.5) is None


# --------------------------------------------------------------------------------------------------- ranked measures
def drawn(seed: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of 3 known classes and 2 others, predictions, and scores with ties, beyond [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (60,), generator=generator)
    predicted = torch.where(torch.rand(60, generator=generator) < 0.7, labels.clamp(max=2), 0)
    known = torch.randint(levels, (60,), generator=generator).double() - levels / 3 + (labels < 3)
    return labels, predicted, known


@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_auroc_counts_pairs(levels: int):
    labels, _, known = drawn(0, levels)
    wins = [
        1.0 if inside > outside else 0.5 if inside == outside else 0.0
        for inside in known[labels < 3].tolist()
        for outside in known[labels >= 3].tolist()
    ]
    assert auroc(labels, known, 3) == pytest.approx(sum(wins) / len(wins), abs=1e-6)


@pytest.mark.parametrize("levels", [1, 2, 7, 1000])
def test_oscr_is_the_area_under_its_curve(levels: int):
    labels, predicted, known = drawn(1, levels)
    inside, right = labels < 3, labels == predicted
    curve = [(0.0, 0.0)]
    for threshold in sorted(set(known.tolist()), reverse=True):
        let_through = known >= threshold
        false = float((let_through & ~inside).sum() / (~inside).sum())
        curve.append((false, float((let_through & inside & right).sum() / inside.sum())))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))
    assert oscr(labels, predicted, known, 3) == pytest.approx(area, abs=1e-6)


def test_only_the_order_of_scores_matters():
    labels, predicted, known = drawn(2, 1000)
    stretched = known.sign() * known.abs() ** 3 + 1e3
    assert auroc(labels, stretched, 3) == auroc(labels, known, 3)
    assert oscr(labels, predicted, stretched, 3) == oscr(labels, predicted, known, 3)


def test_what_is_ranked_without_one_of_both():
    labels, predicted, known = drawn(3, 1000)
    inside = labels < 3
    assert auroc(labels[inside], known[inside], 3) is None
    assert auroc(labels[~inside], known[~inside], 3) is None
    accuracy = float((labels == predicted)[inside].double().mean())
    assert oscr(labels[inside], predicted[inside], known[inside], 3) == pytest.approx(accuracy)
    assert oscr(labels[~inside], predicted[~inside], known[~inside], 3) is None


def test_equal_scores_tell_nothing():
    labels, predicted, known = drawn(4, 7)
    assert auroc(labels, torch.full_like(known, 3.0), 3) == pytest.approx(0.5)
    right = float((labels == predicted)[labels < 3].double().mean())
    assert oscr(labels, predicted, torch.full_like(known, 3.0), 3) == pytest.approx(right / 2)
