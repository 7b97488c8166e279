"""Saved activations of modules whose memory can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vision.measure import SavedActivations, saved_activations

FLOAT = 4


def test_linear_layer_keeps_its_input_and_weight_which_are_there_anyway():
    assert saved_activations(nn.Linear(10, 5), torch.randn(2, 10)) == 0


def test_relu_and_the_layer_behind_it_keep_the_same_storage_once():
    net = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 5))
    assert saved_activations(net, torch.randn(2, 10)) == 2 * 7 * FLOAT


def test_gelu_keeps_its_input_and_the_layer_behind_it_another():
    net = nn.Sequential(nn.Linear(10, 7), nn.GELU(), nn.Linear(7, 5))
    assert saved_activations(net, torch.randn(2, 10)) == 2 * (2 * 7 * FLOAT)


def test_batch_norm_keeps_its_input_and_the_statistics_of_the_batch():
    net = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6))
    kept = 2 * 6 * 5 * 5 + 6 + 6
    assert saved_activations(net, torch.randn(2, 3, 5, 5)) == kept * FLOAT


def test_part_of_a_storage_counts_as_the_whole_storage():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(10, 8), nn.Linear(4, 1)

        def forward(self, x):
            return self.second(self.first(x)[:, :4])

    assert saved_activations(Half(), torch.randn(3, 10)) == 3 * 8 * FLOAT


def test_frozen_layers_keep_nothing_and_half_precision_keeps_half():
    net = nn.Sequential(nn.Linear(10, 7), nn.Sigmoid(), nn.Linear(7, 5))
    x = torch.randn(2, 10)
    assert saved_activations(net, x) == 2 * 7 * FLOAT
    assert saved_activations(net.bfloat16(), x.bfloat16()) == 2 * 7 * FLOAT // 2
    net[0].requires_grad_(requires_grad=False)
    assert saved_activations(net.float(), x) == 2 * 7 * FLOAT  # the last layer's weight still needs its input
    net.requires_grad_(requires_grad=False)
    assert saved_activations(net, x) == 0


def test_nothing_need_be_allocated_to_count():
    net = nn.Sequential(nn.Linear(10, 7), nn.GELU(), nn.Linear(7, 5))
    assert saved_activations(net.to("meta"), torch.randn(2, 10, device="meta")) == 2 * (2 * 7 * FLOAT)


def test_checkpointing_keeps_only_what_the_checkpoint_keeps():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(10, 7)
            self.inner = nn.Sequential(nn.Linear(7, 50), nn.Tanh(), nn.Linear(50, 7))

        def forward(self, x):
            return checkpoint(self.inner, self.first(x), use_reentrant=False)

    assert saved_activations(Checkpointed(), torch.randn(2, 10)) == 2 * 7 * FLOAT


def test_a_block_may_hold_the_loss_and_may_fail():
    net, x, target = nn.Linear(10, 5), torch.randn(2, 10), torch.tensor([1, 2])
    with SavedActivations(net, [x, target]) as saved:
        nn.functional.cross_entropy(net(x), target)
    assert saved.bytes >= 2 * 5 * FLOAT  # the log-probabilities

    def fail():
        with SavedActivations(net):
            net(x).exp()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert saved_activations(net, x) == 0  # no hook is left behind


def test_module_returns_to_its_mode():
    net = nn.Dropout(0.5).eval()
    saved_activations(net, torch.randn(3))
    assert not net.training
