"""The contrastive domain discrepancy against its equations, looped over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from vision.memspm.discrepancy import Discrepancy, contrastive_domain_discrepancy


def _looped(source: list[Tensor], target: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Intra and inter of rows by class, straight from the equations (CAN, Equations 3 to 5; DCC's kernels)."""

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] - b[None]).square().sum(dim=2)

    def kernel(distance: Tensor, gamma: Tensor) -> Tensor:
        scaled = [(distance / (gamma * 2.0**power)).clamp(1e-5, 1e5) for power in range(-2, 3)]
        return torch.stack([(-ratio).exp() for ratio in scaled]).sum(dim=0).mean()

    intra, inter = [], []
    for c, s in enumerate(source):
        for other, t in enumerate(target):
            n, m = len(s), len(t)
            ss, tt, st = squared(s, s), squared(t, t), squared(s, t)
            pairs = n**2 + m**2 + 2 * n * m - n - m
            gamma = ((ss.sum() + tt.sum() + 2 * st.sum()) / pairs).detach().clamp(min=1e-5)
            energy = kernel(ss, gamma) + kernel(tt, gamma) - 2 * kernel(st, gamma)
            (intra if c == other else inter).append(energy)
    return torch.stack(intra).mean(), torch.stack(inter).mean() if inter else torch.zeros(())


def _rows(sizes: list[int], seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Rows of classes of these sizes, each around a place of its own, and their classes; in no order."""
    generator = torch.Generator().manual_seed(seed)
    of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    of = of[torch.randperm(len(of), generator=generator)]
    rows = torch.randn(len(of), 5, generator=generator, dtype=torch.float64) + of[:, None] - 0.3 * seed
    return rows.to(dtype).requires_grad_(), of


def _split(rows: Tensor, of: Tensor, classes: int) -> list[Tensor]:
    return [rows[of == number] for number in range(classes)]


@pytest.mark.parametrize(
    ("of_source", "of_target"),
    [
        ([3, 3, 3], [3, 3, 3]),
        ([1, 4, 2, 5], [6, 1, 2, 3]),
        ([1, 1], [1, 1]),
        ([4], [7]),
        ([1], [1]),
        ([2] * 12, [3] * 12),
    ],
)
def test_it_is_the_looped_one_with_its_gradients(of_source, of_target):
    classes = len(of_source)
    (source, of_s), (target, of_t) = _rows(of_source, 1), _rows(of_target, 2)
    found = contrastive_domain_discrepancy(source, of_s, target, of_t, classes)
    intra, inter = _looped(_split(source, of_s, classes), _split(target, of_t, classes))
    total = intra - inter if classes > 1 else intra
    expected = Discrepancy(total, intra, inter)
    assert_close(found, expected, rtol=1e-9, atol=1e-10, check_dtype=False)
    gradients = (torch.autograd.grad(loss, (source, target)) for loss in (found.total, total))
    for ours, looped in zip(*gradients, strict=True):
        assert_close(ours, looped, rtol=1e-8, atol=1e-10)


def test_float32_and_what_surrounds_it():
    (source, of_s), (target, of_t) = _rows([3, 2], 1, torch.float32), _rows([2, 4], 2, torch.float32)
    found = contrastive_domain_discrepancy(source, of_s, target, of_t, 2)
    exact = contrastive_domain_discrepancy(source.double(), of_s, target.double(), of_t, 2)
    assert_close(found, exact, rtol=0, atol=1e-5, check_dtype=False)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert contrastive_domain_discrepancy(source, of_s, target, of_t, 2) == found
            low = contrastive_domain_discrepancy(source.to(dtype), of_s, target.to(dtype), of_t, 2)
        assert low.total.dtype == torch.float32
        assert_close(low.total, found.total, rtol=0, atol=0.1)


def test_without_classes_the_loss_is_nothing_and_propagates():
    source, target = torch.randn(4, 5, requires_grad=True), torch.zeros(0, 5, requires_grad=True)
    none = torch.zeros(4, dtype=torch.long)
    found = contrastive_domain_discrepancy(source, none, target, none[:0], 0)
    assert [part.item() for part in found] == [0, 0, 0]
    for gradient in torch.autograd.grad(found.total, (source, target)):
        assert not gradient.any()


def test_equal_domains_have_no_discrepancy_within_classes():
    rows, of = _rows([3, 3], 1)
    found = contrastive_domain_discrepancy(rows, of, rows.detach().clone(), of, 2)
    # Kernels of a row with itself are bounded as those of equal rows of both domains are.
    assert found.intra.item() == pytest.approx(0, abs=1e-9)
    assert found.inter.item() > 0.1


@pytest.mark.parametrize("same", [1, 2])
def test_rows_that_coincide_keep_the_gradients_finite(same):
    """As where a class is drawn with replacement from one picture, or all features have collapsed."""
    source, target = torch.ones(4, 3, requires_grad=True), torch.ones(4, 3)
    if same == 2:  # classes are apart, the rows of each are one
        target = torch.tensor([[1.0, 1, 1], [1, 1, 1], [5, 5, 5], [5, 5, 5]])
    of = torch.tensor([0, 0, 1, 1])
    found = contrastive_domain_discrepancy(source, of, target, of, 2)
    assert all(part.isfinite() for part in found)
    (gradient,) = torch.autograd.grad(found.total, source)
    assert gradient.isfinite().all()


def test_descending_it_brings_each_class_to_its_own():
    of = torch.arange(3).repeat_interleave(4)
    noise = 0.2 * torch.randn(2, 12, 2, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0.0, 0], [3, 0], [0, 3]])
    source = places[of] + noise[0]
    target = (torch.tensor([[1.6, 0], [3, 2], [1, 4]])[of] + noise[1]).requires_grad_()

    def nearest() -> Tensor:
        return torch.cdist(target.detach(), places).argmin(dim=1)

    assert (nearest() != of).any()
    first = contrastive_domain_discrepancy(source, of, target, of, 3)
    optimizer = torch.optim.SGD([target], lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        contrastive_domain_discrepancy(source, of, target, of, 3).total.backward()
        optimizer.step()
    last = contrastive_domain_discrepancy(source, of, target, of, 3)
    assert torch.equal(nearest(), of)
    assert last.intra < first.intra / 2
    assert last.inter > 3 * last.intra
