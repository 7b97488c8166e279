"""Parameters and multiply-accumulates of layers that can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vision.measure import count_macs, count_parameters, saved_activations


class SelfAttention(nn.Module):
    """PyTorch's own layer, which has a fused path in evaluation: projections in, two products, projection out."""

    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


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
        (SelfAttention(), (1, 5, 8), 5 * 8 * 24 + 2 * 5 * 5 * 8 + 5 * 8 * 8),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), (1, 3, 4, 4), 0),
    ],
    ids=["linear", "strided", "depthwise", "transposed", "attention", "multihead", "normalisation"],
)
def test_macs_of_known_layers(layer, shape, macs):
    layer.train()
    assert count_macs(layer, torch.zeros(shape)) == macs
    assert layer.training


@pytest.mark.parametrize("count", [count_macs, saved_activations])
def test_counting_changes_neither_statistics_nor_what_is_frozen(count):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train()
    network[0].eval()
    count(network, torch.randn(2, 3, 4, 4))
    assert [module.training for module in network.modules()] == [True, False, True, True]
    for layer in (network[0], network[2]):
        assert torch.equal(layer.running_mean, torch.zeros(3))
        assert layer.num_batches_tracked == 0


def test_parameters_total_and_trainable_with_one_shared():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    first.bias.requires_grad_(requires_grad=False)
    assert count_parameters(nn.Sequential(first, second)) == (20, 16)
