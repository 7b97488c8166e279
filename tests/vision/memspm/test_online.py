"""Clusters kept up with the batches: balance, groups that lie apart, dead centers, consensus."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from vision.memspm.online import SEED_ROWS, OnlineClusters, Queue, balanced_assignment

WIDTH, GROUPS, ROWS = 8, 4, 64


def about(axes: Tensor, seed: int, spread: float = 0.1) -> Tensor:
    """Unit rows about these axes."""
    noise = torch.randn(len(axes), WIDTH, generator=torch.Generator().manual_seed(seed))
    return F.normalize(torch.eye(WIDTH)[axes] + spread * noise, dim=1)


def followed(clusters: OnlineClusters, batches: int = 12) -> tuple[Tensor, Tensor]:
    """Batches of both domains in equal groups; the target's pictures and what group each is of."""
    of_target = torch.arange(ROWS) % GROUPS
    target = about(of_target, 100)
    for step in range(batches):
        generator = torch.Generator().manual_seed(step)
        index = torch.randperm(ROWS, generator=generator)[:32]
        labels = torch.arange(32) % 3  # classes 0 to 2; group 3 is the target's own
        clusters.update(about(labels, step), labels, target[index], index)
    return target, of_target


# ----------------------------------------------------------------------------------------------------- assignment
def test_assignment_is_sinkhorns():
    """Columns and rows of exponentials normalised in turn."""
    similarity = torch.rand(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = (similarity / 0.05).exp()
    for _ in range(3):
        plan = plan / plan.sum(dim=0)
        plan = plan / plan.sum(dim=1, keepdim=True)
    assert_close(balanced_assignment(similarity), plan.float())


def test_more_steps_balance_more():
    """All rows are nearest to the first center; in the end both have as many."""
    similarity = torch.stack([torch.linspace(0.5, 0.9, 10), torch.linspace(0.3, 0.4, 10)], dim=1)
    few, many = (balanced_assignment(similarity, steps) for steps in (1, 100))
    for plan in (few, many):
        assert_close(plan.sum(dim=1), torch.ones(10))
    assert_close(many.sum(dim=0), torch.tensor([5.0, 5.0]), atol=1e-3, rtol=0)
    assert many.argmax(dim=1).tolist() == [1] * 5 + [0] * 5


def test_opposite_directions_do_not_vanish():
    plan = balanced_assignment(torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]).repeat(20, 1))
    assert plan.isfinite().all()
    assert_close(plan.sum(dim=1), torch.ones(60))


# ---------------------------------------------------------------------------------------------------------- queues
def test_a_queue_forgets_the_oldest():
    queue = Queue(1, 5)
    for start in (0, 3, 6):
        numbers = torch.arange(start, start + 3)
        queue.put(numbers[:, None].float(), numbers)
        assert len(queue.features) == min(5, start + 3)
        assert sorted(queue.numbers.tolist()) == list(range(max(0, start - 2), start + 3))
        assert torch.equal(queue.features[:, 0].long(), queue.numbers)


# --------------------------------------------------------------------------------------------------------- clusters
def test_centers_wait_for_enough_features():
    clusters = OnlineClusters(8, WIDTH, ROWS)
    rows = about(torch.arange(8), 0)
    for put in range(1, SEED_ROWS + 1):
        assert not clusters.seeded
        clusters.update(rows, torch.zeros(8, dtype=torch.long), rows, torch.arange(8))
        assert clusters.seeded == (put == SEED_ROWS)
    assert set(clusters.codes.tolist()) == {-1}
    clusters.update(rows, torch.zeros(8, dtype=torch.long), rows, torch.arange(8))
    assert sorted(clusters.codes[:8].tolist()) == list(range(8))
    assert set(clusters.codes[8:].tolist()) == {-1}


def test_groups_that_lie_apart_are_found():
    clusters = OnlineClusters(GROUPS, WIDTH, ROWS)
    _, groups = followed(clusters)
    assert_close(clusters.centers.norm(dim=1), torch.ones(GROUPS))
    to_axis = clusters.centers.argmax(dim=1)
    assert sorted(to_axis.tolist()) == list(range(GROUPS))
    seen = clusters.codes >= 0
    assert seen.all()
    assert torch.equal(to_axis[clusters.codes], groups)


def test_a_center_moves_by_a_twentieth():
    clusters = OnlineClusters(2, WIDTH, 4)
    clusters.centers.copy_(torch.eye(WIDTH)[:2])
    turned = F.normalize(torch.eye(WIDTH)[:2] + 0.5 * torch.eye(WIDTH)[4:6], dim=1)
    rows = turned.repeat(2, 1)
    clusters.update(rows, torch.zeros(4, dtype=torch.long), rows, torch.arange(4))
    assert_close(clusters.centers, F.normalize(0.95 * torch.eye(WIDTH)[:2] + 0.05 * turned, dim=1), atol=1e-4, rtol=0)


def test_a_dead_center_begins_anew_where_a_feature_is_badly_placed():
    clusters = OnlineClusters(GROUPS, WIDTH, ROWS)
    target, groups = followed(clusters)
    dead = int(clusters.codes[groups == 2][0])
    clusters.centers[dead] = -F.normalize(torch.ones(WIDTH), dim=0)
    clusters.update(target, groups, target, torch.arange(ROWS))
    # Those of the third group are the ones without a center.
    assert int(clusters.centers[dead].argmax()) == 2
    assert set(clusters.codes[groups == 2].tolist()) == {dead}


def test_pictures_of_a_center_that_begins_anew_have_no_cluster_until_they_are_seen():
    clusters = OnlineClusters(GROUPS, WIDTH, ROWS)
    target, groups = followed(clusters)
    dead = int(clusters.codes[groups == 2][0])
    clusters.centers[dead] = -F.normalize(torch.ones(WIDTH), dim=0)
    kept = clusters.codes.clone()
    others = (groups != 2).nonzero().flatten()[:8]
    clusters.update(target[others], groups[others], target[others], others)
    assert set(clusters.codes[groups == 2].tolist()) == {-1}
    assert torch.equal(clusters.codes[groups != 2], kept[groups != 2])


def test_clusters_find_their_classes_and_one_stays_private():
    clusters = OnlineClusters(GROUPS, WIDTH, ROWS)
    followed(clusters)
    found = clusters.match(3)
    axes = clusters.centers.argmax(dim=1)
    assert found.pairs[:, 0].tolist() == [0, 1, 2]
    assert axes[found.pairs[:, 1]].tolist() == [0, 1, 2]
    assert found.score == pytest.approx(1)


def test_the_state_goes_on_where_it_was():
    clusters, again = OnlineClusters(GROUPS, WIDTH, ROWS), OnlineClusters(GROUPS, WIDTH, ROWS)
    target, groups = followed(clusters)
    again.load_state_dict(clusters.state_dict())
    for of in (clusters, again):
        of.update(target[:16], groups[:16], target[:16], torch.arange(16))
    for name, value in clusters.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_clusters_are_exact_in_low_precision():
    exact, low = OnlineClusters(GROUPS, WIDTH, ROWS), OnlineClusters(GROUPS, WIDTH, ROWS)
    followed(exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        followed(low)
    assert torch.equal(low.centers, exact.centers)
    assert torch.equal(low.codes, exact.codes)
