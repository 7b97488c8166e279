"""Whether a memory is alive, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vision.memspm.addressing import Addressed
from vision.memspm.health import Health, examine_memory, style_nmi
from vision.memspm.memory import MemoryOptions, SubPrototypeMemory


def made_of(rows: list[list[int]]) -> Addressed:
    """What pictures are made of, as to the rows; the first is the heaviest."""
    weights = torch.linspace(1, 0.5, len(rows[0])).expand(len(rows), -1)
    return Addressed(torch.zeros(len(rows), 2), torch.tensor(rows), weights / weights.sum(dim=1, keepdim=True))


def memory(source: Tensor, target: Tensor) -> SubPrototypeMemory:
    found = SubPrototypeMemory(MemoryOptions(items=len(source), subs=source.shape[1], top_k=1), 2)
    found.source_usage.copy_(source)
    found.target_usage.copy_(target)
    return found


def test_used_by_either_domain_and_pure_by_the_heaviest():
    """Sub-prototypes 0 and 2 have 3 pictures each, 2 of one class; 5 has 2 of one class."""
    of_source = torch.tensor([[0.5, 0.1], [0.3, 0.0], [0.1, 0.0]])
    of_target = torch.tensor([[0.0, 0.0], [0.1, 0.4], [0.3, 0.2]])
    addressed = made_of([[0, 2], [0, 2], [0, 2], [2, 0], [2, 0], [2, 0], [5, 0], [5, 0]])
    found = examine_memory(memory(of_source, of_target), addressed, torch.tensor([0, 0, 1, 1, 1, 3, 0, 0]))
    assert found == Health(used=5, total=6, purity=6 / 8)
    assert not found.collapsed
    assert str(found) == "5 of 6 sub-prototypes used, class purity 0.75"
    assert Health(**found.as_dict()) == found


def test_less_than_an_even_share_is_not_used():
    shares = torch.tensor([[0.97, 0.01], [0.01, 0.01]])
    found = examine_memory(memory(shares, shares), made_of([[0], [0]]), torch.tensor([0, 1]))
    assert found.used == 1
    assert found.purity == 0.5


@pytest.mark.parametrize(("used", "collapsed"), [(29, True), (30, False), (31, False)])
def test_a_memory_of_which_hardly_anything_is_used_has_collapsed(used: int, collapsed: bool):
    found = Health(used, 100, 0.9)
    assert found.collapsed == collapsed
    warning = ": the memory has collapsed (begin it from the data, at a lower temperature)"
    assert str(found).endswith(warning) == collapsed


def test_styles_are_told_apart_within_a_class():
    """In class 0 the sub-prototype says the style, in class 1 nothing: the mean of 1 and 0."""
    labels = torch.tensor([0] * 4 + [1] * 4)
    styles = torch.tensor([0, 0, 1, 1] * 2)
    rows = torch.tensor([7, 7, 9, 9, 3, 4, 3, 4])
    assert style_nmi(rows, labels, styles) == pytest.approx(0.5)
    assert style_nmi(rows[:4], labels[:4], styles[:4]) == pytest.approx(1)


def test_sub_prototypes_that_tell_only_classes_tell_no_styles():
    labels = torch.tensor([0] * 4 + [1] * 4)
    assert style_nmi(labels + 3, labels, torch.tensor([0, 0, 1, 1] * 2)) == pytest.approx(0)
