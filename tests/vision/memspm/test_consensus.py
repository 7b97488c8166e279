"""Clusters and classes that match: by hand, in the search for their number, and what follows for every picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from vision.errors import InputError
from vision.memspm.consensus import Matching, class_centers, dropping, match, search_clusters, settled
from vision.memspm.grouping import ClusterOptions, group


def _at(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_centers_of_classes_are_those_of_directions():
    features = torch.cat([_at(0), 9 * _at(90), _at(200)])  # a long feature counts as one
    centers = class_centers(features, torch.tensor([1, 1, 2]), 4)
    assert_close(centers[1:3], _at(45, 200))
    assert not centers[[0, 3]].any()


def test_a_matching_by_hand():
    """Classes at 0, 90 and 200 degrees; clusters at 85, 10 and 130, of which the last has no class nearer to it."""
    source, labels = _at(-5, 5, 40, 80, 120, 190, 210), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    target, codes = _at(5, 15, 80, 95, 50, 30, 125, 150), torch.tensor([1, 1, 0, 0, 0, 0, 2, 2])
    found = match(source, labels, _at(0, 90, 200), target, codes, 3 * _at(85, 10, 130))
    assert found.pairs.tolist() == [[0, 1], [1, 0]]
    # All of class 0 are nearest to the cluster at 10; of class 1 the one at 120 is nearer to the cluster at 130.
    assert found.source_share.tolist() == [1.0, 0.5]
    # Of the cluster at 85 the one at 30 is nearer to class 0.
    assert found.target_share.tolist() == [1.0, 0.75]
    assert found.score == pytest.approx((1 + (0.5 + 0.75) / 2) / 2)


def test_a_class_without_pictures_is_in_no_pair():
    """Its center is nothing, and a cluster that no class is like has a larger cosine to nothing than to them."""
    source, labels = _at(0, 10, 90), torch.tensor([1, 1, 2])
    target, codes = _at(225, 5, 95, 96, 226), torch.tensor([0, 1, 2, 2, 0])
    centers = class_centers(source, labels, 4)
    found = match(source, labels, centers, target, codes, class_centers(target, codes, 3))
    assert found.pairs.tolist() == [[1, 1], [2, 2]]
    assert found.score == 1
    # Nor does it take the only cluster from a class that is not like it either.
    alone = match(_at(0, 10), torch.tensor([1, 1]), class_centers(_at(0, 10), torch.tensor([1, 1]), 2),
                  _at(120, 130), torch.tensor([0, 0]), _at(125))  # fmt: skip
    assert alone.pairs.tolist() == [[1, 0]]
    assert alone.score == 1
    nothing = match(source[:0], labels[:0], torch.zeros(4, 2), target, codes, class_centers(target, codes, 3))
    assert nothing.pairs.shape == (0, 2)
    assert nothing.score == 0


def test_scores_drop_where_none_of_the_last_four_rises():
    assert dropping([0.1, 0.9, 0.8, 0.8, 0.7])
    assert not dropping([0.1, 0.9, 0.8, 0.7])
    assert not dropping([0.9, 0.8, 0.7])
    assert dropping([0.9, 0.5, 0.6, 0.7], consecutive=False)
    assert dropping([0.9, 0.5], length=2)
    assert settled([5, 9, 9])
    assert not settled([9, 9, 5])
    assert not settled([9])


# ------------------------------------------------------------------------------------------------------------ search
def _domains(noise: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Classes 0 to 3 of the source, and the target's 0, 1, 2, 5 and 6, around axes; 12 pictures of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(12)
    truth = torch.tensor([0, 1, 2, 5, 6]).repeat_interleave(12)
    rows = [torch.eye(8)[of] + noise * torch.randn(len(of), 8, generator=generator) for of in (labels, truth)]
    source, target = (F.normalize(part, dim=1) for part in rows)
    return source, labels, target, truth


def test_the_search_finds_the_targets_groups_and_which_are_common():
    source, labels, target, truth = _domains(0.1)
    found = search_clusters(source, labels, 4, target, interval=1, restarts=5)
    assert found.scores[0][0] == 4
    assert found.matching.score == max(score for _, score in found.scores) == 1
    to_class = group(found.matching, labels, found.clusters.codes, len(found.clusters.centers), least=3).to_class
    taken_for = to_class[found.clusters.codes]
    common = truth < 4
    assert torch.equal(taken_for[common], truth[common])
    assert not torch.isin(taken_for[~common], truth[common]).any()


@pytest.mark.parametrize(
    ("options", "tried"),
    [
        ({"interval": 3, "max_search": 2.0}, [4, 7]),
        ({"interval": 2, "max_search": 2.0}, [4, 6, 8]),
        ({"interval": 1, "max_search": 1.0}, [4]),
        ({"interval": 1, "max_search": 1.5, "smallest": 2}, [2, 3, 4, 5, 6]),
        ({"interval": 28, "max_search": 100.0}, [4, 32, 60]),  # as many as there are pictures
    ],
)
def test_which_numbers_are_tried(options, tried):
    source, labels, target, _ = _domains(0.4)
    found = search_clusters(source, labels, 4, target, **options)
    counts = [count for count, _ in found.scores]
    assert counts == tried[: len(counts)]
    assert len(counts) == len(tried) or dropping([score for _, score in found.scores])
    assert len(found.clusters.centers) in counts


def test_the_search_ends_where_scores_drop_and_the_rules_choose():
    """DCC's code takes the first of the last four scores, which need not be the best."""
    different = 0
    for seed in range(6):
        source, labels, target, _ = _domains(0.35, seed)
        best, last = (
            search_clusters(source, labels, 4, target, interval=1, max_search=9, rule=rule, restarts=2)
            for rule in ("best", "last_drop")
        )
        assert best.scores == last.scores
        scores = [score for _, score in best.scores]
        assert dropping(scores)
        assert not any(dropping(scores[:end]) for end in range(len(scores)))
        assert best.matching.score == max(scores)
        assert (len(last.clusters.centers), last.matching.score) == best.scores[-4]
        different += len(last.clusters.centers) != len(best.clusters.centers)
    assert different


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (3, {}, "3 target pictures, at least 4 are needed to look for 4 clusters"),
        (60, {"smallest": 9}, "clustering.smallest is 9, the largest K 8 (4 classes, max_search 2)"),
    ],
)
def test_searches_that_cannot_be(rows, options, message):
    source, labels, target, _ = _domains(0.1)
    with pytest.raises(InputError) as caught:
        search_clusters(source, labels, 4, target[:rows], max_search=2.0, **options)
    assert str(caught.value) == message


