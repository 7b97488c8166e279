"""The pictures that a decoder draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vision.errors import InputError
from vision.memspm.decoder import SIDES, Decoder


@pytest.mark.parametrize("side", [14, 28, 56, 112])
def test_shape_range_and_gradient(side: int):
    torch.manual_seed(0)
    decoder, embedding = Decoder(10, side), torch.randn(2, 10, requires_grad=True)
    drawn = decoder(embedding)
    assert drawn.shape == (2, 3, side, side)
    assert 0 <= float(drawn.detach().min()) < float(drawn.detach().max()) <= 1
    drawn.mean().backward()
    assert embedding.grad is not None
    assert embedding.grad.any()


def test_the_largest_has_the_layers_that_are_documented():
    """256 channels of 7x7, then 256, 128, 64, 32, doubled four times."""
    decoder = Decoder(512, 112)
    assert decoder.project.out_features == 256 * 7 * 7
    convolutions = [module for module in decoder.blocks.modules() if isinstance(module, nn.Conv2d)]
    assert [(of.in_channels, of.out_channels) for of in convolutions] == [(256, 256), (256, 128), (128, 64), (64, 32)]
    assert (decoder.draw.in_channels, decoder.draw.out_channels) == (32, 3)
    assert SIDES == (14, 28, 56, 112)


@pytest.mark.parametrize("side", [7, 32, 224, 0])
def test_another_side(side: int):
    with pytest.raises(InputError, match=rf"^decoder: pictures are drawn with 14, 28, 56, 112 pixels, got {side}$"):
        Decoder(10, side)


def test_it_learns_to_draw_two_pictures():
    torch.manual_seed(0)
    decoder = Decoder(2, 14)
    pictures = torch.zeros(2, 3, 14, 14)
    pictures[0, :, :7], pictures[1, :, 7:] = 1, 1
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        loss = (decoder(torch.eye(2)) - pictures).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.02
