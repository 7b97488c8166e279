"""The losses of one step, for MemSPM and for what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vision.errors import InputError
from vision.memspm.baselines import NeighbourBank, entropy_separation, one_vs_all_entropy, one_vs_all_losses
from vision.memspm.discrepancy import contrastive_domain_discrepancy
from vision.memspm.model import AdaptationNetwork


@dataclass(frozen=True)
class LossWeights:
    """The weights of the losses beside the source's cross entropy.

    Attributes:
        cdd: contrastive domain discrepancy of matched pairs (lambda 1).
        reconstruction: mean squared error of drawn pictures, with a decoder (lambda 2).
        regulariser: prototypical regulariser at the end of its ramp (lambda 3).
        ramp_steps: length of that ramp; DCC's 5000, or by default the whole training.
        open_entropy: of OVANet's classifiers on the target.
        dance: of DANCE's two losses.
    """

    cdd: float = 0.1
    reconstruction: float = 0.5
    regulariser: float = 1.0
    ramp_steps: int | None = None
    open_entropy: float = 0.1
    dance: float = 0.05

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value is not None and not value >= 0:
                raise InputError(f"losses.{name} must be at least 0, got {value}")
        if self.ramp_steps == 0:
            raise InputError("losses.ramp_steps must be at least 1, got 0")


@dataclass(frozen=True)
class Rows:
    """Pictures of one part of a step, as features.

    Attributes:
        embedding: ``(B, D)``.
        group: int64 ``(B,)``: class, pair or cluster; see :class:`vision.batches.DomainBatch`.
        index: int64 ``(B,)``: which row of the domain each is.
    """

    embedding: Tensor
    group: Tensor
    index: Tensor


def source_loss(network: AdaptationNetwork, source: Rows) -> tuple[Tensor, Tensor]:
    """Cross entropy of labelled pictures, and their neck ``(B, width)``."""
    neck = network.head.neck(source.embedding)
    return F.cross_entropy(network.classify(neck).float(), source.group), neck


def consensus_losses(
    network: AdaptationNetwork,
    labels: Tensor,
    aligned_source: Rows,
    aligned_target: Rows,
    clustered: Rows,
    weights: LossWeights,
    ramped: float,
) -> dict[str, Tensor]:
    """DCC's losses on the embeddings: matched pairs come together, others apart; features keep to their clusters.

    Args:
        network: in training mode.
        labels: int64, the classes of ``aligned_source``.
        aligned_source: pictures of matched classes.
        aligned_target: pictures of the clusters matched to them.
        clustered: pictures of some clusters.
        weights: of the losses.
        ramped: the regulariser's weight at this step, in [0, 1].
    """
    losses: dict[str, Tensor] = {}
    common = torch.isin(aligned_source.group.unique(), aligned_target.group.unique())
    pairs = aligned_source.group.unique()[common]
    inside = torch.isin(aligned_source.group, pairs), torch.isin(aligned_target.group, pairs)
    if min(int(of.sum()) for of in inside) > 1:  # one row alone has no batch statistics
        source = network.head.neck(aligned_source.embedding[inside[0]])
        target = network.head.neck(aligned_target.embedding[inside[1]])
        slots = (
            torch.searchsorted(pairs, of.group[rows])
            for of, rows in zip((aligned_source, aligned_target), inside, strict=True)
        )
        of_source, of_target = slots
        losses["aligned_ce"] = F.cross_entropy(network.classify(source).float(), labels[inside[0]])
        found = contrastive_domain_discrepancy(source, of_source, target, of_target, len(pairs))
        losses["cdd"] = weights.cdd * found.total
    if len(clustered.group) > 1:
        neck = network.head.neck(clustered.embedding)
        losses["regulariser"] = weights.regulariser * ramped * network.clusters(neck, clustered.group)
    return losses


def one_vs_all_loss(
    network: AdaptationNetwork, source_neck: Tensor, labels: Tensor, target: Rows, weights: LossWeights
) -> dict[str, Tensor]:
    """OVANet's losses (its Equations 2 to 4), with hard negatives."""
    assert network.one_vs_all is not None
    own = one_vs_all_losses(network.one_vs_all(source_neck).unflatten(1, (2, -1)), labels)
    open_logits = network.one_vs_all(network.head.neck(target.embedding)).unflatten(1, (2, -1))
    return {
        "one_vs_all": 0.5 * (own.positive + own.negative),
        "open_entropy": weights.open_entropy * one_vs_all_entropy(open_logits),
    }


def dance_loss(
    network: AdaptationNetwork, target: Rows, bank: NeighbourBank, weights: LossWeights
) -> dict[str, Tensor]:
    """DANCE's losses: neighbourhood clustering and entropy separation (its Equations 4 and 5)."""
    neck = network.head.neck(target.embedding)
    unit, prototypes = F.normalize(neck.float(), dim=1), F.normalize(network.head.fc.weight, dim=1)
    return {
        "neighbours": weights.dance * bank(unit, target.index, prototypes),
        "separation": weights.dance * entropy_separation(network.classify(neck)),
    }


def reconstruction_loss(network: AdaptationNetwork, embedding: Tensor, thumbnail: Tensor) -> Tensor:
    """Mean squared error of drawn pictures (MemSPM).

    Args:
        network: with a decoder.
        embedding: ``(B, D)``.
        thumbnail: uint8 ``(B, 3, side, side)``.
    """
    assert network.decoder is not None
    return F.mse_loss(network.decoder(embedding).float(), thumbnail.float() / 255)
