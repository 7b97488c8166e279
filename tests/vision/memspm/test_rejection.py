"""What is unknown: the scores and where they are cut, by hand."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vision.memspm.rejection import (
    NEEDS,
    RULES,
    SCORES,
    Rejection,
    Rule,
    cluster_margin,
    confidence,
    find_cut,
    otsu,
)


def scores(**columns: list[float]) -> Tensor:
    """``(n, 4)``, of which what is not given is 0.3."""
    number = len(next(iter(columns.values())))
    return torch.stack([torch.tensor(columns.get(name, [0.3] * number)) for name in SCORES], dim=1)


def known(rule: Rule, given: Tensor, of: Tensor | None = None) -> list[bool]:
    """What a rule found on ``given`` says of ``of``, the same by default."""
    rejection = Rejection()
    rejection.set(find_cut(rule, given))
    return (rejection(given if of is None else of) > 0).tolist()


# ------------------------------------------------------------------------------------------------------- the scores
def test_confidence_is_1_less_the_entropy_of_its_largest():
    even = torch.zeros(1, 4)
    two = torch.tensor([[0.0, 0.0, -1000.0, -1000.0]])
    sure = torch.tensor([[1000.0, 0.0, 0.0, 0.0]])
    assert_close(confidence(torch.cat([even, two, sure])), torch.tensor([0.0, 0.5, 1.0]))
    assert confidence(torch.zeros(2, 1)).tolist() == [1.0, 1.0]


def test_the_margin_between_clusters_with_a_class_and_without():
    centers = torch.eye(3)
    unit = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]])
    found = cluster_margin(unit, centers, torch.tensor([True, False, False]))
    assert_close(found, torch.tensor([-0.2, -0.8]))
    assert_close(cluster_margin(unit, centers, torch.tensor([True, True, True])), torch.tensor([1.8, 1.8]))
    assert_close(cluster_margin(unit, centers, torch.tensor([False] * 3)), torch.tensor([-1.8, -1.8]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = cluster_margin(unit, centers, torch.tensor([True, False, False]))
    assert torch.equal(low, found)


# -------------------------------------------------------------------------------------------------------- the rules
def test_rules_with_a_fixed_cut():
    values = [-0.2, 0.0, 0.1, 0.5, 0.6]
    assert known("cluster", scores(margin=values)) == [False, False, True, True, True]
    assert known("half_log_c", scores(confidence=values)) == [False, False, False, False, True]
    assert known("one_vs_all", scores(one_vs_all=values)) == [False, False, False, False, True]
    assert known("none", scores(margin=values)) == [True] * 5


@pytest.mark.parametrize("rule", [rule for rule, needed in NEEDS.items() if len(needed) == 1])
def test_a_rule_of_one_score_looks_at_no_other(rule: Rule):
    (name,) = NEEDS[rule]
    weights = find_cut(rule, torch.rand(20, 4, generator=torch.Generator().manual_seed(0))).weights
    assert [of for of, weight in zip(SCORES, weights, strict=True) if weight > 0] == [name]


@pytest.mark.parametrize(("rule", "name"), [("otsu", "confidence"), ("usage", "usage")])
def test_otsu_cuts_between_two_heaps(rule: Rule, name: str):
    heaps = [0.1, 0.12, 0.15, 0.8, 0.82, 0.85, 0.9]
    assert known(rule, scores(**{name: heaps})) == [False] * 3 + [True] * 4


def test_otsus_threshold_has_the_largest_variance_between_both_sides():
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0.2, 0.1, 80), random.normal(0.7, 0.1, 40)])

    def between(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(value) for value in sorted(values)[:-1])
    assert between(otsu(values)) == pytest.approx(best)


def test_otsus_threshold_is_in_the_middle_of_the_gap():
    assert otsu(np.array([0.4, -0.5, 0.5, -0.4])) == pytest.approx(0)


def test_fused_scores_count_alike_whatever_their_scale():
    usage, margin = [0.1, 0.1, 0.9, 0.9, 0.9, 0.1], [0.002, 0.001, 0.009, 0.008, 0.001, 0.009]
    given = scores(usage=usage, margin=margin)
    expected = [1 / np.std(usage), 1 / np.std(margin), 0, 0]
    assert find_cut("fused", given).weights == pytest.approx(expected, rel=1e-4)
    assert known("fused", given)[:4] == [False, False, True, True]
    found = find_cut("cluster_otsu", scores(margin=margin, confidence=usage))
    assert found.weights == pytest.approx([0, expected[1], expected[0], 0], rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- blend
def test_domains_that_share_everything_are_cut_by_usage_alone():
    """A mean usage score of 1/2 is w = 1: three of the eight are below, and those are cut off."""
    usage = [0.10, 0.15, 0.20, 0.70, 0.71, 0.70, 0.72, 0.72]
    margin = [0.9, -0.9, 0.8, -0.8, 0.7, -0.7, 0.6, -0.6]
    assert sum(usage) == pytest.approx(4)
    found = find_cut("blend", scores(usage=usage, margin=margin))
    assert found.weights[1] == pytest.approx(0, abs=1e-6)
    assert known("blend", scores(usage=usage, margin=margin)) == known("usage", scores(usage=usage))
    assert known("usage", scores(usage=usage)) == [False] * 3 + [True] * 5


def test_domains_that_share_nothing_are_cut_by_clusters_and_confidence():
    margin, sure = [-0.3, -0.2, 0.3, 0.4, 0.5], [0.1, 0.3, 0.8, 0.9, 0.8]
    given = scores(usage=[0.0] * 5, margin=margin, confidence=sure)
    assert find_cut("blend", given).weights == pytest.approx([0, 1 / np.std(margin), 1 / np.std(sure), 0], rel=1e-4)
    assert known("blend", given) == known("cluster_otsu", given) == [False] * 2 + [True] * 3


def test_in_between_both_count_by_how_much_is_shared():
    """Mean usage 1/4, so w = 1/2; usage cuts off 3 of 4, the margin 1 of 4: together 2."""
    usage, margin = [0.1, 0.1, 0.1, 0.7], [-0.9, 0.5, 0.55, 0.5]
    found = find_cut("blend", scores(usage=usage, margin=margin))
    assert found.weights == pytest.approx([0.5 / np.std(usage), 0.5 / np.std(margin), 0, 0], rel=1e-4)
    assert known("blend", scores(usage=usage, margin=margin)) == [False, False, True, True]


# ------------------------------------------------------------------------------------------------------ poor scores
@pytest.mark.parametrize("rule", get_args(Rule))
def test_nothing_is_rejected_where_all_pictures_look_alike(rule: Rule):
    alike = torch.tensor([[0.4, 0.2, 0.6, 0.7]]).repeat(5, 1)
    assert known(rule, alike) == [True] * 5
    assert known(rule, alike + 1e-8 * torch.rand(5, 4, generator=torch.Generator().manual_seed(0))) == [True] * 5


@pytest.mark.parametrize("rule", ["fused", "cluster_otsu", "blend"])
def test_scores_that_cancel_out_reject_nothing(rule: Rule):
    """Of two pictures, each is as far above the mean by one score as below by the other, but for rounding."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        low, high = torch.rand(2, generator=generator).sort().values.tolist()
        opposed = scores(usage=[low / 2, high / 2], margin=[high, low], confidence=[low, high])
        if rule == "blend":
            opposed[:, 0] = 0.25
        assert known(rule, opposed) == [True, True]


