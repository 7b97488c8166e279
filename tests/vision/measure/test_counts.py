"""Parameters and multiply-accumulates of layers that can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vision.measure import count_macs, count_parameters


class Attention(nn.Module):
    def forward(self, x):
        return (x @ x.transpose(1, 2)).softmax(-1) @ x


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(10, 5), (2, 10), 2 * 10 * 5),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (1, 3, 16, 16), 8 * 8 * 8 * 27),
        (nn.Conv2d(6, 6, 5, padding=2, groups=6), (1, 6, 4, 4), 6 * 16 * 25),
        (nn.ConvTranspose2d(2, 3, 2, stride=2), (1, 2, 4, 4), 2 * 3 * 4 * 16),
        (Attention(), (2, 7, 4), 2 * (7 * 7 * 4) * 2),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), (1, 3, 4, 4), 0),
    ],
    ids=["linear", "strided", "depthwise", "transposed", "attention", "normalisation"],
)
def test_macs_of_known_layers(layer, shape, macs):
    layer.train()
    assert count_macs(layer, torch.zeros(shape)) == macs
    assert layer.training


def test_counting_leaves_batch_statistics_alone():
    layer = nn.BatchNorm2d(3)
    count_macs(layer, torch.randn(2, 3, 4, 4))
    assert torch.equal(layer.running_mean, torch.zeros(3))


def test_parameters_total_and_trainable_with_one_shared():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    first.bias.requires_grad_(requires_grad=False)
    assert count_parameters(nn.Sequential(first, second)) == (20, 16)
