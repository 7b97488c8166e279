"""The order of a stream, worked by hand."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from datamodules.stream_order import Leg, Plan, class_runs, even_mix, stretches


@pytest.mark.parametrize("order", ["continual", "correlated"])
def test_one_corruption_after_the_other(order):
    assert stretches(order, ["snow", "fog"], 3) == [("snow", 3), ("fog", 3)]


def test_gradual_rises_and_falls_for_each_corruption():
    levels = [1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert stretches("gradual", ["snow", "fog"], 5) == [(name, level) for name in ("snow", "fog") for level in levels]
    assert stretches("gradual", ["snow"], 1) == [("snow", 1)]


def test_mixed_is_a_single_stretch():
    assert stretches("mixed", ["snow", "fog"], 4) == [("mixed", 4)]


class _Chosen(np.random.Generator):
    """Draws what it was told to: the shares of each class, and the classes of a slot from the last to the first."""

    def __init__(self, shares) -> None:
        super().__init__(np.random.PCG64(0))
        self.shares = np.array(shares)

    def dirichlet(self, alpha, size=None):
        assert self.shares.shape == (size, len(alpha))
        return self.shares

    def permutation(self, x, axis=0):
        return np.arange(x)[::-1]


def test_runs_follow_the_shares():
    """Four images of each class: class 3 has one in the first slot, class 5 two; the rest is in the second."""
    labels = np.array([3, 5, 3, 5, 3, 5, 3, 5])
    order = class_runs(labels, 0.1, _Chosen([[0.25, 0.75], [0.5, 0.5]]))
    assert order.tolist() == [*(1, 3, 0), *(5, 7, 2, 4, 6)]


def _runs(labels, order) -> int:
    return len(list(groupby(labels[order])))


def test_the_smaller_the_concentration_the_longer_the_runs():
    labels = np.random.default_rng(0).integers(10, size=1000)
    orders = {c: class_runs(labels, c, np.random.default_rng(1)) for c in (1e-3, 0.1, 1e3)}
    assert all(sorted(order) == list(range(1000)) for order in orders.values())
    runs = {concentration: _runs(labels, order) for concentration, order in orders.items()}
    assert runs[1e-3] == 10  # the whole class is in one slot
    assert runs[1e3] == pytest.approx(100, abs=10)  # each slot has each class
    assert 10 < runs[0.1] < 60
    assert runs[1e3] < 0.2 * _runs(labels, np.arange(1000))


def test_there_are_a_hundred_slots_at_most():
    labels = np.repeat(np.arange(150), 200)
    assert _runs(labels, class_runs(labels, 1e6, np.random.default_rng(0))) == pytest.approx(150 * 100, rel=0.02)


def test_a_mix_has_each_name_as_often():
    mixed = even_mix(["snow", "fog", "frost"], 8, np.random.default_rng(0))
    assert sorted(mixed.count(name) for name in ("snow", "fog", "frost")) == [2, 3, 3]
    assert mixed == even_mix(["snow", "fog", "frost"], 8, np.random.default_rng(0))
    assert mixed != even_mix(["snow", "fog", "frost"], 8, np.random.default_rng(1))


def test_a_plan_of_two_rounds():
    """Two stretches of three and two images, in batches of two; three probes before and after each."""
    legs = [Leg(np.array([4, 0, 2]), ["fog"] * 3, 5), Leg(np.array([1, 3]), ["snow", "frost"], 2)]
    plan = Plan(legs, np.array([7, 9, 8]), batch_size=2, rounds=2)
    expected = []

    def probe(position: int, number: int) -> None:
        expected.append(([7, 9], ["clean"] * 2, 0, position, number, True))
        expected.append(([8], ["clean"], 0, position, number, True))

    probe(-1, 0)
    for number in (0, 1):
        first, second = 2 * number, 2 * number + 1
        expected.append(([4, 0], ["fog"] * 2, 5, first, number, False))
        expected.append(([2], ["fog"], 5, first, number, False))
        probe(first, number)
        expected.append(([1, 3], ["snow", "frost"], 2, second, number, False))
        probe(second, number)
    assert [tuple(serving) for serving in plan] == expected
    assert len(plan) == len(expected) == 16


def test_without_probes_there_is_the_stream_alone():
    plan = Plan([Leg(np.arange(5), ["fog"] * 5, 5)], np.arange(0), batch_size=2, rounds=1)
    assert [serving.items for serving in plan] == [[0, 1], [2, 3], [4]]
    assert len(plan) == 3
