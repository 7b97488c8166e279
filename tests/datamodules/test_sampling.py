"""Order and seeds: the same however many processes, workers and interruptions there are."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.sampling import Draw, EvalSampler, TrainSampler


def _epoch(length: int, processes: int, rank: int, epoch: int = 0, **options) -> list[Draw]:
    sampler = TrainSampler(range(length), processes, rank, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_two_processes_draw_what_one_draws():
    one = _epoch(100, 1, 0)
    two = [_epoch(100, 2, rank) for rank in (0, 1)]
    batch = 10
    for step in range(5):
        together = [draw for draws in two for draw in draws[step * batch : (step + 1) * batch]]
        assert sorted(together) == sorted(one[step * 2 * batch : (step + 1) * 2 * batch])


def test_an_epoch_has_every_item_once_and_the_next_another_order():
    first, second = _epoch(50, 1, 0), _epoch(50, 1, 0, epoch=1)
    assert sorted(draw.item for draw in first) == list(range(50))
    assert [draw.item for draw in first] != [draw.item for draw in second]
    assert {draw.seed for draw in first}.isdisjoint(draw.seed for draw in second)


def test_skipping_leaves_the_rest_as_it_was():
    sampler = TrainSampler(range(30), 1, 0)
    whole = list(sampler)
    sampler.skip(12)
    assert list(sampler) == whole[12:]
    assert list(sampler) == whole


def test_repeats_show_an_image_three_times_with_three_seeds():
    draws = [draw for rank in range(3) for draw in _epoch(1024, 3, rank, repeats=3)]
    items = [draw.item for draw in draws]
    assert len(items) == 1023  # timm's rounding: 1024 // 256 * 256 / 3 for each process
    assert all(items.count(item) == 3 for item in set(items[:300]))
    assert len({draw.seed for draw in draws}) == len(draws)


def test_weights_draw_with_replacement_and_keep_every_promise():
    weights = np.array([1.0] * 90 + [9.0] * 10)
    one = [draw for epoch in range(20) for draw in _epoch(100, 1, 0, epoch, weights=weights)]
    assert len(one) == 2000
    assert np.mean([draw.item >= 90 for draw in one]) == pytest.approx(0.5, abs=0.05)
    two = [_epoch(100, 2, rank, weights=weights) for rank in (0, 1)]
    assert [draw for pair in zip(*two, strict=True) for draw in pair] == one[:100]
    sampler = TrainSampler(range(100), 1, 0, weights=weights)
    sampler.skip(30)
    assert list(sampler) == one[30:100]
    assert one[:100] != one[100:200]


@pytest.mark.parametrize(("length", "processes"), [(10, 3), (2, 4), (7, 1)])
def test_evaluation_has_every_item_exactly_once(length, processes):
    samplers = [EvalSampler(range(length), processes, rank) for rank in range(processes)]
    assert sorted(draw.item for sampler in samplers for draw in sampler) == list(range(length))
    assert sum(len(sampler) for sampler in samplers) == length
