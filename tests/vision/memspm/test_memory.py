"""The memory of sub-prototypes: its options, its start from the data, its use and what it says is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from vision.errors import InputError
from vision.memspm.addressing import Addressed
from vision.memspm.memory import MemoryOptions, SubPrototypeMemory, used


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 41}, "memory.top_k is 41, there are 40 items"),
        ({"top_k": 161, "address": "flat"}, "memory.top_k is 161, there are 160 sub-prototypes"),
        ({"top_k": 0}, "memory.top_k must be at least 1, got 0"),
        ({"items": 0}, "memory.items must be at least 1, got 0"),
        ({"subs": 0}, "memory.subs must be at least 1, got 0"),
        ({"temperature": 0.0}, "memory.temperature must be positive, got 0.0"),
        ({"temperature": -1.0}, "memory.temperature must be positive, got -1.0"),
        ({"temperature": float("nan")}, "memory.temperature must be positive, got nan"),
        (
            {"top_k": 1, "address": "paper"},
            "memory.top_k must be at least 2 with address paper, where K - 1 sub-prototypes survive",
        ),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError) as caught:
        MemoryOptions(**options)
    assert str(caught.value) == message


def test_all_items_and_all_sub_prototypes_can_be_asked_for():
    features = torch.randn(3, 5)
    for address, top_k in (("item_best", 4), ("paper", 4), ("flat", 12)):
        memory = SubPrototypeMemory(MemoryOptions(items=4, subs=3, top_k=top_k, address=address), 5)
        assert memory(features).rows.shape == (3, top_k)


def _memory(features: int = 6, **options) -> SubPrototypeMemory:
    torch.manual_seed(0)
    small = {"items": 5, "subs": 3, "top_k": 3, "temperature": 0.1}
    return SubPrototypeMemory(MemoryOptions(**small | options), features)


def test_without_data_it_begins_as_memaes_does():
    memory = _memory(features=64, items=100, subs=4)
    assert set(memory.state_dict()) == {"weight", "source_usage", "target_usage"}
    assert memory.weight.shape == (100, 4, 64)
    assert 0.12 < memory.weight.abs().max() <= 0.125  # the inverse root of 64
    assert not memory.source_usage.any()


@pytest.mark.parametrize("address", ["item_best", "flat", "paper"])
@pytest.mark.parametrize("autocast", [False, True])
def test_embeddings_are_the_weighted_sub_prototypes(address, autocast):
    memory, features = _memory(address=address), torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = memory(features)
    assert found.embedding.dtype == torch.float32
    table = memory.weight.flatten(0, 1)
    assert_close(found.embedding, (found.weights[:, :, None] * table[found.rows]).sum(dim=1))
    assert_close(found.weights.sum(dim=1), torch.ones(20))
    assert (found.weights.diff(dim=1) <= 0).all()
    assert (found.weights[:, -1] == 0).all() == (address == "paper")
    items = [len(set(rows)) for rows in (found.rows // 3).tolist()]
    assert (min(items) == 3) == (address != "flat")
    cosines = F.normalize(features, dim=1) @ F.normalize(table, dim=1).T
    assert torch.equal(found.rows[:, 0], cosines.argmax(dim=1))
    found.embedding.square().sum().backward()
    assert memory.weight.grad is not None
    assert memory.weight.grad.isfinite().all()


def _around(axis: int, number: int, seed: int) -> Tensor:
    noise = torch.randn(number, 6, generator=torch.Generator().manual_seed(seed))
    return 10 * torch.eye(6)[axis] + noise


def _domains() -> tuple[Tensor, Tensor]:
    """Axis 0 is common, 1 the source's own, 2 the target's."""
    return torch.cat([_around(0, 20, 0), _around(1, 20, 1)]), torch.cat([_around(0, 20, 2), _around(2, 20, 3)])


def test_the_start_has_items_for_what_either_domain_has():
    source, target = _domains()
    memory = _memory(items=3, subs=2, top_k=2)
    memory.start_from(source, target)
    axes = memory.weight.flatten(0, 1).argmax(dim=1).view(3, 2)
    assert torch.equal(axes[:, 0], axes[:, 1])  # an item's are of one kind
    assert sorted(axes[:, 0].tolist()) == [0, 1, 2]
    lengths = memory.weight.norm(dim=2)
    assert ((lengths > 8) & (lengths < 12)).all()  # as long as features are
    assert (memory.weight[:, 0] != memory.weight[:, 1]).any(dim=1).all()
    before = memory.weight.clone()
    memory.start_from(source, target)
    assert torch.equal(memory.weight, before)
    assert memory.weight.requires_grad


def test_the_source_is_what_is_known_of():
    memory = _memory(items=3, subs=2, top_k=1)
    source, target = _domains()
    memory.start_from(source, target)
    for usage, rows in ((memory.source_usage, source), (memory.target_usage, target)):
        usage.copy_(memory.usage(memory(rows)))
    assert_close(memory.known(memory(source)), torch.tensor([0.5, 1.0]).repeat_interleave(20))
    assert_close(memory.known(memory(target)), torch.tensor([0.5, 0.0]).repeat_interleave(20))


def test_an_item_of_few_pictures_has_each_of_them():
    source, target = 4 * torch.eye(6)[:2], torch.tensor([[0, 0, 2.0, 0, 0, 0], [0, 0, 2, 0.2, 0, 0]])
    memory = _memory(items=3, subs=3, top_k=1)
    memory.start_from(source, target)
    found = sorted(item.unique(dim=0).tolist() for item in memory.weight)
    assert found == sorted([source[:1].tolist(), source[1:].tolist(), target.tolist()])


def test_equal_pictures_of_fewer_kinds_than_items():
    memory = _memory()
    memory.start_from(torch.full((4, 6), 2.0), 3 * torch.eye(6)[:1].expand(4, -1))
    assert memory.weight.isfinite().all()
    assert (memory.weight.norm(dim=2) > 1).all()
    found = memory(torch.ones(2, 6))
    found.embedding.sum().backward()
    assert memory.weight.grad is not None
    assert memory.weight.grad.isfinite().all()
    assert_close(F.normalize(found.embedding, dim=1), F.normalize(torch.ones(2, 6), dim=1), rtol=0, atol=1e-2)


def test_too_few_pictures_not_counting_those_without_features():
    features = torch.cat([torch.randn(4, 6), torch.zeros(9, 6)])
    with pytest.raises(InputError) as caught:
        _memory().start_from(features[:2], features[2:])
    assert str(caught.value) == "memory.items is 5, there are 4 pictures to begin it from"
    _memory(items=4).start_from(features[:2], features[2:])


def test_usage_is_the_mean_weight_of_each_sub_prototype():
    memory = _memory(items=2, subs=2, top_k=2)
    found = Addressed(torch.zeros(2, 6), torch.tensor([[0, 3], [3, 1]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    assert_close(memory.usage(found), torch.tensor([[0.375, 0.25], [0.0, 0.375]]))
    assert used(memory.usage(found)).tolist() == [[True, True], [False, True]]
    nobody = Addressed(found.embedding[:0], found.rows[:0], found.weights[:0])
    assert not memory.usage(nobody).any()


def test_what_is_known_goes_by_items_and_what_nobody_uses_is_unknown():
    memory = _memory(items=3, subs=2, top_k=2)
    memory.source_usage.copy_(torch.tensor([[0.5, 0.1], [0.1, 0.3], [0, 0]]))
    memory.target_usage.copy_(torch.tensor([[0.0, 0.2], [0.6, 0.2], [0, 0]]))
    # Shares of the source: 0.6 of 0.8, 0.4 of 1.2, nothing.
    found = Addressed(
        torch.zeros(3, 6), torch.tensor([[1, 2], [3, 0], [5, 4]]), torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])
    )
    assert_close(memory.known(found), torch.tensor([(0.75 + 1 / 3) / 2, 1 / 3, 0]))
