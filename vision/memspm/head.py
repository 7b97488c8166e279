"""What reads an embedding: DCC's classifier."""

from __future__ import annotations

from torch import Tensor, nn


class Head(nn.Module):
    """A bottleneck, batch normalisation without an activation, and a linear classifier (DCC's code, ``CLS``).

    Args:
        features: of an embedding.
        classes: common and source-private ones.
        width: of the bottleneck, whose output is clustered and aligned.
    """

    def __init__(self, features: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.bottleneck = nn.Linear(features, width)
        self.bn = nn.BatchNorm1d(width)
        self.fc = nn.Linear(width, classes)

    def neck(self, embedding: Tensor) -> Tensor:
        """``(B, features)`` to ``(B, width)``."""
        found: Tensor = self.bn(self.bottleneck(embedding))
        return found

    def forward(self, embedding: Tensor) -> Tensor:
        """``(B, features)`` to logits ``(B, classes)``."""
        logits: Tensor = self.fc(self.neck(embedding))
        return logits
