"""The network as a whole: what it says of pictures, and which of its parts are in which mode."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from vision.memspm.memory import MemoryOptions
from vision.memspm.model import AdaptationNetwork
from vision.memspm.rejection import SCORES

METHODS = ["memspm", "dcc", "ovanet", "dance", "source_only"]


def _encoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)),
        nn.Sequential(nn.Conv2d(6, 10, 3), nn.BatchNorm2d(10), nn.Dropout(0.5)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _network(method: str = "memspm", frozen: bool = True, **options) -> AdaptationNetwork:
    torch.manual_seed(0)
    encoder = _encoder().requires_grad_(not frozen)
    memory = MemoryOptions(items=5, subs=2, top_k=2)
    return AdaptationNetwork(encoder, 10, 4, method, memory, width=8, **options).eval()


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_pictures_and_their_features_are_judged_alike(method):
    network, pictures = _network(method), torch.randn(3, 3, 12, 12)
    network.clusters.set(torch.randn(5, 8), torch.tensor([0, -1, 3, -1, 1]))
    of_pictures, of_features = network.examine(pictures), network.examine(network.encode(pictures))
    for one, other in zip(of_pictures[:3], of_features[:3], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(network(pictures), of_pictures.logits)
    assert of_pictures.logits.shape == (3, 4)
    assert of_pictures.scores.shape == (3, len(SCORES))
    assert_close(of_pictures.neck.norm(dim=1), torch.ones(3))
    assert (of_pictures.addressed is not None) == (method == "memspm")


@torch.no_grad()
def test_scores_by_hand():
    network, pictures = _network("memspm"), torch.randn(3, 3, 12, 12)
    centers = F.normalize(torch.randn(3, 8), dim=1)
    network.clusters.set(centers, torch.tensor([2, -1, 0]))
    network.memory.source_usage.copy_(torch.tensor([[0.3, 0.1], [0.0, 0.0], [0.2, 0.2], [0.1, 0.0], [0.1, 0.0]]))
    network.memory.target_usage.copy_(torch.tensor([[0.1, 0.1], [0.4, 0.1], [0.0, 0.1], [0.1, 0.0], [0.1, 0.0]]))
    share = torch.tensor([0.4 / 0.6, 0.0, 0.4 / 0.5, 0.5, 0.5])  # the source's in each item's use
    found = network.examine(pictures)
    for row in range(3):
        items = found.addressed.rows[row] // 2
        usage = sum(weight * share[item] for weight, item in zip(found.addressed.weights[row], items, strict=True))
        cosines = found.neck[row] @ centers.T
        probabilities = found.logits[row].softmax(dim=0)
        entropy = -(probabilities * probabilities.log()).sum()
        expected = [usage, max(cosines[0], cosines[2]) - cosines[1], 1 - entropy / torch.tensor(4.0).log(), 0.0]
        assert_close(found.scores[row], torch.tensor([float(value) for value in expected]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_ovanets_score_is_of_the_predicted_class():
    network = _network("ovanet")
    found = network.examine(features := torch.randn(6, 10))
    logits = network.one_vs_all(network.head.neck(features)).view(6, 2, 4)
    expected = [logits[row, :, found.logits[row].argmax()].softmax(dim=0)[1] for row in range(6)]
    assert_close(found.scores[:, SCORES.index("one_vs_all")], torch.stack(expected))


@torch.no_grad()
def test_dance_compares_directions():
    network = _network("dance")
    neck = torch.randn(2, 8)
    assert_close(network.classify(neck), network.classify(3 * neck))
    cosines = F.normalize(neck, dim=1) @ F.normalize(network.head.fc.weight, dim=1).T
    assert_close(network.classify(neck), cosines / 0.05)


def test_a_frozen_encoder_is_never_in_training_mode():
    network = _network().train()
    assert network.head.training
    assert not any(module.training for module in network.encoder.modules())
    features = network.encode(torch.randn(4, 3, 12, 12))
    assert not features.requires_grad


def test_frozen_parts_of_an_encoder_keep_their_statistics():
    """With what they drop; a trained part has batch statistics and drops."""
    network = _network()
    network.encoder[1].requires_grad_(True)
    network.train()
    assert [part.training for part in network.encoder[0]] == [False] * 3
    assert [part.training for part in network.encoder[1]] == [True] * 3
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    network.encode(torch.randn(4, 3, 12, 12) + 5).sum().backward()
    moved = {name for name, value in network.encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"1.1.running_mean", "1.1.running_var", "1.1.num_batches_tracked"}
    network.eval()
    assert not any(module.training for module in network.modules())
    network.requires_grad_(True)
    assert all(module.training for module in network.train().modules())
