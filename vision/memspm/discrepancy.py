"""Contrastive domain discrepancy (CAN, arXiv 1901.00976), as DCC computes it: classes match, and keep apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

KERNELS = 5  # bandwidths gamma / 4, gamma / 2, ... 4 gamma
NARROWEST = 1e-5  # of a bandwidth
RANGE = (1e-5, 1e5)  # of a squared distance over its bandwidth


class Discrepancy(NamedTuple):
    """The parts of the loss, scalars.

    Attributes:
        total: ``intra - inter``; ``intra`` alone where there is one class.
        intra: mean over the classes of the distance between the domains.
        inter: mean over ordered pairs of different classes; 0 where there is one.
    """

    total: Tensor
    intra: Tensor
    inter: Tensor


def contrastive_domain_discrepancy(
    source: Tensor, source_class: Tensor, target: Tensor, target_class: Tensor, classes: int
) -> Discrepancy:
    """CDD of one layer (DCC, ``utils/cdd.py``; one slot a class).

    The five Gaussian kernels are powers of one exponential and the sums over classes are matrix products, so that
    nothing is looped over: the same numbers and gradients at a fraction of the time.

    Args:
        source: ``(n, D)``.
        source_class: int64 ``(n,)`` in [0, ``classes``).
        target: ``(m, D)``.
        target_class: int64 ``(m,)``.
        classes: how many; each must have rows in both domains. With 0 the loss is 0, and can still be propagated.
    """
    if classes == 0:
        nothing = source.sum() * 0.0 + target.sum() * 0.0
        return Discrepancy(nothing, nothing, nothing)
    with torch.autocast(source.device.type, enabled=False):
        source, target = (rows if rows.dtype == torch.float64 else rows.float() for rows in (source, target))
        of_source = F.one_hot(source_class, classes).to(source.dtype)
        of_target = F.one_hot(target_class, classes).to(source.dtype)
        n, m = of_source.sum(dim=0)[:, None], of_target.sum(dim=0)[None, :]
        ss, tt, st = _squared(source, source), _squared(target, target), _squared(source, target)
        # (classes, classes) from here on: rows are the source's classes, columns the target's.
        with torch.no_grad():
            sums = (of_source * (ss @ of_source)).sum(dim=0)[:, None] + (of_target * (tt @ of_target)).sum(dim=0)[None]
            pairs = n * n + m * m + 2 * n * m - n - m
            gamma = ((sums + 2 * of_source.T @ st @ of_target) / pairs).clamp(min=NARROWEST)
        within_source = _within(ss, source_class, gamma)
        within_target = _within(tt, target_class, gamma.T).T
        between = of_source.T @ _kernels(st / gamma[source_class][:, target_class]) @ of_target
        energy = within_source / (n * n) + within_target / (m * m) - 2 * between / (n * m)
        intra = energy.diagonal().mean()
        if classes == 1:
            return Discrepancy(intra, intra, intra * 0.0)
        inter = (energy.sum() - energy.diagonal().sum()) / (classes * (classes - 1))
        return Discrepancy(intra - inter, intra, inter)


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances ``(n, m)``; exactly 0 of a row to itself."""
    found = (a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)[None, :] - 2 * a @ b.T).clamp(min=0)
    return found - torch.diag(found.diagonal()) if a is b else found


def _within(squared: Tensor, of: Tensor, gamma: Tensor) -> Tensor:
    """Sums of the kernels over the pairs of one domain's rows within each class, for each of its bandwidths.

    Args:
        squared: ``(n, n)``.
        of: int64 ``(n,)``, the class of each row.
        gamma: ``(classes, classes)``: a row has the bandwidths that a class is looked at with.
    """
    first, second = (of[:, None] == of[None, :]).nonzero(as_tuple=True)
    kernels = _kernels(squared[first, second][:, None] / gamma[of[first]])
    return torch.zeros_like(gamma).index_add(0, of[first], kernels)


def _kernels(ratio: Tensor) -> Tensor:
    """The sum of the five kernels of squared distances over their bandwidth."""
    widest = (-ratio / 4).exp()
    found, power = widest, widest
    for _ in range(KERNELS - 1):
        power = power.square()
        found = found + power
    # The official code bounds each kernel's argument from below, which is felt where a row meets itself.
    near = ratio < 4 * RANGE[0]
    few = ratio[near]
    bounded = torch.stack([(-(few * 2.0**power).clamp(*RANGE)).exp() for power in range(-2, 3)]).sum(dim=0)
    return found.masked_scatter(near, bounded)
