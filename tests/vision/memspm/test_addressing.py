"""Which sub-prototypes a feature is made of: by hand, in both forms, at ties and in low precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vision.memspm.addressing import dense, gather, shrink


def _at(*degrees: float, length: float = 1.0) -> Tensor:
    """``(n, 2)``: directions in the plane."""
    angles = torch.deg2rad(torch.tensor(degrees))
    return length * torch.stack([angles.cos(), angles.sin()], dim=1)


# Three items of two sub-prototypes; a feature along the first axis sees them at these angles.
PLANE = _at(0, 60, 90, 30, 180, 120, length=3.0).view(3, 2, 2)
ALONG = torch.tensor([[5.0, 0.0]])


def _random(batch: int = 7, items: int = 6, subs: int = 4, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, width, generator=generator), torch.randn(items, subs, width, generator=generator)


def test_the_best_of_each_item_are_chosen_and_weighted_by_their_cosines():
    found = gather(ALONG, PLANE, top_k=2, temperature=0.5)
    assert found.rows.tolist() == [[0, 3]]  # 0 and 30 degrees; 60 belongs to the item of 0
    odds = math.exp((1 - math.cos(math.pi / 6)) / 0.5)
    first = odds / (1 + odds)
    assert_close(found.weights, torch.tensor([[first, 1 - first]]))
    assert_close(found.embedding, first * PLANE[0, :1] + (1 - first) * PLANE[1, 1:])


def test_an_item_can_be_chosen_twice_among_all_sub_prototypes():
    found = gather(ALONG, PLANE, top_k=3, temperature=0.5, one_per_item=False)
    assert found.rows.tolist() == [[0, 3, 1]]
    cosines = torch.tensor([[1.0, math.cos(math.pi / 6), 0.5]])
    assert_close(found.weights, (cosines / 0.5).softmax(dim=1))


def test_one_sub_prototype_is_taken_as_it_is():
    found = gather(_at(100), PLANE, top_k=1, temperature=0.05)
    assert found.rows.tolist() == [[2]]
    assert found.weights.tolist() == [[1.0]]
    assert torch.equal(found.embedding, PLANE[1, :1])


def test_lengths_of_features_make_no_difference_and_those_of_sub_prototypes_are_the_embeddings():
    features, memory = _random()
    found, longer = gather(features, memory, 3, 0.1), gather(20 * features, 4 * memory, 3, 0.1)
    assert torch.equal(longer.rows, found.rows)
    assert_close(longer.embedding, 4 * found.embedding)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("top_k", [1, 3, 6])
def test_both_forms_give_the_same_embedding_and_gradients(top_k, temperature):
    features, memory = _random()
    aim = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    results = []
    for form in (
        lambda z, m: gather(z, m, top_k, temperature).embedding,
        lambda z, m: dense(z, m, top_k, temperature, "exact").embedding,
    ):
        z, m = features.clone().requires_grad_(), memory.clone().requires_grad_()
        embedding = form(z, m)
        results.append((embedding, *torch.autograd.grad((embedding * aim).sum(), (z, m))))
    for quick, printed in zip(*results, strict=True):
        assert_close(quick, printed, rtol=1e-4, atol=1e-5)


def test_only_chosen_sub_prototypes_have_gradients():
    features, memory = _random(batch=1)
    memory.requires_grad_()
    found = gather(features, memory, 2, 0.1)
    (gradient,) = torch.autograd.grad(found.embedding.square().sum(), memory)
    touched = gradient.flatten(0, 1).any(dim=1).nonzero().flatten()
    assert touched.tolist() == sorted(found.rows[0].tolist())


@pytest.mark.parametrize(("threshold", "survive"), [("paper", 2), ("exact", 3)])
def test_how_many_survive_the_threshold(threshold, survive):
    found = dense(*_random(), 3, 0.1, threshold)
    assert (found.shrunk > 0).sum(dim=1).tolist() == [survive] * 7
    assert_close(found.shrunk.sum(dim=1), torch.ones(7))
    ordered = found.item_weights.sort(dim=1, descending=True).values
    assert torch.equal(found.threshold, ordered[:, 2 if threshold == "paper" else 3])


def test_shrinkage_is_all_or_nothing():
    assert_close(shrink(torch.tensor([0.1, 0.2, 0.3, 0.5]), 0.2), torch.tensor([0.0, 0.0, 0.3, 0.5]))
    # The threshold of each row, as the addressing has it.
    weights = torch.tensor([[0.1, 0.4], [0.3, 0.2]])
    assert_close(shrink(weights, torch.tensor([[0.2], [0.25]])), torch.tensor([[0.0, 0.4], [0.3, 0.0]]))


def _hard_cases() -> dict[str, tuple[Tensor, Tensor]]:
    features, memory = _random()
    twice = memory.clone()
    twice[3] = twice[2]
    equal = memory[:1, :1].expand_as(memory).clone()
    zero_rows = memory.clone()
    zero_rows[1], zero_rows[2, 0] = 0, 0
    return {
        "duplicate items": (features, twice),
        "equal rows": (features, equal),
        "zero rows": (features, zero_rows),
        "nothing but zeros": (features, torch.zeros_like(memory)),
        "zero features": (torch.zeros_like(features), memory),
        "tiny": (features * 1e-20, memory * 1e-20),
    }


@pytest.mark.parametrize("name", list(_hard_cases()))
@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_ties_and_zeros_keep_values_and_gradients_finite(name, temperature):
    features, memory = (tensor.requires_grad_() for tensor in _hard_cases()[name])
    for one_per_item in (True, False):
        found = gather(features, memory, 3, temperature, one_per_item)
        assert_close(found.weights.sum(dim=1), torch.ones(7))
        assert all(len(set(rows)) == 3 for rows in found.rows.tolist())
        gradients = torch.autograd.grad(found.embedding.sum(), (features, memory))
        for result in (found.embedding, *gradients):
            assert result.isfinite().all()
            assert result.abs().max() < 1e4
    printed = dense(features, memory, 3, temperature)
    for result in (printed.embedding, *torch.autograd.grad(printed.embedding.sum(), (features, memory))):
        assert result.isfinite().all()


def test_a_tie_at_the_threshold_leaves_the_printed_form_less():
    """Two items at the threshold are both above nothing; looked up, K are chosen all the same."""
    memory = _at(0, 30, 30, 90)[:, None]
    assert (dense(ALONG, memory, 2, 1.0, "exact").shrunk > 0).tolist() == [[True, False, False, False]]
    found = gather(ALONG, memory, 2, 1.0)
    assert found.rows[0, 0] == 0
    assert found.rows[0, 1] in (1, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_around_it_changes_nothing(dtype):
    features, memory = (tensor.requires_grad_() for tensor in _random(items=50, subs=40))
    plain = gather(features, memory, 5, 0.05)
    over_all = dense(features, memory, 5, 1.0)
    with torch.autocast("cpu", dtype):
        found = gather(features, memory, 5, 0.05)
        assert_close(found, plain, rtol=0, atol=0)
        assert_close(dense(features, memory, 5, 1.0), over_all, rtol=0, atol=0)
        low = gather(features.to(dtype), memory, 5, 0.05)
    assert low.embedding.dtype == torch.float32
    for gradient in torch.autograd.grad(low.embedding.sum(), (features, memory)):
        assert gradient.isfinite().all()
