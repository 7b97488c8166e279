"""The network: an encoder, a memory that makes embeddings of its features, and what reads the embeddings."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.memspm.addressing import Addressed
from vision.memspm.baselines import CLASSIFIER_SCALE, known_probability
from vision.memspm.decoder import Decoder
from vision.memspm.head import Head
from vision.memspm.memory import MemoryOptions, SubPrototypeMemory
from vision.memspm.regulariser import ClusterMemory
from vision.memspm.rejection import Rejection, cluster_margin, confidence

Method = Literal["memspm", "dcc", "ovanet", "dance", "source_only"]


class Examined(NamedTuple):
    """What the network says of pictures.

    Attributes:
        logits: ``(B, C)``.
        neck: ``(B, width)``, of length 1: what is clustered.
        scores: ``(B, 4)``, of :data:`vision.memspm.rejection.SCORES`; 0 where the method has none.
        addressed: which sub-prototypes; None without a memory.
    """

    logits: Tensor
    neck: Tensor
    scores: Tensor
    addressed: Addressed | None


class AdaptationNetwork(nn.Module):
    """A classifier for two domains (MemSPM, arXiv 2310.05453, Figure 2), or that of a method to compare with.

    Args:
        encoder: ``(B, 3, H, W)`` pictures to ``(B, features)``.
        features: of the encoder.
        classes: common and source-private ones.
        method: ``memspm``; others have no memory.
        memory: of ``memspm``.
        width: of the head's bottleneck.
        decoder: side in pixels of drawn embeddings; 0 for no decoder.
    """

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        classes: int,
        method: Method = "memspm",
        memory: MemoryOptions = MemoryOptions(),  # noqa: B008 (frozen)
        width: int = 256,
        decoder: int = 0,
    ) -> None:
        super().__init__()
        self.method: Method = method
        self.encoder = encoder
        self.memory = SubPrototypeMemory(memory, features) if method == "memspm" else None
        self.head = Head(features, classes, width)
        self.one_vs_all = nn.Linear(width, 2 * classes, bias=False) if method == "ovanet" else None
        self.decoder = Decoder(features, decoder) if decoder else None
        self.clusters = ClusterMemory(width)
        self.rejection = Rejection()

    def encode(self, media: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` to features ``(B, D)``; features stay as they are."""
        if media.dim() == 2:
            return media
        frozen = not any(parameter.requires_grad for parameter in self.encoder.parameters())
        with torch.no_grad() if frozen else torch.enable_grad():
            features: Tensor = self.encoder(media)
        return features

    def train(self, mode: bool = True) -> AdaptationNetwork:
        """Parts of the encoder without trained parameters stay in evaluation mode, and their statistics as they are."""
        super().train(mode)
        for part in self.encoder.modules():
            parameters = [*part.parameters()]
            # What has none of its own, as dropout, is as the part is that it belongs to.
            if (parameters or part is self.encoder) and not any(of.requires_grad for of in parameters):
                part.eval()
        return self

    def address(self, features: Tensor) -> tuple[Tensor, Addressed | None]:
        """Features ``(B, D)`` to embeddings ``(B, D)``, and what these are made of; without a memory the features."""
        if self.memory is None:
            return features, None
        addressed = self.memory(features)
        return addressed.embedding, addressed

    def classify(self, neck: Tensor) -> Tensor:
        """``(B, width)`` to logits ``(B, C)``; DANCE's classifier compares directions."""
        if self.method == "dance":
            return CLASSIFIER_SCALE * F.normalize(neck.float(), dim=1) @ F.normalize(self.head.fc.weight, dim=1).T
        logits: Tensor = self.head.fc(neck)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` normalised pictures to logits ``(B, C)``."""
        return self.classify(self.head.neck(self.address(self.encode(images))[0]))

    def examine(self, media: Tensor) -> Examined:
        """All that is said of pictures ``(B, 3, H, W)`` or features ``(B, D)``; in evaluation mode."""
        embedding, addressed = self.address(self.encode(media))
        neck = self.head.neck(embedding)
        logits, unit = self.classify(neck).float(), F.normalize(neck.float(), dim=1)
        nothing = torch.zeros(len(unit), device=unit.device)
        usage = self.memory.known(addressed) if self.memory is not None and addressed is not None else nothing
        margin = cluster_margin(unit, self.clusters.centers, self.clusters.matched) if len(self.clusters) else nothing
        known = nothing
        if self.one_vs_all is not None:
            known = known_probability(self.one_vs_all(neck).unflatten(1, (2, -1)), logits.argmax(dim=1))
        scores = torch.stack([usage, margin, confidence(logits), known], dim=1)
        return Examined(logits, unit, scores, addressed)
