"""The losses of a step: what they are of, by hand and in low precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from vision.errors import InputError
from vision.memspm.baselines import NeighbourBank
from vision.memspm.memory import MemoryOptions
from vision.memspm.model import AdaptationNetwork
from vision.memspm.objective import (
    LossWeights,
    Rows,
    consensus_losses,
    dance_loss,
    one_vs_all_loss,
    reconstruction_loss,
    source_loss,
)

WIDTH, CLASSES = 12, 3


def _network(method: str = "memspm", **options) -> AdaptationNetwork:
    torch.manual_seed(0)
    memory = MemoryOptions(items=6, subs=2, top_k=3)
    network = AdaptationNetwork(nn.Identity(), WIDTH, CLASSES, method, memory, 8, **options)
    network.clusters.set(torch.randn(4, 8), torch.tensor([0, -1, 2, -1]))
    return network


def _rows(features: Tensor, group: list[int]) -> Rows:
    return Rows(features, torch.tensor(group, dtype=torch.long), torch.arange(len(features)))


def _pictures(number: int, seed: int = 0) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(seed))


def _consensus(network: AdaptationNetwork, source: Rows, target: Rows, clustered: Rows, **options) -> dict[str, Tensor]:
    labels = network.clusters.paired_classes[source.group]
    weights = LossWeights(**options)
    return consensus_losses(network, labels, source, target, clustered, weights, ramped=0.5)


def test_the_sources_cross_entropy():
    network = _network().train()
    rows = _rows(_pictures(6), [0, 1, 2, 0, 1, 2])
    loss, neck = source_loss(network, rows)
    bottleneck = rows.embedding @ network.head.bottleneck.weight.T + network.head.bottleneck.bias
    expected = (bottleneck - bottleneck.mean(0)) / (bottleneck.var(0, unbiased=False) + 1e-5).sqrt()
    assert_close(neck, expected)
    assert_close(loss, F.cross_entropy(network.head.fc(expected), rows.group))


def test_pairs_are_aligned_and_clusters_kept_together():
    network = _network().train()
    source, target = _rows(_pictures(4), [0, 0, 1, 1]), _rows(_pictures(4, 1), [0, 0, 1, 1])
    clustered = _rows(_pictures(4, 2), [1, 1, 3, 3])
    losses = _consensus(network, source, target, clustered)
    assert set(losses) == {"aligned_ce", "cdd", "regulariser"}
    again = _consensus(_network().train(), source, target, clustered, cdd=1.0, regulariser=3.0)
    assert_close(again["cdd"], 10 * losses["cdd"])
    assert_close(again["regulariser"], 3 * losses["regulariser"])
    # Pair 0 is of class 0, pair 1 of class 2: the classes that have a cluster.
    own = _network().train()
    logits = own.classify(own.head.neck(source.embedding))
    assert_close(losses["aligned_ce"], F.cross_entropy(logits, torch.tensor([0, 0, 2, 2])))


def test_a_pair_that_one_domain_lacks_counts_for_nothing():
    """As where a picture could not be read."""
    source, target = _rows(_pictures(4), [0, 0, 1, 1]), _rows(_pictures(2, 1), [1, 1])
    clustered = _rows(_pictures(2, 2), [0, 0])
    losses = _consensus(_network().train(), source, target, clustered)
    alone = _consensus(_network().train(), _rows(_pictures(4)[2:], [1, 1]), target, clustered)
    for name, value in losses.items():
        assert_close(value, alone[name], msg=name)


def test_without_pairs_the_clusters_are_left():
    clustered = _rows(_pictures(4, 2), [1, 1, 3, 3])
    losses = _consensus(_network().train(), _rows(_pictures(0), []), _rows(_pictures(0), []), clustered)
    assert set(losses) == {"regulariser"}
    nothing = _consensus(_network().train(), *[_rows(_pictures(0), [])] * 3)
    assert nothing == {}


def test_ovanet():
    network = _network("ovanet")
    source, target = _pictures(4), _rows(_pictures(4, 1), [-1] * 4)
    labels = torch.tensor([0, 1, 2, 0])
    neck = network.head.neck(source)
    losses = one_vs_all_loss(network, neck, labels, target, LossWeights(open_entropy=0.1))
    logs = network.one_vs_all(neck).view(4, 2, CLASSES).log_softmax(dim=1)
    expected = 0.0
    for row, label in enumerate(labels.tolist()):
        others = [-logs[row, 0, other] for other in range(CLASSES) if other != label]
        expected = expected + (-logs[row, 1, label] + max(others)) / 2 / 4
    assert_close(losses["one_vs_all"], expected)
    network = _network("ovanet")
    network.head.neck(source)
    open_logs = network.one_vs_all(network.head.neck(target.embedding)).view(4, 2, CLASSES).log_softmax(dim=1)
    assert_close(losses["open_entropy"], -0.1 * (open_logs.exp() * open_logs).sum(dim=1).mean())


def test_dance():
    network = _network("dance")
    bank = NeighbourBank(6, 8)
    bank.fill(torch.randn(6, 8), torch.arange(6))
    losses = dance_loss(network, _rows(_pictures(4), [-1] * 4), bank, LossWeights(dance=0.05))
    assert set(losses) == {"neighbours", "separation"}
    assert 0 < float(losses["neighbours"].detach()) < 0.05 * math.log(6 + CLASSES)
    assert float(losses["separation"].detach()) <= 0
    sum(losses.values()).backward()
    assert network.head.bottleneck.weight.grad.any()


def test_reconstruction():
    network = _network(decoder=14)
    network.decoder.draw.weight.data.zero_()
    network.decoder.draw.bias.data.zero_()
    thumbnail = torch.full((2, 3, 14, 14), 255, dtype=torch.uint8)
    assert_close(reconstruction_loss(network, _pictures(2), thumbnail), torch.tensor(0.25))
    assert_close(reconstruction_loss(network, _pictures(2), 0 * thumbnail), torch.tensor(0.25))


def test_weights_that_make_no_sense():
    with pytest.raises(InputError, match=r"losses.dance must be at least 0, got -0.5"):
        LossWeights(dance=-0.5)
    with pytest.raises(InputError, match=r"losses.cdd must be at least 0, got nan"):
        LossWeights(cdd=math.nan)
    with pytest.raises(InputError, match=r"losses.ramp_steps must be at least 1, got 0"):
        LossWeights(ramp_steps=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("address", ["item_best", "flat", "paper"])
def test_twenty_steps_in_low_precision(dtype, address):
    """A memory with a row of nothing, and a picture of nothing: no gradient is NaN or infinite."""
    torch.manual_seed(0)
    memory = MemoryOptions(items=6, subs=2, top_k=3, address=address)
    encoder = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    network = AdaptationNetwork(encoder, WIDTH, CLASSES, "memspm", memory, 8, decoder=14).train()
    network.clusters.set(torch.randn(4, 8), torch.tensor([0, -1, 2, -1]))
    with torch.no_grad():
        network.memory.weight[0, 0] = 0
    before = network.memory.weight.detach().clone()
    optimizer = torch.optim.SGD([of for of in network.parameters() if of.requires_grad], 0.01, momentum=0.9)
    thumbnail = torch.randint(256, (6, 3, 14, 14), dtype=torch.uint8)
    for step in range(20):
        pictures = _pictures(18, step)
        pictures[0] = 0
        with torch.autocast("cpu", dtype=dtype):
            embedding, _ = network.address(torch.cat([pictures[:6], network.encoder(pictures[6:])]))
            parts = embedding.split([6, 4, 4, 4])
            loss, _ = source_loss(network, _rows(parts[0], [0, 1, 2, 0, 1, 2]))
            pairs = [0, 0, 1, 1]
            losses = _consensus(network, _rows(parts[1], pairs), _rows(parts[2], pairs), _rows(parts[3], [1, 1, 3, 3]))
            total = loss + sum(losses.values()) + reconstruction_loss(network, parts[0], thumbnail)
        optimizer.zero_grad()
        total.backward()
        assert torch.isfinite(total)
        for name, parameter in network.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
        optimizer.step()
    assert network.memory.weight.grad.any()
    assert (network.memory.weight != before).any()