@pytest.mark.parametrize("rule", get_args(Rule))
def test_no_picture_and_one_picture(rule: Rule):
    assert known(rule, torch.zeros(0, 4), of=torch.tensor([[0.5, 0.5, 0.6, 0.6]])) == [True]
    assert known(rule, torch.tensor([[0.5, 0.5, 0.6, 0.6]])) == [True]


def test_a_score_that_is_equal_for_all_does_not_count():
    margin = [-0.5, -0.5, 0.4, 0.5]
    assert find_cut("fused", scores(margin=margin)).weights.tolist()[0] == 0
    assert known("fused", scores(margin=margin)) == [False, False, True, True]


def test_the_cut_is_in_the_state_and_every_rule_has_words():
    rejection, again = Rejection(), Rejection()
    assert rejection(torch.rand(3, 4)).tolist() == [1, 1, 1]
    rejection.set(find_cut("fused", torch.rand(30, 4, generator=torch.Generator().manual_seed(0))))
    again.load_state_dict(rejection.state_dict())
    given = torch.rand(5, 4)
    assert torch.equal(again(given), rejection(given))
    assert rejection(given).dtype == torch.float64
    assert set(RULES) == set(get_args(Rule)) == {*NEEDS, "none"}
    assert math.isfinite(float(rejection.threshold))
