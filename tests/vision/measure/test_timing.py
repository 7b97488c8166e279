"""Comparing contenders: what is planted is found, and the turns alternate."""

from __future__ import annotations

import pytest
import torch

from vision.errors import InputError
from vision.measure import Comparison, compare, peak_memory


def test_planted_slowdown_of_two_is_found_as_two():
    a = torch.randn(160, 160)

    def once(a):
        return [a @ a for _ in range(20)]

    def twice(a):
        return [a @ a for _ in range(40)]

    found = compare({"once": once, "twice": twice}, a, rounds=25, seconds=0.01, warm_up=0.05)
    ratio = found.speedup("once", over="twice")
    assert 1.8 < ratio.median < 2.2
    assert ratio.low <= ratio.median <= ratio.high
    assert found.latency("once").median * 1.5 < found.latency("twice").median
    assert found.speedup("twice", over="once").median == pytest.approx(1 / ratio.median, rel=0.05)


def test_contenders_take_turns_on_the_threads_that_were_asked_for():
    order, threads, before = [], set(), torch.get_num_threads()

    def contender(name):
        def run(x):
            order.append(name)
            threads.add((torch.get_num_threads(), torch.is_grad_enabled()))
            return x

        return run

    compare({n: contender(n) for n in "abc"}, 1, rounds=4, seconds=0, threads=3, warm_up=0)
    assert order[-12:] == list("abc") * 4
    assert threads == {(3, False)}
    assert torch.get_num_threads() == before


def test_threads_are_put_back_when_a_contender_fails():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        compare({"a": lambda: 1 / 0}, threads=before + 1)
    assert torch.get_num_threads() == before


def test_spread_throughput_and_table_from_known_times():
    found = Comparison({"a": [1.0, 2.0, 3.0], "b": [2.0, 8.0, 6.0]}, 1, "cpu", {})
    assert found.latency("a") == (2.0, 1.5, 2.5)
    assert found.speedup("a", over="b") == (2.0, 2.0, 3.0)
    assert found.throughput("a", 16) == 8000
    assert "0.50 (0.38-0.50)" in str(found).splitlines()[2]


@pytest.mark.parametrize(
    ("contenders", "options", "message"),
    [
        ({}, {}, "no contenders"),
        ({"a": lambda: 0}, {"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"a": lambda: 0}, {"seconds": -1}, "seconds must not be negative, got -1"),
        ({"a": lambda: 0}, {"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_unusable_arguments(contenders, options, message):
    with pytest.raises(InputError, match=message):
        compare(contenders, **options)


def test_unknown_contender_is_named():
    found = Comparison({"eager": [1.0]}, 1, "cpu", {})
    with pytest.raises(InputError, match=r"no contender 'eagre' \(did you mean 'eager'\?\)"):
        found.latency("eagre")


def test_peak_memory_of_a_known_allocation():
    grown = peak_memory(lambda: torch.ones(50_000_000).sum())
    if grown is None:
        pytest.skip("this system does not tell")
    assert 190e6 < grown < 230e6
