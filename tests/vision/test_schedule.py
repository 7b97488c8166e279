"""The learning-rate schedule."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import nn

from vision.schedule import InverseDecay, WarmupCosine, WarmupSteps


def make(per: Literal["step", "epoch"], peaks: tuple[float, ...] = (1.0,)) -> tuple[torch.optim.SGD, WarmupCosine]:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in peaks]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    schedule = WarmupCosine(optimizer, warmup_epochs=2, warmup_lr=0.1, min_lr=0.01, per=per)
    schedule.bind(epochs=10, steps_per_epoch=4)
    return optimizer, schedule


def rates(optimizer: torch.optim.SGD, schedule: WarmupCosine, steps: int, group: int = 0) -> list[float]:
    """The rates that the next steps run at."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[group]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_and_cosine_by_step() -> None:
    found = rates(*make("step"), steps=45)
    assert found[:9] == pytest.approx([0.1 + 0.9 * step / 8 for step in range(8)] + [found[8]])
    assert found[8] == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi * 0.2)) / 2)
    assert found[20] == pytest.approx(0.01 + 0.99 / 2)
    assert all(earlier > later for earlier, later in pairwise(found[8:41]))
    assert found[40:] == pytest.approx([0.01] * 5)


def test_by_epoch_every_step_runs_at_the_rate_of_the_epochs_first() -> None:
    by_step, by_epoch = rates(*make("step"), steps=40), rates(*make("epoch"), steps=40)
    assert by_epoch == pytest.approx([by_step[step // 4 * 4] for step in range(40)])


def test_every_group_has_its_own_peak() -> None:
    optimizer, schedule = make("step", peaks=(1.0, 0.5))
    assert rates(optimizer, schedule, 21, group=1)[20] == pytest.approx(0.01 + 0.49 / 2)


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_resumption_goes_on_as_without_interruption(per: Literal["step", "epoch"]) -> None:
    whole = rates(*make(per), steps=30)
    optimizer, schedule = make(per)
    before = rates(optimizer, schedule, 13)
    saved = optimizer.state_dict(), schedule.state_dict()
    optimizer, schedule = make(per)
    optimizer.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    assert before + rates(optimizer, schedule, 17) == pytest.approx(whole)


def test_steps_rise_over_the_first_epoch_and_fall_to_a_fifth_at_each_milestone():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    schedule = WarmupSteps(optimizer, warmup_epochs=1, milestones=[3, 6], gamma=0.2)
    schedule.bind(epochs=8, steps_per_epoch=10)
    rates = []
    for _ in range(80):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.025)
    assert rates[10] == rates[29] == pytest.approx(0.05)
    assert rates[30] == rates[59] == pytest.approx(0.01)
    assert rates[60] == pytest.approx(0.002)


def test_the_inverse_decay_counts_steps_whatever_an_epoch_is():
    """DCC's ``lr (1 + 10 i / 10000) ** -0.75``: a third of the first rate after 3000 steps, where it stops."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": peak} for peak in (0.1, 1.0)]
    optimizer = torch.optim.SGD(groups)
    schedule = InverseDecay(optimizer)
    schedule.bind(epochs=7, steps_per_epoch=450.5)
    rates = []
    for _ in range(3001):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates[0] == [0.1, 1.0]
    assert rates[1][1] == pytest.approx(1.001**-0.75)
    assert rates[1000][1] == pytest.approx(2**-0.75)
    assert rates[3000] == pytest.approx([0.1 * 4**-0.75, 4**-0.75])


def test_the_inverse_decay_stays_at_its_end():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = InverseDecay(optimizer, alpha=3, power=0.5, steps=4)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([(1 + 3 * step / 4) ** -0.5 for step in range(4)] + [0.5] * 3)
