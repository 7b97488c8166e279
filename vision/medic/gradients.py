"""Rules that look at the tasks' gradients on the shared parameters, and what keeps those gradients for them.

Each rule ends in a weighted sum of the gradients, and the weights depend on the gradients by their products alone. So a
rule is given the T x T matrix of products (the Gram matrix) and gives weights. They are for the shared parameters: the
heads get the plain gradients of their own tasks, as in LibMTL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from vision.errors import InputError
from vision.medic.weighting import Needs, Weighting, softmax_over


class GradNorm(Weighting):
    """Weights under which all tasks train at the same rate (arXiv 1711.02257).

    ``w = T softmax(s)``; the optimizer trains ``s`` to minimise ``sum_t |w_t |g_t| - mean_k(w_k |g_k|) r_t^alpha|``,
    where the mean and ``r_t``, the relative inverse training rate ``(loss_t / first_t) / mean``, are constants.
    ``first`` are the means of the first epoch, during which all weights are 1 (as in LibMTL).

    Args:
        alpha: how strongly the slower tasks are favoured.
    """

    needs: Needs = "gradients"
    first: Tensor

    def __init__(self, alpha: float = 1.5) -> None:
        super().__init__()
        self.alpha = alpha

    def bind(self, names: Sequence[str]) -> None:
        """As in the base class."""
        super().bind(names)
        self.scale = nn.Parameter(torch.ones(len(names)))
        self.register_buffer("first", torch.zeros(len(names)))  # 0: not known yet

    def _started(self) -> bool:
        return bool((self.first > 0).all())

    def _weights(self, present: Tensor) -> Tensor:
        if not self._started():
            return present.to(self.scale.dtype)
        return present.sum() * softmax_over(self.scale, present)

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """``T softmax(s)``."""
        return self._weights(present).detach()

    def own_loss(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """The differences of the gradients' norms from where they should be."""
        if not self._started():
            return 0.0 * self.scale.sum()
        assert gram is not None
        norms = gram.diagonal().clamp(min=0).sqrt().to(self.scale.dtype)
        weighted = (self._weights(present) * norms)[present]
        rates = (losses / self.first)[present]
        aim = weighted.mean() * (rates / rates.mean()) ** self.alpha
        return (weighted - aim.detach()).abs().sum()

    def end_epoch(self, losses: Tensor) -> None:
        """Remembers the losses of the first epoch in which each task had labels."""
        newest = losses.nan_to_num(0.0).to(self.first.dtype)
        self.first = torch.where(self.first > 0, self.first, newest)


class PCGrad(Weighting):
    """Takes from each gradient its part against another task's, in random order (arXiv 2001.06782).

    For each task i and every j (LibMTL does not except i itself): where ``g_i . g_j < 0``,
    ``g_i -= (g_i . g_j / |g_j|^2) g_j`` with the original ``g_j``; then the sum.

    Args:
        seed: of the orders, which are the same on all processes.
    """

    needs: Needs = "gradients"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def _order(self, count: int, generator: torch.Generator) -> list[int]:
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        return order

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """What each original gradient contributes to the sum of the projected ones."""
        assert gram is not None
        products = _scaled(gram[present][:, present])
        generator = self._generator(self.seed)
        parts = torch.eye(len(products), dtype=products.dtype, device=products.device)
        for part in parts:
            for j in self._order(len(products), generator):
                along = part @ products[:, j]
                if along < 0:
                    part[j] -= along / (products[j, j] + 1e-8)
        return _spread(parts.sum(dim=0), present, losses)


