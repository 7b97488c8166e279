"""Scores of views and pairs, and the shares of Mixup."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vision.vivit.scores import draw_share, joint_scores, mean_over_views, mix, smooth


def test_means_of_views_differ_by_what_is_averaged():
    """One view is sure of the first class, two lean to the second."""
    views = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    assert_close(mean_over_views(views), torch.tensor([[1.0, 2 / 3]]))
    sure, unsure = 1 / (1 + np.exp(-3)), 1 / (1 + np.exp(1))
    shares = mean_over_views(views, "softmax")
    assert shares[0, 0] == pytest.approx((sure + 2 * unsure) / 3)
    assert_close(shares.sum(dim=1), torch.ones(1))


def test_scores_of_pairs_by_hand():
    first, second = torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert_close(joint_scores(first, second), torch.tensor([[0.10, 0.06, 0.04, 0.40, 0.24, 0.16]]))


def test_smoothing_keeps_mixed_targets_distributions():
    targets = mix(torch.eye(4)[[0, 1, 2]], 0.7)
    assert_close(targets, torch.tensor([[0.7, 0, 0.3, 0], [0, 1, 0, 0], [0.3, 0, 0.7, 0]]))
    smoothed = smooth(targets, 0.2)
    assert_close(smoothed[0], torch.tensor([0.61, 0.05, 0.29, 0.05]))
    assert_close(smoothed.sum(dim=1), torch.ones(3))
    assert_close(smoothed, mix(smooth(torch.eye(4)[[0, 1, 2]], 0.2), 0.7), msg="the order does not matter")


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 5.0])
def test_shares_are_beta_distributed_and_follow_from_the_seed(alpha):
    shares = np.array([draw_share(alpha, seed) for seed in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
    assert draw_share(alpha, 5) == shares[5]
    assert len(set(shares.tolist())) > 3000


def test_shares_of_an_alpha_near_zero_are_one_or_the_other():
    shares = [draw_share(1e-5, seed) for seed in range(200)]
    assert all(0 <= share <= 1 for share in shares)
    assert sum(1e-6 < share < 1 - 1e-6 for share in shares) < 5
    assert 60 < sum(share > 0.5 for share in shares) < 140
