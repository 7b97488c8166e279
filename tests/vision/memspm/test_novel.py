"""How many classes unknown pictures are of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vision.memspm.novel import suggest_classes


def bundles(sizes: list[int], spread: float = 0.05, width: int = 8) -> tuple[Tensor, Tensor]:
    """Directions about axes that are at right angles, shuffled, and which axis each is of."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    rows = torch.eye(width)[labels] + spread * torch.randn(len(labels), width, generator=generator)
    return F.normalize(rows, dim=1), labels


@pytest.mark.parametrize("sizes", [[30, 20], [12, 40, 25], [9, 8, 7, 6, 5]])
def test_bundles_that_lie_apart_are_found_the_largest_first(sizes):
    rows, labels = bundles(sizes)
    found = suggest_classes(rows)
    order = torch.tensor(sizes).argsort(descending=True)
    assert torch.equal(order[found.codes], labels)
    assert torch.bincount(found.codes).tolist() == sorted(sizes, reverse=True)
    assert found.centers.shape == (len(sizes), 8)
    assert torch.allclose(found.centers, torch.eye(8)[order], atol=0.1)
    assert torch.allclose(found.centers.norm(dim=1), torch.ones(len(sizes)))
    assert max(found.silhouettes, key=lambda number: found.silhouettes[number]) == len(sizes)
    assert list(found.silhouettes) == list(range(2, 11))


def test_one_cloud_is_one_class():
    cloud = F.normalize(torch.randn(200, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    found = suggest_classes(cloud)
    assert set(found.codes.tolist()) == {0}
    assert len(found.centers) == 1
    assert max(found.silhouettes.values()) < 0.1


def test_fewer_than_ten_pictures_are_not_divided():
    rows, labels = bundles([5, 5])
    assert torch.equal(suggest_classes(rows).codes == suggest_classes(rows).codes[0], labels == labels[0])
    found = suggest_classes(rows[:9])
    assert found.codes.tolist() == [0] * 9
    assert found.silhouettes == {}


def test_no_picture_has_no_class():
    found = suggest_classes(torch.zeros(0, 8))
    assert found.codes.shape == (0,)
    assert found.codes.dtype == torch.long
    assert found.centers.shape == (0, 8)


def test_equal_pictures():
    same = F.normalize(torch.ones(20, 4), dim=1)
    assert suggest_classes(same).codes.tolist() == [0] * 20
    two = torch.eye(4)[torch.tensor([0] * 7 + [1] * 13)]
    assert suggest_classes(two).codes.tolist() == [1] * 7 + [0] * 13


def test_more_rows_than_the_number_is_found_with_and_a_limit():
    rows, labels = bundles([1500, 900, 700])
    found = suggest_classes(rows, largest=4)
    assert torch.equal(found.codes, labels)
    assert list(found.silhouettes) == [2, 3, 4]
    again = suggest_classes(rows, largest=4)
    assert found.silhouettes == again.silhouettes
    assert len(suggest_classes(rows, largest=2).centers) == 2
