"""The target's clusters in training: how their centers move, and the cross entropy to them, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from vision.memspm.regulariser import NO_CLASS, TEMPERATURE, ClusterMemory, ramp


def memory(centers: list[list[float]], to_class: list[int] | None = None) -> ClusterMemory:
    clusters = ClusterMemory(len(centers[0]))
    clusters.set(torch.tensor(centers), None if to_class is None else torch.tensor(to_class))
    return clusters


def test_a_center_moves_by_its_cosine_to_the_batch():
    """Center (1, 0), features about (0.6, 0.8): a = 0.6, so 0.6 (1, 0) + 0.4 (0.6, 0.8) = (0.84, 0.32)."""
    clusters = memory([[1, 0], [0, 1]])
    clusters.update(torch.tensor([[0.6, 0.8], [0.6, 0.8]]), torch.tensor([0, 0]))
    moved = torch.tensor([0.84, 0.32]) / math.hypot(0.84, 0.32)
    assert_close(clusters.centers, torch.stack([moved, torch.tensor([0.0, 1.0])]))


def test_features_of_a_cluster_count_together():
    """Their sum is what is normalised, not each."""
    clusters = memory([[1, 0]])
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    clusters.update(features, torch.tensor([0, 0]))
    batch, share = torch.tensor([0.5, 0.5]).sqrt(), math.sqrt(0.5)
    assert_close(clusters.centers[0], F.normalize(share * torch.tensor([1.0, 0]) + (1 - share) * batch, dim=0))


def test_clusters_that_are_not_there_stay_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    clusters = ClusterMemory(16)
    clusters.set(torch.randn(7, 16, generator=generator))
    before, codes = clusters.centers.clone(), torch.tensor([2, 5, 5, 2, 5])
    clusters(torch.randn(5, 16, generator=generator), codes)
    present = torch.isin(torch.arange(7), codes)
    assert torch.equal(clusters.centers[~present], before[~present])
    assert not torch.isclose(clusters.centers[present], before[present]).all(dim=1).any()


def test_the_loss_is_to_the_centers_as_they_have_become():
    generator = torch.Generator().manual_seed(1)
    features, codes = torch.randn(6, 5, generator=generator, requires_grad=True), torch.tensor([0, 1, 1, 3, 0, 3])
    start = torch.randn(4, 5, generator=generator)
    clusters = memory(start.tolist())
    loss = clusters(features, codes)
    centers = F.normalize(start, dim=1)
    for code in (0, 1, 3):
        batch = F.normalize(F.normalize(features.detach()[codes == code], dim=1).sum(dim=0), dim=0)
        share = centers[code] @ batch
        centers[code] = F.normalize(share * centers[code] + (1 - share) * batch, dim=0)
    assert_close(clusters.centers, centers)
    by_hand = F.cross_entropy(F.normalize(features, dim=1) @ centers.T / 0.1, codes)
    assert_close(loss, by_hand)
    found, expected = (torch.autograd.grad(of, features)[0] for of in (loss, by_hand))
    assert_close(found, expected)
    # Nothing of a step's graph is left in the centers.
    assert not clusters.centers.requires_grad


def test_private_centers_of_the_source_are_further_wrong_answers():
    clusters = memory([[1, 0, 0]])
    feature, private = torch.tensor([[2.0, 0, 0]]), torch.tensor([[0.0, 3, 0]])
    assert float(clusters(feature, torch.tensor([0]))) == 0
    expected = math.log(math.exp(1 / TEMPERATURE) + 1) - 1 / TEMPERATURE
    assert float(clusters(feature, torch.tensor([0]), private)) == pytest.approx(expected, rel=1e-3)
    assert len(clusters) == 1


def test_no_feature_gives_a_loss_of_0_that_has_a_gradient():
    clusters, features = memory([[1, 0]]), torch.zeros(0, 2, requires_grad=True)
    loss = clusters(features, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0
    assert features.grad is not None


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_low_precision_leaves_the_centers_exact(precision: torch.dtype):
    generator = torch.Generator().manual_seed(2)
    start, features = torch.randn(3, 8, generator=generator), torch.randn(6, 8, generator=generator)
    codes = torch.tensor([0, 1, 2, 0, 1, 2])
    exact, low = memory(start.tolist()), memory(start.tolist())
    loss = exact(features, codes)
    with torch.autocast("cpu", dtype=precision):
        assert_close(low(features, codes), loss)
    assert torch.equal(low.centers, exact.centers)
    assert low(features.to(precision), codes).isfinite()


def test_which_clusters_are_which_classes():
    clusters = memory([[1, 0], [0, 2], [-1, 0], [0, -3]], [4, NO_CLASS, 1, NO_CLASS])
    assert clusters.matched.tolist() == [True, False, True, False]
    assert clusters.paired_classes.tolist() == [1, 4]
    assert_close(clusters.centers.norm(dim=1), torch.ones(4))
    clusters.set(torch.eye(2))
    assert clusters.to_class.tolist() == [NO_CLASS, NO_CLASS]


def test_a_state_with_more_clusters_is_loaded_after_making_room():
    trained = memory([[1, 0], [0, 1], [-1, 0]], [2, NO_CLASS, 0])
    state: dict[str, Tensor] = {f"clusters.{name}": value for name, value in trained.state_dict().items()}
    fresh = ClusterMemory(2)
    fresh.resize(state)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.centers, trained.centers)
    assert torch.equal(fresh.to_class, trained.to_class)
    fresh.resize({})
    assert len(fresh) == 3


def test_the_ramp_is_that_of_the_code():
    assert [round(ramp(step), 3) for step in (0, 3000, 5000)] == [0.050, 0.301, 1.0]
    assert ramp(50, 100) == pytest.approx(math.exp(-1.5))
