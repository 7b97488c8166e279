"""The guard: a collapse and its opposite are noticed and undone, and a healthy stream is left alone."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.ecotta.baselines import Tent
from vision.ecotta.guard import Guard, GuardOptions, Signals, marginal_entropy
from vision.ecotta.method import Descent

HEALTHY = Signals(mean=torch.full((4,), 0.25), entropy=0.3, kept=0.6, distance=0.1)


def watched(guard: Guard, signals: Signals, times: int) -> list[str | None]:
    return [guard.watch(signals) for _ in range(times)]


def test_marginal_entropy_by_hand():
    assert marginal_entropy(torch.full((4,), 0.25)) == pytest.approx(1)
    assert marginal_entropy(torch.tensor([0.5, 0.5, 0.0, 0.0])) == pytest.approx(0.5, abs=1e-6)
    assert marginal_entropy(torch.tensor([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0, abs=1e-6)


def test_a_steady_stream_is_fine():
    guard = Guard()
    assert not any(watched(guard, HEALTHY, 100))
    surer = replace(HEALTHY, entropy=0.1, kept=0.9)
    assert not any(watched(guard, surer, 100))


def test_a_collapse_is_called_when_the_average_has_fallen_far_enough():
    """Two of four classes take all, half of which is seen in the first batch and three quarters after the second.

    The mean prediction is (3/8, 3/8, 1/8, 1/8), whose entropy is 0.91 of ln 4, then (7/16, 7/16, 1/16, 1/16): 0.77.
    """
    guard = Guard(GuardOptions(memory=0.5))
    watched(guard, HEALTHY, 8)
    collapsed = replace(HEALTHY, mean=torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert watched(guard, collapsed, 2) == [
        None,
        "collapse: entropy of the mean prediction 0.77 of ln C, at first 1.00",
    ]


def test_diffuse_predictions_are_the_other_end():
    """Of 60 % sure predictions 30 % are left in the average, then 15 %, which is below the allowed 18 %."""
    guard = Guard(GuardOptions(memory=0.5, diffuse=0.3))
    watched(guard, HEALTHY, 8)
    unsure = replace(HEALTHY, entropy=0.95, kept=0.0)
    assert watched(guard, unsure, 2) == [None, "diffuse: 15.0% of the predictions are sure, at first 60.0%"]


def test_fewer_sure_predictions_alone_are_no_trouble():
    """A margin can keep few for other reasons than that all is unsure."""
    guard = Guard()
    watched(guard, HEALTHY, 8)
    assert not any(watched(guard, replace(HEALTHY, kept=0.0, entropy=0.2), 50))


def test_features_that_drift_away_are_called():
    """From 0.1 towards 1.1: 0.6, then 0.85."""
    guard = Guard(GuardOptions(memory=0.5, drift=8.0))
    watched(guard, HEALTHY, 8)
    found = watched(guard, replace(HEALTHY, distance=1.1), 2)
    assert found == [None, "drift: features are 8.5 times as far from the original as at first"]


def test_the_reference_is_the_mean_of_the_first_batches():
    guard = Guard(GuardOptions(reference=4))
    for kept in (0.2, 0.4, 0.6, 0.8):
        assert guard.watch(replace(HEALTHY, kept=kept)) is None
    found = [guard.watch(replace(HEALTHY, entropy=0.9, kept=0.0)) for _ in range(40)]
    assert next(trouble for trouble in found if trouble).endswith("at first 50.0%")


@pytest.mark.parametrize(
    "broken",
    [{"mean": torch.tensor([math.nan, 1, 0, 0])}, {"entropy": math.nan}, {"distance": math.inf}],
)
def test_what_is_not_finite_is_called_at_once_and_not_averaged(broken):
    guard = Guard()
    watched(guard, HEALTHY, 3)
    assert guard.watch(replace(HEALTHY, **broken)) == "predictions or features are not finite"
    guard.settle()
    assert not any(watched(guard, HEALTHY, 20))
    unsure = replace(HEALTHY, entropy=0.95, kept=0.0)
    assert any(watched(guard, unsure, 20)), "the guard must still find its reference"


def test_after_a_rollback_the_averages_begin_at_the_reference_again():
    guard = Guard()
    watched(guard, HEALTHY, 8)
    unsure = replace(HEALTHY, entropy=0.95, kept=0.0)
    first = [trouble is not None for trouble in watched(guard, unsure, 14)]
    guard.settle()
    assert [trouble is not None for trouble in watched(guard, unsure, 14)] == first


# ---------------------------------------------------------------------------------------- with a network that learns
CLASSES = 6
PATTERNS = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def batch(seed: int, noise: float = 1.5, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noisy pictures of patterns, one a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    return PATTERNS[labels] + noise * torch.randn(size, 3, 8, 8, generator=generator), labels


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, CLASSES),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for seed in range(60):
        images, labels = batch(10_000 + seed)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


def right(method: Tent, noise: float, batches: int = 60) -> tuple[float, list[str]]:
    """The share of right predictions in the last quarter of a stream, and what the guard did."""
    hits, events = [], []
    for seed in range(batches):
        images, labels = batch(seed, noise)
        hits.append((method.adapt(images).argmax(dim=1) == labels).float().mean().item())
        if method.last.event:
            events.append(method.last.event)
    last = hits[batches * 3 // 4 :]
    return sum(last) / len(last), events


TOO_FAST = Descent("sgd", 3.0)


def test_a_planted_collapse_is_undone(trained):
    alone, _ = right(Tent(copy.deepcopy(trained), descent=TOO_FAST), noise=8.0)
    guarded, events = right(Tent(copy.deepcopy(trained), descent=TOO_FAST, guard=GuardOptions()), noise=8.0)
    assert guarded > alone + 0.1
    signal = r"collapse: entropy of the mean prediction 0\.\d\d of ln C, at first 0\.\d\d"
    assert re.fullmatch(signal + r"; rolled back, learning rate now 1\.5", events[0])
    assert all(event.endswith(f"now {3 / 2**i:g}") for i, event in enumerate(events, 1))


def test_a_rollback_is_to_an_earlier_state_without_momentum_and_with_half_the_rate(trained):
    method = Tent(copy.deepcopy(trained), descent=TOO_FAST, guard=GuardOptions())
    states = [[parameter.detach().clone() for parameter in method.trained()]]
    while method.last.event is None:
        assert len(states) < 60
        method.adapt(batch(len(states) - 1, noise=8.0)[0])
        states.append([parameter.detach().clone() for parameter in method.trained()])
    same = [i for i, state in enumerate(states[:-1]) if all(map(torch.equal, state, states[-1]))]
    taken = len(states) - 2  # steps before the one that was noticed
    # The older one of the last two snapshots, which are made every 8 steps.
    assert same == [max(0, taken // 8 * 8 - 8)]
    assert method.optimizer is not None
    assert not method.optimizer.state
    method.adapt(batch(0, noise=8.0)[0])
    assert [group["lr"] for group in method.optimizer.param_groups] == [1.5]
    method.reset()
    method.adapt(batch(0, noise=8.0)[0])
    assert [group["lr"] for group in method.optimizer.param_groups] == [3.0]


def test_a_healthy_stream_is_left_alone(trained):
    slow = Descent("sgd", 0.01)
    guarded = Tent(copy.deepcopy(trained), descent=slow, guard=GuardOptions())
    alone = Tent(copy.deepcopy(trained), descent=slow)
    assert right(guarded, noise=4.0) == (right(alone, noise=4.0)[0], [])
    assert all(map(torch.equal, guarded.trained(), alone.trained()))
