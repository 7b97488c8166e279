"""What an embedding looks like: a decoder that draws pictures from it (MemSPM, Figure 2; the layers are ours)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

SIDE = 112
"""Pixels of the pictures that are drawn."""


class Decoder(nn.Module):
    """``(B, features)`` embeddings to ``(B, 3, 112, 112)`` pictures in [0, 1].

    Args:
        features: of an embedding.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        widths = (256, 256, 128, 64, 32)
        self.project = nn.Linear(features, widths[0] * 49)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Upsample(scale_factor=2),
                    nn.Conv2d(before, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.LeakyReLU(0.2),
                )
                for before, after in pairwise(widths)
            )
        )
        self.draw = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, embedding: Tensor) -> Tensor:
        """Pictures of embeddings."""
        drawn: Tensor = self.draw(self.blocks(self.project(embedding).unflatten(1, (-1, 7, 7)))).sigmoid()
        return drawn
