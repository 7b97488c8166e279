"""The memory of sub-prototypes: items of several sub-prototypes each, learned, and begun from the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vision.errors import InputError
from vision.memspm.addressing import Addressed, dense, gather
from vision.memspm.clustering import spherical_kmeans


@dataclass(frozen=True)
class MemoryOptions:
    """The memory and how it is addressed.

    Attributes:
        items: memory items (N), more than there are classes: those to spare stand for what is unknown.
        subs: sub-prototypes of each (S).
        top_k: sub-prototypes that make an embedding (K).
        temperature: of the softmax over cosines, positive. The paper's, as it is remembered, is 1; that makes all
            weights nearly equal.
        address: ``item_best`` chooses among the items' best, ``flat`` among all sub-prototypes; ``paper`` is the dense
            form with the paper's threshold, above which K - 1 are.
        start: from the data of both domains by k-means, or ``random`` as in MemAE.
    """

    items: int = 40
    subs: int = 4
    top_k: int = 4
    temperature: float = 0.05
    address: Literal["item_best", "flat", "paper"] = "item_best"
    start: Literal["data", "random"] = "data"

    def __post_init__(self) -> None:
        for name in ("items", "subs", "top_k"):
            if getattr(self, name) < 1:
                raise InputError(f"memory.{name} must be at least 1, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise InputError(f"memory.temperature must be positive, got {self.temperature}")
        among = self.items * self.subs if self.address == "flat" else self.items
        if self.top_k > among:
            kind = "sub-prototypes" if self.address == "flat" else "items"
            raise InputError(f"memory.top_k is {self.top_k}, there are {among} {kind}")
        if self.address == "paper" and self.top_k < 2:
            raise InputError("memory.top_k must be at least 2 with address paper, where K - 1 sub-prototypes survive")


class SubPrototypeMemory(nn.Module):
    """``N`` items of ``S`` sub-prototypes of ``D`` numbers (MemSPM, Section 3.2).

    Args:
        options: see :class:`MemoryOptions`.
        features: ``D``.
    """

    source_usage: Tensor
    target_usage: Tensor

    def __init__(self, options: MemoryOptions, features: int) -> None:
        super().__init__()
        self.options = options
        bound = features**-0.5  # MemAE's
        self.weight = nn.Parameter(torch.empty(options.items, options.subs, features).uniform_(-bound, bound))
        for name in ("source_usage", "target_usage"):
            self.register_buffer(name, torch.zeros(options.items, options.subs))

    def forward(self, features: Tensor) -> Addressed:
        """``(B, D)`` features to their embeddings, in float32."""
        how = self.options
        if how.address != "paper":
            return gather(features, self.weight, how.top_k, how.temperature, how.address == "item_best")
        found = dense(features, self.weight, how.top_k, how.temperature)
        weights, items = found.shrunk.topk(how.top_k, dim=1)
        rows = items * how.subs + found.best.gather(1, items)
        return Addressed(found.embedding, rows, weights)

    @torch.no_grad()
    def start_from(self, source: Tensor, target: Tensor, seed: int = 0) -> None:
        """Sets the sub-prototypes by k-means over both domains, and by k-means within each item.

        From the source alone, what is private to the target would find no items of its own.

        Args:
            source: ``(n, D)``.
            target: ``(m, D)``.
            seed: of the clusterings.

        Raises:
            InputError: there are fewer pictures than items, not counting those whose features are all 0.
        """
        rows = torch.cat([source, target]).float()
        rows = rows[rows.any(dim=1)]  # no cosine tells anything of the others
        if len(rows) < self.options.items:
            raise InputError(f"memory.items is {self.options.items}, there are {len(rows)} pictures to begin it from")
        items = spherical_kmeans(rows, self.options.items, seed, iterations=30)
        length = rows.norm(dim=1).mean()
        for item in range(self.options.items):
            members = rows[items.codes == item]
            if not len(members):  # equal pictures, of fewer kinds than there are items
                self.weight[item] = length * items.centers[item]
            elif len(members) <= self.options.subs:
                # Each once, and then again: the same row twice is addressed once.
                self.weight[item] = members[torch.arange(self.options.subs, device=rows.device) % len(members)]
            else:
                subs = spherical_kmeans(members, self.options.subs, seed, iterations=30)
                sums = torch.zeros_like(self.weight[item]).index_add_(0, subs.codes, members)
                counts = torch.bincount(subs.codes, minlength=self.options.subs)[:, None]
                # Means, which are as long as features are.
                self.weight[item] = torch.where(counts > 0, sums / counts.clamp(min=1), length * subs.centers)

    @torch.no_grad()
    def usage(self, addressed: Addressed) -> Tensor:
        """The mean weight that each sub-prototype has in embeddings, ``(N, S)``, of sum 1."""
        total = torch.zeros(self.weight.shape[:2].numel(), device=self.weight.device)
        total.index_add_(0, addressed.rows.flatten(), addressed.weights.flatten().float())
        return (total / max(1, len(addressed.rows))).view(self.weight.shape[:2])

    def known(self, addressed: Addressed) -> Tensor:
        """How far the source has what a picture is made of, ``(B,)`` in [0, 1].

        Each item stands for the source by its share in the item's use, ``u_s / (u_s + u_t)``; a picture's score is the
        mean over its items, with the weights that it addresses them with.
        """
        source, target = self.source_usage.sum(dim=1), self.target_usage.sum(dim=1)
        share = source / (source + target).clamp(min=1e-12)
        return (addressed.weights * share[addressed.rows // self.options.subs]).sum(dim=1)


def used(usage: Tensor) -> Tensor:
    """Which sub-prototypes are used: at least as much as each would be if all were used alike.

    Args:
        usage: ``(N, S)``, of sum 1.
    """
    return usage >= 1 / usage.numel()
