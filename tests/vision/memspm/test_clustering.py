"""Spherical k-means: groups that are there, clusters that lose their rows, starts and refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from vision.errors import InputError
from vision.memspm.clustering import spherical_kmeans


def _groups(sizes: tuple[int, ...], width: int = 8, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Rows around as many axes, of lengths between 1 and 5, and which group each is of."""
    generator = torch.Generator().manual_seed(0)
    of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    of = of[torch.randperm(len(of), generator=generator)]
    rows = torch.eye(width)[of] + noise * torch.randn(len(of), width, generator=generator)
    return rows * (1 + 4 * torch.rand(len(of), 1, generator=generator)), of


def _same_partition(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a[:, None] == a, b[:, None] == b)


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_are_apart_are_found(seed):
    rows, of = _groups((5, 40, 12, 20))
    found = spherical_kmeans(rows, 4, seed, restarts=5)
    assert _same_partition(found.codes, of)
    unit = F.normalize(rows, dim=1)
    for cluster in range(4):
        assert_close(found.centers[cluster], F.normalize(unit[found.codes == cluster].sum(dim=0), dim=0))
    assert found.similarity == pytest.approx(float((unit * found.centers[found.codes]).sum(dim=1).mean()))


def test_lengths_of_rows_make_no_difference():
    rows, _ = _groups((20, 20, 20), noise=0.5)
    found, longer = spherical_kmeans(rows, 5), spherical_kmeans(rows * torch.linspace(0.1, 9, 60)[:, None], 5)
    assert torch.equal(found.codes, longer.codes)
    assert_close(found.centers, longer.centers)


def test_more_restarts_are_never_worse_and_a_seed_always_finds_the_same():
    rows = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    found = [spherical_kmeans(rows, 9, 3, restarts).similarity for restarts in (1, 2, 4, 8)]
    assert found == sorted(found)
    assert found[-1] > found[0]
    state = torch.random.get_rng_state()
    assert spherical_kmeans(rows, 9, 3, 8).similarity == found[-1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_cluster_without_rows_takes_the_row_that_is_farthest_from_its_center():
    angles = torch.deg2rad(torch.tensor([0.0, 2.0, 4.0, 6.0, 60.0]))
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    start = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # nothing is on the second one's side
    found = spherical_kmeans(rows, 2, start=start)
    assert found.codes.tolist() == [0, 0, 0, 0, 1]
    assert_close(found.centers[1], rows[4])


def test_no_cluster_is_emptied_for_another():
    """The farthest row is all that its cluster has; the empty one takes the next."""
    rows = F.normalize(torch.tensor([[1.0, 0, 0], [1, 0.05, 0], [1, 0.3, 0], [0, 0, 1]]), dim=1)
    start = torch.tensor([[1.0, 0, 0], [0, 1, 1], [-1, 0, 0]])  # the last row is at 45 degrees from its center
    found = spherical_kmeans(rows, 3, start=start)
    assert found.codes.tolist() == [0, 0, 2, 1]


def test_many_lost_clusters_are_all_revived():
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    start = torch.cat([rows[:1], -torch.eye(5)[:1].expand(9, -1)])
    assert torch.bincount(spherical_kmeans(rows, 10, start=start).codes, minlength=10).min() >= 1


def test_a_warm_start_keeps_the_numbers_of_the_clusters():
    rows, of = _groups((10, 20, 30))
    order = [2, 0, 1]
    found = spherical_kmeans(rows, 3, start=7 * torch.eye(8)[order])
    assert torch.equal(torch.tensor(order)[found.codes], of)
    again = spherical_kmeans(rows, 3, start=found.centers, iterations=1)
    assert torch.equal(again.codes, found.codes)


def test_as_many_clusters_as_rows():
    rows, _ = _groups((3, 3), noise=0.3)
    found = spherical_kmeans(rows, 6)
    assert sorted(found.codes.tolist()) == list(range(6))
    assert found.similarity == pytest.approx(1)


@pytest.mark.parametrize("rows", [torch.ones(6, 3), torch.zeros(6, 3), torch.eye(3).repeat(2, 1)])
def test_fewer_kinds_of_rows_than_clusters(rows):
    found = spherical_kmeans(rows, 5)
    assert found.centers.isfinite().all()
    for a in range(6):
        assert [a_code for a_code, row in zip(found.codes, rows, strict=True) if torch.equal(row, rows[a])] == [
            found.codes[a]
        ] * int((rows == rows[a]).all(dim=1).sum())


@pytest.mark.parametrize("clusters", [0, 7])
def test_numbers_of_clusters_that_cannot_be(clusters):
    with pytest.raises(InputError) as caught:
        spherical_kmeans(torch.ones(6, 2), clusters)
    assert str(caught.value) == f"k-means: {clusters} clusters of 6 rows; at least 1 and at most a cluster a row"