# ---------------------------------------------------------------------------------------------------------- grouping
def test_pictures_by_pair_and_cluster():
    none = torch.zeros(3)
    matching = Matching(torch.tensor([[0, 2], [1, 0], [3, 1]]), none, none, 0.0)
    labels = torch.tensor([0, 1, 2, 3, 4, -1, 3])
    codes = torch.tensor([0, 0, 1, 2, 2, 2, 3, 3, -1])
    # Cluster 1 has no more than one picture: its pair is dropped, and what follows is numbered anew.
    found = group(matching, labels, codes, clusters=5, least=1)
    assert found.source.tolist() == [0, 1, -1, -1, -1, -1, -1]
    assert found.target.tolist() == [1, 1, -1, 0, 0, 0, -1, -1, -1]
    assert torch.equal(found.clusters, codes)
    assert found.to_class.tolist() == [1, -1, 0, -1, -1]


def test_without_a_pair_everything_is_private():
    matching = Matching(torch.zeros(0, 2, dtype=torch.long), torch.zeros(0), torch.zeros(0), 0.0)
    found = group(matching, torch.tensor([0, 1]), torch.tensor([0, 1, -1]), clusters=2, least=0)
    assert found.source.tolist() == [-1, -1]
    assert found.target.tolist() == [-1, -1, -1]
    assert found.to_class.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "clustering.every must be at least 1, got 0"),
        ({"warmup": -1}, "clustering.warmup must be at least 0, got -1"),
        ({"interval": 0}, "clustering.interval must be at least 1, got 0"),
        ({"restarts": 0}, "clustering.restarts must be at least 1, got 0"),
        ({"smallest": 0}, "clustering.smallest must be at least 1, got 0"),
        ({"clusters": 0}, "clustering.clusters must be at least 1, got 0"),
        ({"least": -1}, "clustering.least must be at least 0, got -1"),
        ({"max_search": 0.5}, "clustering.max_search must be at least 1, got 0.5"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError) as caught:
        ClusterOptions(**options)
    assert str(caught.value) == message
