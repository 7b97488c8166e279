"""Weightings beyond the reference: missing tasks, state, conflict, and gradients put together."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.rules import rules
from vision.errors import InputError
from vision.medic.gradients import CAGrad, PCGrad, TaskGradients
from vision.medic.weighting import DWA, FixedWeights

NAMES = ["a", "b", "c"]
RULES = rules({"a": 2.0, "c": 0.5})
GRADIENTS = torch.tensor([[1.0, 0.0, 0.5], [-0.8, 0.6, 0.0], [0.3, 0.3, -0.9]], dtype=torch.float64)
LOSSES = torch.tensor([0.7, 1.4, 0.2])
ALL = torch.ones(3, dtype=torch.bool)


def bound(name: str, names: list[str] = NAMES):
    rule = RULES[name]()
    rule.bind(names)
    return rule


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("rlw", "fixed")])
def test_an_absent_task_is_as_if_there_were_none(name):
    """Weights and own gradients of the others are those of a rule that knows the others only."""
    rule, smaller = bound(name), bound(name, ["a", "c"])
    kept = [0, 2]
    for means in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.9, 1.0, 2.0])):
        rule.end_epoch(means)
        smaller.end_epoch(means[kept])
    present = torch.tensor([True, False, True])
    losses = torch.where(present, LOSSES, 0.0)
    gram = GRADIENTS @ GRADIENTS.T
    gram[1], gram[:, 1] = 0, 0
    both = torch.ones(2, dtype=torch.bool)
    weights = rule.weights(losses, present, gram)
    expected = smaller.weights(losses[kept], both, gram[kept][:, kept])
    assert weights[1] == 0
    torch.testing.assert_close(weights[kept], expected)
    learned = [dict(r.named_parameters()).get("scale") for r in (rule, smaller)]
    if learned[0] is not None:
        ours = torch.autograd.grad(rule.own_loss(losses, present, gram), learned[0])[0]
        theirs = torch.autograd.grad(smaller.own_loss(losses[kept], both, gram[kept][:, kept]), learned[1])[0]
        assert ours[1] == 0
        torch.testing.assert_close(ours[kept], theirs)
    before = copy.deepcopy(rule.state_dict())
    rule.after_step(losses, losses * 0.9, present)
    for key, value in rule.state_dict().items():
        if value.ndim:
            assert torch.equal(value[..., 1], before[key][..., 1]), key


@pytest.mark.parametrize("name", RULES)
def test_a_resumed_rule_goes_on_as_it_would_have(name):
    rule = bound(name)
    gram = GRADIENTS @ GRADIENTS.T

    def go_on(rule) -> list[torch.Tensor]:
        found = []
        for epoch in range(3):
            for step in range(2):
                found.append(rule.weights(LOSSES + step, ALL, gram))
                rule.after_step(LOSSES, LOSSES * (0.9 + 0.05 * torch.arange(3)), ALL)
            rule.end_epoch(LOSSES / (epoch + 1))
        return found

    go_on(rule)
    resumed = bound(name)
    resumed.load_state_dict(rule.state_dict())
    for ours, theirs in zip(go_on(rule), go_on(resumed), strict=True):
        assert torch.equal(ours, theirs)


def test_rlw_draws_anew_for_each_step_and_alike_everywhere():
    rule, elsewhere = bound("rlw"), bound("rlw")
    first = rule.weights(LOSSES, ALL)
    assert torch.equal(first, rule.weights(LOSSES, ALL))
    assert torch.equal(first, elsewhere.weights(LOSSES, ALL))
    assert first.sum().item() == pytest.approx(1)
    rule.after_step(LOSSES, None, ALL)
    assert not torch.equal(first, rule.weights(LOSSES, ALL))
    partly = elsewhere.weights(LOSSES, torch.tensor([True, False, True]))
    assert partly[1] == 0
    assert (partly[0] / partly[2]).item() == pytest.approx((first[0] / first[2]).item(), rel=1e-5)


def test_dwa_waits_for_two_epochs_and_then_favours_the_slow():
    rule = bound("dwa")
    assert rule.weights(LOSSES, ALL).tolist() == pytest.approx([1, 1, 1])
    rule.end_epoch(torch.tensor([1.0, 1.0, 1.0]))
    assert rule.weights(LOSSES, ALL).tolist() == pytest.approx([1, 1, 1])
    rule.end_epoch(torch.tensor([1.0, 0.5, torch.nan]))  # the last one had no labels in this epoch
    shares = [math.exp(r / 2) for r in (1.0, 0.5, 1.0)]
    assert rule.weights(LOSSES, ALL).tolist() == pytest.approx([3 * s / sum(shares) for s in shares], rel=1e-5)


def test_pcgrad_on_a_strong_conflict_by_hand():
    """g1 = (1, 0), g2 = (-2, 1): g1 becomes (0.2, 0.4), g2 becomes (0, 1)."""
    gradients = torch.tensor([[1.0, 0.0], [-2.0, 1.0]], dtype=torch.float64)
    rule = PCGrad()
    rule.bind(["a", "b"])
    weights = rule.weights(LOSSES[:2], ALL[:2], gradients @ gradients.T)
    assert (weights.double() @ gradients).tolist() == pytest.approx([0.2, 1.4], abs=1e-6)


def test_cagrad_helps_the_worst_off():
    """Against the mean gradient: the least progress of any task along the direction is larger."""
    gram = GRADIENTS @ GRADIENTS.T
    rule = bound("cagrad")
    direction = rule.weights(LOSSES, ALL, gram).double() @ GRADIENTS * (1 + rule.c**2)
    mean = GRADIENTS.mean(dim=0)
    assert (GRADIENTS @ direction).min() > (GRADIENTS @ mean).min()
    assert (direction - mean).norm().item() == pytest.approx(rule.c * mean.norm().item(), rel=1e-3)


def test_gradients_of_batches_put_together():
    """Two uneven batches of a step, one without labels of a task: the same as one backward pass over all of it."""
    torch.manual_seed(0)
    trunk, heads = nn.Linear(4, 3), nn.Linear(3, 2)
    images, counts = torch.randn(5, 4), torch.tensor([5, 2])
    labelled = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 0], [1, 0]])
    gradients = TaskGradients(list(trunk.parameters()), list(heads.parameters()), 2)
    for part in (slice(0, 3), slice(3, 5)):
        each = heads(trunk(images[part])).square() * labelled[part]
        gradients.add(each.sum(dim=0) / counts, labelled[part].sum(dim=0) > 0)
    losses = (heads(trunk(images)).square() * labelled).sum(dim=0) / counts
    apart = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, trunk.parameters(), retain_graph=True)])
        for loss in losses
    ]
    torch.testing.assert_close(gradients.gram(), (torch.stack(apart) @ torch.stack(apart).T).double())
    gradients.write(torch.tensor([1.0, 1.0]))
    found = [p.grad.clone() for p in (*trunk.parameters(), *heads.parameters())]
    expected = torch.autograd.grad(losses.sum(), [*trunk.parameters(), *heads.parameters()])
    torch.testing.assert_close(found, list(expected))
    assert not gradients.gram().any()  # starts anew


def test_unusable_settings():
    with pytest.raises(InputError, match=r"no task 'd'; there are a, b, c"):
        FixedWeights({"d": 1.0}).bind(NAMES)
    with pytest.raises(InputError, match="the weight of a must be a number from 0 on, got -1"):
        FixedWeights({"a": -1.0}).bind(NAMES)
    with pytest.raises(InputError, match=r"c of CAGrad must be in \[0, 1\), got 1"):
        CAGrad(1.0)
    with pytest.raises(InputError, match="temperature must be positive, got 0"):
        DWA(0.0)


@pytest.mark.parametrize("name", ["pcgrad", "cagrad"])
def test_the_unit_of_the_gradients_does_not_matter(name):
    """A loss in thousandths has the same conflicts: neither a solver nor a small constant may lose them."""
    gram = GRADIENTS @ GRADIENTS.T
    torch.testing.assert_close(
        bound(name).weights(LOSSES, ALL, gram * 1e-6), bound(name).weights(LOSSES, ALL, gram), rtol=1e-3, atol=1e-5
    )
    assert torch.isfinite(bound(name).weights(LOSSES, ALL, gram * 0)).all()
