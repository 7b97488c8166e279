"""The losses of OVANet and DANCE, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from vision.memspm.baselines import (
    NeighbourBank,
    entropy_separation,
    known_probability,
    one_vs_all_entropy,
    one_vs_all_losses,
)


def pairs(known: list[list[float]]) -> Tensor:
    """Logits ``(B, 2, C)`` whose softmax has these probabilities of known."""
    probability = torch.tensor(known)
    return torch.stack([1 - probability, probability], dim=1).log()


def entropy(*probabilities: float) -> float:
    return -sum(share * math.log(share) for share in probabilities)


# ----------------------------------------------------------------------------------------------------------- OVANet
def test_the_own_class_and_the_hardest_other():
    logits = pairs([[0.9, 0.2, 0.4], [0.3, 0.6, 0.1]])
    found = one_vs_all_losses(logits, torch.tensor([0, 1]))
    assert float(found.positive) == pytest.approx(-(math.log(0.9) + math.log(0.6)) / 2)
    assert float(found.negative) == pytest.approx(-(math.log(1 - 0.4) + math.log(1 - 0.3)) / 2)


def test_one_class_has_no_others():
    found = one_vs_all_losses(pairs([[0.9], [0.5]]), torch.tensor([0, 0]))
    assert float(found.negative) == 0
    assert float(found.positive) == pytest.approx(-(math.log(0.9) + math.log(0.5)) / 2)


def test_the_mean_entropy_of_all_classifiers():
    expected = (entropy(0.9, 0.1) + entropy(0.5, 0.5) + 2 * entropy(0.2, 0.8)) / 4
    assert float(one_vs_all_entropy(pairs([[0.9, 0.5], [0.2, 0.8]]))) == pytest.approx(expected)


def test_the_predicted_classs_own_classifier_is_asked():
    found = known_probability(pairs([[0.9, 0.2], [0.3, 0.6]]), torch.tensor([1, 0]))
    assert_close(found, torch.tensor([0.2, 0.3]))


def test_certain_classifiers_give_finite_losses():
    logits = torch.tensor([[[200.0, -200.0], [-200.0, 200.0]]], requires_grad=True)
    found = one_vs_all_losses(logits, torch.tensor([0]))
    loss = found.positive + found.negative + one_vs_all_entropy(logits)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(800)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ DANCE
def neighbours_by_hand(unit: Tensor, index: list[int], bank: Tensor, prototypes: Tensor) -> Tensor:
    """DANCE's Equations 2 to 4, picture by picture: a picture is no neighbour of itself."""
    losses = []
    for row, own in zip(unit, index, strict=True):
        others = [prototype @ row for prototype in prototypes]
        others += [neighbour @ row for place, neighbour in enumerate(bank) if place != own]
        shares = (torch.stack(others) / 0.05).softmax(dim=0)
        losses.append(-(shares * shares.log()).sum())
    return torch.stack(losses).mean()


def directions(number: int, seed: int) -> Tensor:
    # Close to each other, or the softmax over cosines / 0.05 would have but one neighbour.
    rows = 1 + 0.2 * torch.randn(number, 6, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=1)


def test_the_entropy_over_neighbours_and_classes_and_its_gradient():
    rows, prototypes, unit = directions(8, 0), directions(3, 1), directions(3, 2).requires_grad_()
    bank = NeighbourBank(8, 6)
    bank.fill(5 * rows, torch.arange(8))
    loss = bank(unit, torch.tensor([4, 0, 7]), prototypes)
    by_hand = neighbours_by_hand(unit, [4, 0, 7], rows, prototypes)
    assert_close(loss, by_hand)
    assert_close(torch.autograd.grad(loss, unit)[0], torch.autograd.grad(by_hand, unit)[0])


def test_the_bank_takes_a_batch_at_the_next_call_or_when_it_is_told():
    rows, prototypes = directions(5, 0), directions(2, 1)
    first, second = directions(2, 2), directions(2, 3)
    bank = NeighbourBank(5, 6)
    bank.fill(rows, torch.arange(5))
    rows = bank.bank.clone()
    bank(first, torch.tensor([1, 3]), prototypes)
    assert torch.equal(bank.bank, rows)
    loss = bank(second, torch.tensor([1, 0]), prototypes)
    rows[[1, 3]] = first
    assert torch.equal(bank.bank, rows)
    assert_close(loss, neighbours_by_hand(second, [1, 0], rows, prototypes))
    bank.flush()
    rows[[1, 0]] = second
    assert torch.equal(bank.bank, rows)
    bank.flush()
    assert torch.equal(bank.bank, rows)


def test_similarities_are_exact_in_low_precision():
    rows, prototypes, unit = directions(8, 0), directions(3, 1), directions(3, 2)
    exact, low = NeighbourBank(8, 6), NeighbourBank(8, 6)
    for bank in (exact, low):
        bank.fill(rows, torch.arange(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = low(unit, torch.tensor([4, 0, 7]), prototypes)
    assert_close(found, exact(unit, torch.tensor([4, 0, 7]), prototypes))


def test_entropies_are_drawn_from_the_middle_but_not_from_close_to_it():
    """Of 8 classes the middle is log(8) / 2 = 1.04; the margin is 0.5."""
    middle = math.log(8) / 2

    def spread_over(count: int) -> Tensor:
        return torch.tensor([0.0] * count + [-1000.0] * (8 - count))

    # Entropies log 8, 0, log 2 and log 4: the last two are within 0.5 of the middle.
    logits = torch.stack([spread_over(count) for count in (8, 1, 2, 4)]).requires_grad_()
    assert abs(math.log(4) - middle) < 0.5
    loss = entropy_separation(logits)
    assert float(loss.detach()) == pytest.approx(-2 * middle / 4)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_which_way_the_separation_pulls():
    unsure = torch.tensor([[0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    entropy_separation(unsure).backward()
    assert float(unsure.grad[0, 0]) > 0  # a step downhill makes it less sure yet
    sure = torch.tensor([[6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    entropy_separation(sure).backward()
    assert float(sure.grad[0, 0]) < 0
