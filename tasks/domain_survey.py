"""A whole domain as features, from all processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from vision.batches import DomainImages
from vision.memspm.model import AdaptationNetwork

CHUNK = 4096


@dataclass(frozen=True)
class Survey:
    """The readable pictures of a domain, in the order of its rows; the same on all processes.

    Attributes:
        features: ``(n, D)``, of the encoder.
        index: int64 ``(n,)``, which row each is.
        labels: int64 ``(n,)``, the classes of source pictures; -1 of target pictures.
        rows: how many the domain has, with those that cannot be read.
    """

    features: Tensor
    index: Tensor
    labels: Tensor
    rows: int

    def spread(self, values: Tensor) -> Tensor:
        """``(n,)`` values to ``(rows,)``, -1 where nothing could be read."""
        found = torch.full((self.rows,), -1, dtype=values.dtype, device=values.device)
        found[self.index] = values
        return found


@torch.no_grad()
def survey(task: pl.LightningModule, network: AdaptationNetwork, batches: Iterable[DomainImages], rows: int) -> Survey:
    """Encodes a domain, each process its share of the batches.

    Args:
        task: on whose device it is done; its data module counts what cannot be read.
        network: encodes in evaluation mode, and is in the mode that it was in afterwards.
        batches: of this process.
        rows: of the whole domain.
    """
    training = network.training
    network.eval()
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        task.trainer.datamodule.count_unreadable(batch["unreadable"])  # type: ignore[attr-defined]
        if len(batch["index"]):
            with task.trainer.precision_plugin.forward_context():
                features = network.encode(batch["media"].to(task.device)).float()
            parts.append((features, batch["index"].to(task.device), batch["group"].to(task.device)))
    network.train(training)
    width = parts[0][0].shape[1] if parts else 1
    none = torch.zeros(0, dtype=torch.long, device=task.device)
    own = [torch.cat(of) for of in zip(*parts, strict=True)] if parts else [none.float().view(0, width), none, none]
    features, index, labels = (_gathered(task, tensor) for tensor in own)
    order = index.argsort()
    return Survey(features[order], index[order], labels[order], rows)


def _gathered(task: pl.LightningModule, own: Tensor) -> Tensor:
    """The rows of all processes, one behind the other; they need not have equally many."""
    if task.trainer.world_size == 1:
        return own
    counts = cast("Tensor", task.all_gather(torch.tensor([len(own)], device=own.device))).flatten().tolist()
    longest = max(counts)
    widths = task.all_gather(torch.tensor([own.shape[1] if own.dim() == 2 else 0], device=own.device))
    width = int(cast("Tensor", widths).max())
    if own.dim() == 2 and own.shape[1] != width:
        own = own.new_zeros(0, width)
    padding = [0, 0] * (own.dim() - 1) + [0, longest - len(own)]
    together = cast("Tensor", task.all_gather(F.pad(own, padding)))
    return torch.cat([part[:count] for part, count in zip(together, counts, strict=True)])
