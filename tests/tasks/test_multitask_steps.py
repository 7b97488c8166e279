"""The same images make the same step: on one process or two, in one batch or several, whatever labels are missing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import start_processes

from tests.tasks.multitask import RULES, one_of_two, train, write_tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def one(folder):
    """Each rule on one process: 24 images, three steps an epoch."""
    return {name: train(folder, rule(), 8) for name, rule in RULES.items()}


def _rank(rank: int, folder: Path, port: int) -> None:
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in place.items()})
    one_of_two(str(folder))


@pytest.fixture(scope="module")
def two(folder):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    # Forked, for they have the imports behind them then; a process that fails is told of with its traceback.
    start_processes(_rank, (folder, port), nprocs=2, start_method="fork")
    return torch.load(folder / "two.pt", weights_only=True)


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("rule", RULES)
def test_two_processes_step_as_one(one, two, rule):
    assert_same(two[rule], one[rule])


@pytest.mark.parametrize("rule", ["uncertainty", "famo", "pcgrad"])
def test_two_processes_with_accumulated_gradients_step_as_one(one, two, rule):
    assert_same(two[f"{rule}, accumulated"], one[rule])


@pytest.mark.parametrize("rule", RULES)
def test_accumulated_gradients_make_the_step_of_the_whole_batch(folder, one, rule):
    assert_same(train(folder, RULES[rule](), 2, accumulate_grad_batches=4), one[rule])


@pytest.mark.parametrize("rule", ["uncertainty", "famo", "gradnorm", "cagrad"])
def test_the_last_step_of_an_epoch_may_have_fewer_batches(folder, rule):
    """Three batches where four were to make a step: the step of all 24 images at once."""
    assert_same(train(folder, RULES[rule](), 8, accumulate_grad_batches=4), train(folder, RULES[rule](), 24))


def test_the_rules_do_differ(one):
    heads = {name: state["model.head.weight"] for name, state in one.items()}
    for name, head in heads.items():
        if name != "equal":
            assert not torch.allclose(head, heads["equal"], rtol=1e-4, atol=2e-6), name
