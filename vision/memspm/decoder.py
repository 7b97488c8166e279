"""What an embedding looks like: a decoder that draws pictures from it (MemSPM, Figure 2; the layers are ours)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from vision.errors import InputError

SMALLEST = 7
WIDTHS = (256, 256, 128, 64, 32)
SIDES = tuple(SMALLEST * 2**doublings for doublings in range(1, len(WIDTHS)))
"""Pixels of the pictures that can be drawn."""


class Decoder(nn.Module):
    """``(B, features)`` embeddings to ``(B, 3, side, side)`` pictures in [0, 1], doubled in size block by block.

    Args:
        features: of an embedding.
        side: in pixels: 14, 28, 56 or 112.

    Raises:
        InputError: another side.
    """

    def __init__(self, features: int, side: int) -> None:
        super().__init__()
        if side not in SIDES:
            raise InputError(f"decoder: pictures are drawn with {', '.join(map(str, SIDES))} pixels, got {side}")
        self.side = side
        widths = WIDTHS[-2 - SIDES.index(side) :]
        self.project = nn.Linear(features, widths[0] * SMALLEST**2)
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
        grid = self.project(embedding).unflatten(1, (-1, SMALLEST, SMALLEST))
        drawn: Tensor = self.draw(self.blocks(grid)).sigmoid()
        return drawn
