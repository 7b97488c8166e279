"""EcoTTA's ways back to an earlier state, what can be carried elsewhere, and what happens before deployment."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.vision.ecotta.small import CLASSES, attached, images, same, state, step_of
from vision.ecotta import Descent, EcoTTA, GuardOptions, WideResNet
from vision.ecotta.baselines import BatchStatistics


# ------------------------------------------------------------------------------------------------------- the ways back
@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("guard", [None, GuardOptions(every=2)])
def test_reset_and_rollback_are_exact(calibrate: bool, guard: GuardOptions | None) -> None:
    network = attached(calibrate=calibrate, guard=guard)
    first = [network.adapt(images(seed)) for seed in range(3)]
    point, metas = network.snapshot(), state(network.metas)
    following = [network.adapt(images(seed)) for seed in range(3, 6)]
    network.rollback(point)
    assert same(metas, state(network.metas))
    # The momentum is that of the snapshot, which stays as it was.
    for _ in range(2):
        network.rollback(point)
        assert all(map(torch.equal, following, [network.adapt(images(seed)) for seed in range(3, 6)]))
    network.reset()
    assert (int(network.steps), int(network.images)) == (0, 0)
    assert all(map(torch.equal, first, [network.adapt(images(seed)) for seed in range(3)]))


def test_the_guard_goes_back_to_an_earlier_state() -> None:
    """Features that are driven far away by a rate that is much too high."""
    network = attached(descent=Descent("sgd", 3.0), strength=0.0, guard=GuardOptions(reference=2, every=2, drift=1.5))
    states = [state(network.metas)]
    while network.last.event is None:
        assert len(states) < 100
        network.adapt(images(len(states)))
        states.append(state(network.metas))
    assert any(same(states[-1], earlier) for earlier in states[:-2])
    assert "rolled back, learning rate now 1.5" in network.last.event
    network.reset()
    assert same(states[0], state(network.metas))


def test_a_copy_goes_its_own_way() -> None:
    network = attached()
    for seed in range(3):
        network.adapt(images(seed))
    twin = copy.deepcopy(network)
    before = state(network)
    found = twin.adapt(images(3))
    assert same(before, state(network))
    assert torch.equal(network.adapt(images(3)), found)
    assert same(state(twin), state(network))
    twin.reset()
    assert torch.equal(twin.adapt(images(0)), attached().adapt(images(0)))


@pytest.mark.parametrize("calibrate", [False, True])
def test_the_state_can_be_carried_to_another(calibrate: bool) -> None:
    """To one that would be calibrated on its first batch."""
    network = attached(calibrate=calibrate)
    for seed in range(3):
        network.adapt(images(seed))
    other = attached(seed=1, calibrate=True)
    other.load_state_dict(network.state_dict())
    assert (int(other.steps), int(other.images)) == (3, 24)
    assert torch.equal(other.predict(images(3)), network.predict(images(3)))
    assert torch.equal(other.adapt(images(3)), network.adapt(images(3)))


def test_the_meta_networks_alone_are_little_to_keep() -> None:
    network = attached()
    network.adapt(images())
    kept = network.meta_state_dict()
    assert {key.split(".")[0] for key in kept} == {"metas"}
    trained = sum(parameter.numel() for parameter in network.trained())
    assert sum(kept[f"metas.{name}"].numel() for name, _ in network.metas.named_parameters()) == trained
    other = attached()
    nothing_else = other.load_state_dict(kept, strict=False)
    assert not nothing_else.unexpected_keys
    assert torch.equal(other.predict(images(1)), network.predict(images(1)))


def test_a_second_thread_waits() -> None:
    network, one_after_other = attached(), attached()
    order: list[str] = []
    begun = threading.Event()

    def second() -> None:
        begun.set()
        network.adapt(images(1))

    thread = threading.Thread(target=second, name="second")

    def enter(*_: Any) -> None:
        order.append(f"{threading.current_thread().name} in")
        if len(order) == 1:
            thread.start()
            assert begun.wait(10)
            thread.join(0.2)  # time to break in

    network.model.get_submodule("conv1").register_forward_pre_hook(enter)
    network.model.get_submodule("fc").register_forward_hook(
        lambda *_: order.append(f"{threading.current_thread().name} out")
    )
    network.adapt(images(0))
    thread.join()
    name = threading.current_thread().name
    assert order == [f"{name} in", f"{name} out", "second in", "second out"]
    for seed in range(2):
        one_after_other.adapt(images(seed))
    assert same(state(network), state(one_after_other))


# -------------------------------------------------------------------------------------------------- before deployment
PATTERNS = torch.rand(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def pictures(seed: int, noise: float, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noisy pictures of patterns, one a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    return PATTERNS[labels] + noise * torch.randn(size, 3, 16, 16, generator=generator), labels


@pytest.fixture(scope="module")
def trained() -> WideResNet:
    torch.manual_seed(0)
    network = WideResNet(16, 1, CLASSES)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for seed in range(60):
        x, labels = pictures(1000 + seed, noise=1.5)
        F.cross_entropy(network(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.eval()


@pytest.mark.parametrize(("noise", "shift"), [(1.5, 0.0), (3.0, 0.0), (1.5, 2.0)])
def test_calibrated_meta_networks_are_nearly_the_identity(trained: WideResNet, noise: float, shift: float) -> None:
    """They answer as the network does on the batch's statistics; without calibration they would not."""
    x = pictures(0, noise, size=256)[0] + shift
    network = EcoTTA.attach(copy.deepcopy(trained), input_size=(16, 16))
    wanted = BatchStatistics(copy.deepcopy(trained)).predict(x)
    assert torch.equal(network.predict(x), wanted), "before it is calibrated, it answers as the network does"
    agreed = (network.adapt(x).argmax(dim=1) == wanted.argmax(dim=1)).float().mean()
    assert agreed >= 0.9
    without = EcoTTA.attach(copy.deepcopy(trained), input_size=(16, 16), calibrate=False)
    assert (without.predict(x).argmax(dim=1) == wanted.argmax(dim=1)).float().mean() < 0.8


def test_reset_goes_back_to_the_calibrated_state(trained: WideResNet) -> None:
    network = EcoTTA.attach(copy.deepcopy(trained), input_size=(16, 16))
    network.snapshot()  # of meta networks that are not calibrated yet
    x = pictures(0, 0.5)[0]
    answer = network.adapt(x)
    network.adapt(x)
    network.reset()
    assert torch.equal(network.predict(x), answer)


def test_a_warm_up_trains_the_meta_networks_alone(trained: WideResNet) -> None:
    """Their statistics follow the batches; those of the frozen network do not (the community's code lets them)."""
    network = EcoTTA.attach(copy.deepcopy(trained), input_size=(16, 16))
    frozen, untouched = state(network.model), state(network.metas)
    optimizer = torch.optim.SGD(network.metas.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for seed in range(16):
        optimizer.zero_grad()
        x, labels = pictures(2000 + seed, noise=0.5)
        loss = F.cross_entropy(network.warm_up_logits(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert same(frozen, state(network.model))
    assert all(not torch.equal(value, untouched[key]) for key, value in state(network.metas).items())
    # What the last batch left in the gradients is no part of the first step.
    other = copy.deepcopy(network)
    other.metas.zero_grad()
    x = pictures(0, 0.5)[0]
    assert all(map(torch.equal, step_of(network, x), step_of(other, x)))
    assert not network.needs_calibration
