"""EcoTTA's steps: what they are made of, and what they leave alone."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.vision.ecotta.small import CLASSES, attached, images, same, source, state, step_of
from vision.ecotta import Descent, EcoTTA, GuardOptions
from vision.ecotta.frozen import FrozenOps, Memory
from vision.ecotta.losses import confident, entropy, regularisation
from vision.errors import InputError

MODES = ("eager", "memsave", "checkpoint")


# -------------------------------------------------------------------------------------------------- what a step is
LONG = Descent("sgd", lr=1.0, momentum=0.0)  # a step is the gradient, turned round


def written_out(network: EcoTTA, x: Tensor) -> list[Tensor]:
    """The gradients of Eq. 3 by one ordinary backward pass, with the detached copies of Fig. 3c."""
    model: Any = network.model
    with FrozenOps():
        features, total = model.conv1(x), torch.zeros((), dtype=torch.float64)
        for names, meta in zip(network.groups, network.metas, strict=True):
            after = features
            for name in names:
                after = model.get_submodule(name)(after)
            apart = meta(features.detach(), after.detach())
            total = total + network.strength * regularisation(apart - after.detach())
            features = meta(features, after)
        logits = model.fc(F.relu(model.bn1(features)).mean(dim=(2, 3))).float()
        entropies = entropy(logits)
        kept = confident(entropies, CLASSES, network.margin)
        assert 0 < kept.sum() < len(kept), "the filter has something to do"
        loss = entropies[kept].mean() + total
    return list(torch.autograd.grad(loss, list(network.metas.parameters())))


def test_the_joint_step_is_the_gradient_of_equation_3_and_the_sum_of_its_parts() -> None:
    """In float64, so that what the one pass might lose would be seen."""
    x = images().double()
    margin = float(entropy(attached().predict(x.float())).median() / torch.log(torch.tensor(6.0)))
    options: dict[str, Any] = {"memory": "eager", "descent": LONG}

    def steps(**changed: Any) -> list[Tensor]:
        return step_of(attached(**{**options, "margin": margin, **changed}).double(), x)

    joint = steps()
    parts = zip(steps(margin=0.0), steps(strength=0.0), strict=True)
    wanted = written_out(attached(**options, margin=margin).double(), x)
    for found, (of_distance, of_entropy), gradient in zip(joint, parts, wanted, strict=True):
        largest = found.abs().max()
        assert largest > 0
        assert (found - of_distance - of_entropy).abs().max() < 1e-7 * largest
        assert (found + gradient).abs().max() < 1e-6 * largest  # the logits are float32


def test_a_regulariser_trains_its_own_meta_network_alone() -> None:
    """Were the second one's to reach the first, the first's step would depend on the second."""
    x = images()
    network = attached(margin=0.0, memory="eager", descent=LONG)
    other = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in other.metas[1].parameters():
            parameter.mul_(-2)
    first, second = step_of(network, x), step_of(other, x)
    count = len(list(network.metas[0].parameters()))
    assert all(map(torch.equal, first[:count], second[:count]))
    assert not torch.equal(first[count], second[count])


@pytest.mark.parametrize(("update", "passes"), [("joint", 1), ("two_step", 2)])
@pytest.mark.parametrize("memory", MODES)
def test_every_frozen_block_is_run_once_a_pass(memory: Memory, update: str, passes: int) -> None:
    network = attached(memory=memory, update=update)
    calls: Counter[str] = Counter()
    for names in network.groups:
        for name in names:
            inner = network.model.get_submodule(f"{name}.conv1")
            inner.register_forward_hook(lambda *_, name=name: calls.update([name]))
    network.adapt(images())
    # A checkpointed group is run again by the backward pass, but for the first, which no gradient reaches.
    again = memory == "checkpoint"
    expected = {name: passes + int(again and k > 0) for k, names in enumerate(network.groups) for name in names}
    assert calls == expected


@pytest.mark.parametrize("prior", [0.0, 16.0])
@pytest.mark.parametrize(
    ("memory", "constant", "like"),
    [("memsave", None, True), ("memsave", False, None), ("checkpoint", None, None), ("checkpoint", True, True)],
)
def test_saving_memory_does_not_change_a_step(
    memory: Memory, constant: bool | None, like: bool | None, prior: float
) -> None:
    """Beside plain PyTorch, whose gradients take the statistics for constants where ``like`` says so."""
    x = images()
    found = step_of(attached(memory=memory, constant_statistics=constant, prior=prior, descent=LONG), x)
    wanted = step_of(attached(memory="eager", constant_statistics=like, prior=prior, descent=LONG), x)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


@pytest.mark.parametrize("memory", ["memsave", "checkpoint"])
def test_saving_memory_does_not_change_a_step_in_mixed_precision(memory: Memory) -> None:
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        found = step_of(attached(memory=memory, constant_statistics=False, descent=LONG), x)
        wanted = step_of(attached(memory="eager", descent=LONG), x)
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 0.01 * other.abs().max()


def test_taking_statistics_for_constants_is_another_gradient() -> None:
    x = images()
    steps = [step_of(attached(memory="eager", constant_statistics=of, descent=LONG), x) for of in (False, True)]
    assert any((one - other).abs().max() > 0.01 * one.abs().max() for one, other in zip(*steps, strict=True))


def test_the_answer_is_from_before_the_step() -> None:
    network, x = attached(), images()
    before = network.predict(x)
    assert torch.equal(network.adapt(x), before)
    assert not torch.equal(network.predict(x), before)
    assert torch.equal(network(x), network.predict(x))


def test_a_step_tells_what_it_did() -> None:
    network, x = attached(memory="eager", margin=0.4, strength=0.5), images()
    entropies = entropy(network.adapt(x))
    kept = confident(entropies, CLASSES, 0.4)
    step = network.last
    assert step.entropy == pytest.approx(entropies.mean().item(), rel=1e-6)
    assert step.kept == pytest.approx(kept.float().mean().item())
    learned = entropies[kept].mean().item() if kept.any() else 0.0
    assert step.loss == pytest.approx(learned + 0.5 * step.distance, rel=1e-5)
    assert (step.updated, int(network.steps), int(network.images)) == (True, 1, len(x))


def test_where_no_prediction_is_sure_the_regularisers_alone_are_learned_from() -> None:
    network = attached(margin=0.0)
    assert torch.isfinite(network.adapt(images())).all()
    assert (network.last.kept, network.last.updated) == (0.0, True)
    assert network.last.loss == pytest.approx(network.strength * network.last.distance)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_where_there_is_nothing_to_learn_nothing_changes() -> None:
    network = attached(margin=0.0, strength=0.0)
    before = state(network.metas)
    network.adapt(images())
    assert same(before, state(network.metas))
    assert (network.last.kept, network.last.updated, int(network.steps)) == (0.0, False, 1)


def test_numbers_that_overflow_are_not_learned_from() -> None:
    network = attached()
    before = state(network)
    network.adapt(images() * 1e38)
    assert not network.last.updated
    assert same({**before, "steps": network.steps, "images": network.images}, state(network))


@pytest.mark.parametrize("lr_batch", [32, 4])
def test_the_rate_can_follow_the_batch(lr_batch: int) -> None:
    x = images(size=8)
    plain = step_of(attached(descent=Descent("sgd", 0.1, 0.0)), x)
    scaled = step_of(attached(descent=Descent("sgd", 0.1, 0.0, lr_batch)), x)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, one * 8 / lr_batch, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("memory", MODES)
def test_pixels_are_predictions_too(memory: Memory) -> None:
    class Pixels(nn.Module):
        """Torchvision's form: a dictionary."""

        def __init__(self) -> None:
            super().__init__()
            trunk = source()
            self.stem, self.blocks = trunk.conv1, nn.Sequential(*trunk.block1.layer, *trunk.block2.layer)
            self.head = nn.Conv2d(32, CLASSES, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": F.interpolate(self.head(self.blocks(self.stem(x))), x.shape[2:]), "aux": x}

    network = EcoTTA.attach(Pixels(), 2, input_size=(16, 16), calibrate=False, margin=0.9, memory=memory)
    logits = network.adapt(images())
    assert logits.shape == (8, CLASSES, 16, 16)
    entropies = entropy(logits.movedim(1, -1).flatten(0, 2))
    kept = confident(entropies, CLASSES, 0.9)
    assert 0 < kept.sum() < len(kept)
    assert network.last.kept == pytest.approx(kept.float().mean().item())
    assert network.last.loss == pytest.approx(entropies[kept].mean().item() + 0.5 * network.last.distance, rel=1e-5)
    assert network.last.updated


# ------------------------------------------------------------------------------------------------- what stays as it is
@pytest.mark.parametrize(
    ("memory", "prior"), [("eager", 0.0), ("memsave", 0.0), ("memsave", 16.0), ("checkpoint", 0.0)]
)
def test_the_frozen_network_is_the_same_to_the_bit_after_fifty_steps(memory: Memory, prior: float) -> None:
    network = attached(memory=memory, prior=prior, descent=Descent("sgd", 0.05))
    frozen, metas = state(network.model), state(network.metas)
    alone = network.model(images(99))
    for seed in range(50):
        network.adapt(images(seed))
    assert same(frozen, state(network.model))
    assert torch.equal(network.model(images(99)), alone), "the network on its own has no meta networks"
    changed = {key for key, value in state(network.metas).items() if not torch.equal(value, metas[key])}
    assert changed == {name for name, _ in network.metas.named_parameters()}, "statistics are no parameters"


BAD: dict[str, tuple[Any, str]] = {
    "nan": (images().index_fill(0, torch.tensor([3]), torch.nan), "NaN or infinite"),
    "infinite": (images() / 0, "NaN or infinite"),
    "none": (images()[:0], "no images"),
    "flat": (images().flatten(1), r"\(B, 3, H, W\), got torch.float32 \(8, 768\)"),
    "bytes": ((images() * 255).byte(), "torch.uint8"),
    "a list": ([0.0], "got list"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("calibrate", [False, True])
def test_bad_images_change_nothing(bad: str, calibrate: bool) -> None:
    x, message = BAD[bad]
    network = attached(calibrate=calibrate)
    other = copy.deepcopy(network)
    for call in (network.adapt, network.predict, network.calibrate):
        with pytest.raises(InputError, match=message):
            call(x)
    assert same(state(network), state(other))
    assert torch.equal(network.adapt(images()), other.adapt(images()))
    assert same(state(network), state(other))


def test_one_value_a_channel_breaks_a_step_off_without_a_trace() -> None:
    """The last features of one small image; what earlier groups have learned by then is thrown away."""
    network = attached()
    other = copy.deepcopy(network)
    with pytest.warns(UserWarning, match="batches of 1"), pytest.raises(InputError, match=r"no variance.*prior=16"):
        network.adapt(images(size=1, side=4))
    assert (int(network.steps), int(network.images)) == (0, 0)
    network.adapt(images())
    other.adapt(images())
    assert same(state(network), state(other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "little"}, "memory must be one of eager, memsave, checkpoint"),
        ({"reduction": "sum"}, "reduction must be one of kept, batch"),
        ({"update": "thrice"}, "update must be one of joint, two_step"),
        ({"strength": -1.0}, "strength must be at least 0"),
        ({"prior": float("nan")}, "prior must be at least 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attached(**options)


def test_small_batches_are_warned_of_where_their_statistics_count() -> None:
    with pytest.warns(UserWarning, match=r"batches of 7 .*prior=16 \(AdaptBN\)") as caught:
        attached().adapt(images(size=7))
    assert [warning.filename for warning in caught] == [__file__], "the caller is told where"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached().adapt(images(size=8))
        attached(prior=16.0).adapt(images(size=1))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("memory", MODES)
def test_it_learns_where_gradients_are_switched_off(mode: Any, memory: Memory) -> None:
    network, other = (attached(memory=memory, calibrate=True, guard=GuardOptions(every=1)) for _ in range(2))
    expected = [other.adapt(images(seed)) for seed in range(3)]
    with mode():
        found = [network.adapt(images(seed)) for seed in range(3)]
        point = network.snapshot()
    assert all(map(torch.equal, found, expected))
    assert same(state(network), state(other))
    after = state(network.metas)
    network.adapt(images(3))
    network.rollback(point)
    assert same(after, state(network.metas))