class CAGrad(Weighting):
    """The direction near the mean gradient that helps the worst-off task most (arXiv 2110.14048).

    The mean gradient ``g_0`` plus ``c |g_0|`` along ``g_w = sum_t w_t g_t``, with ``w`` on the simplex minimising
    ``g_w . g_0 + c |g_0| |g_w|``; divided by ``1 + c^2``. Its scale is that of the mean, not of the sum.

    Args:
        c: how far from the mean gradient, as a share of its length, in [0, 1).
    """

    needs: Needs = "gradients"

    def __init__(self, c: float = 0.5) -> None:
        super().__init__()
        if not 0 <= c < 1:
            raise InputError(f"weighting: c of CAGrad must be in [0, 1), got {c}")
        self.c = c

    def weights(self, losses: Tensor, present: Tensor, gram: Tensor | None = None) -> Tensor:
        """Of the mean and of the correction, together."""
        assert gram is not None
        products = _scaled(gram[present][:, present]).cpu().numpy()
        count = len(products)
        even = np.full(count, 1 / count)
        radius = self.c * np.sqrt(products.mean() + 1e-8)

        def objective(w: np.ndarray) -> float:
            return float(w @ products @ even + radius * np.sqrt(w @ products @ w + 1e-8))

        simplex = {"type": "eq", "fun": lambda w: 1 - w.sum()}
        found = minimize(objective, even, bounds=[(0, 1)] * count, constraints=simplex).x
        length = np.sqrt(max(found @ products @ found, 0.0))
        total = (even + radius / (length + 1e-8) * found) / (1 + self.c**2)
        return _spread(torch.from_numpy(total), present, losses)


def _scaled(products: Tensor) -> Tensor:
    """In units of the mean squared length: solvers and small constants take gradients for being of about that size."""
    products = products.double()
    return products / products.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)


def _spread(values: Tensor, present: Tensor, like: Tensor) -> Tensor:
    """The values of the tasks that are present, at their places among all tasks."""
    out = torch.zeros(len(present), dtype=like.dtype, device=like.device)
    out[present] = values.to(out)
    return out


class TaskGradients:
    """The gradient of every task's loss, summed over the batches of one optimizer step.

    Takes a backward pass for each task that a batch has labels of, and memory for T gradients of the shared parameters.

    Args:
        shared: the parameters that all tasks use.
        own: those whose gradients are added up as they are, such as the tasks' heads.
        tasks: their number.
    """

    def __init__(self, shared: Sequence[nn.Parameter], own: Sequence[nn.Parameter], tasks: int) -> None:
        self.shared, self.own = ([p for p in group if p.requires_grad] for group in (shared, own))
        # At least single precision: what is added up is small beside its sum.
        self._shared = [
            torch.zeros(tasks, p.numel(), device=p.device, dtype=torch.promote_types(p.dtype, torch.float32))
            for p in self.shared
        ]
        self._own = [torch.zeros_like(parameter) for parameter in self.own]

    def add(self, losses: Tensor, labelled: Tensor) -> None:
        """Adds a batch.

        Args:
            losses: ``(tasks,)`` with their graph, scaled so that their sums over batches and processes are the step's.
            labelled: bool ``(tasks,)``; tasks without labels in this batch are passed over.
        """
        tasks = labelled.nonzero().flatten().tolist()
        for task in tasks:
            found = torch.autograd.grad(
                losses[task], [*self.shared, *self.own], retain_graph=task != tasks[-1], allow_unused=True
            )
            for kept, gradient in zip(self._shared, found, strict=False):
                if gradient is not None:
                    kept[task] += gradient.flatten()
            for kept, gradient in zip(self._own, found[len(self.shared) :], strict=True):
                if gradient is not None:
                    kept += gradient

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Adds up the processes' gradients; ``total`` gives the sum of a tensor over them."""
        self._shared, self._own = [total(kept) for kept in self._shared], [total(kept) for kept in self._own]

    def gram(self) -> Tensor:
        """The products of the tasks' gradients on the shared parameters: float64 ``(tasks, tasks)``."""
        wide = (kept.double() for kept in self._shared)
        return torch.stack([kept @ kept.T for kept in wide]).sum(dim=0)

    def write(self, weights: Tensor) -> None:
        """Makes the weighted sum ``(tasks,)`` the gradient of the shared parameters, and starts anew."""
        for parameter, kept in zip(self.shared, self._shared, strict=True):
            # Laid out as the parameter is: fused optimizers go through both in the order of their memory.
            parameter.grad = torch.empty_like(parameter).copy_((weights.to(kept) @ kept).view(parameter.shape))
            kept.zero_()
        for parameter, kept in zip(self.own, self._own, strict=True):
            parameter.grad = kept.clone()
            kept.zero_()
