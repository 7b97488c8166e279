"""An adapted network from its file alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vision.errors import InputError
from vision.memspm.checkpoint import RECORD, DomainRecord, load_adapted
from vision.memspm.encoder import create_encoder
from vision.memspm.memory import MemoryOptions
from vision.memspm.model import AdaptationNetwork
from vision.memspm.rejection import find_cut
from vision.preprocessing import Preprocessing

RECORDED = DomainRecord(
    "hog_32",
    "auto",
    ["cup", "pan", "jar"],
    Preprocessing((32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", 1.0),
    "memspm",
    MemoryOptions(items=5, subs=2, top_k=2, temperature=0.1),
    8,
    14,
    "blend",
)


def _network(record: DomainRecord) -> AdaptationNetwork:
    torch.manual_seed(0)
    encoder, features = create_encoder(record.backbone, record.preprocessing.size)
    network = AdaptationNetwork(
        encoder, features, len(record.class_names), record.method, record.memory, record.width, record.decoder
    ).eval()
    network.clusters.set(torch.randn(7, 8), torch.tensor([2, -1, 0, -1, -1, 1, -1]))
    if network.memory is not None:
        network.memory.source_usage.uniform_()
        network.memory.target_usage.uniform_()
    with torch.no_grad():
        network.rejection.set(find_cut(record.rule, network.examine(torch.rand(20, 3, 32, 32)).scores))
    return network


def _content(network: AdaptationNetwork, record: DomainRecord) -> dict[str, Any]:
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    return {"state_dict": {**state, "online.codes": torch.zeros(3)}, RECORD: record.as_dict()}


@pytest.mark.parametrize(
    "record",
    [
        RECORDED,
        replace(RECORDED, method="dcc", rule="cluster", decoder=0),
        replace(RECORDED, method="ovanet", rule="one_vs_all", decoder=0),
        replace(RECORDED, method="source_only", rule="none", decoder=0),
        replace(RECORDED, memory=MemoryOptions(items=5, subs=2, top_k=2, address="paper", start="random")),
    ],
    ids=["memspm", "dcc", "ovanet", "source_only", "paper"],
)
@torch.no_grad()
def test_a_file_says_all_that_is_needed(tmp_path, record):
    network = _network(record)
    torch.save(_content(network, record), tmp_path / "adapted.ckpt")
    again, found = load_adapted(tmp_path / "adapted.ckpt")
    assert found == record
    assert not again.training
    pictures = torch.rand(6, 3, 32, 32)
    one, other = network.examine(pictures), again.examine(pictures)
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(network.rejection(one.scores), again.rejection(other.scores))
    assert again.clusters.to_class.tolist() == [2, -1, 0, -1, -1, 1, -1]
    assert torch.equal(again.rejection.weights, network.rejection.weights)
    assert again.rejection.threshold == network.rejection.threshold
    if record.method == "memspm":
        assert torch.equal(again.memory.target_usage, network.memory.target_usage)


def test_before_the_first_clustering_there_are_no_clusters(tmp_path):
    network = _network(RECORDED)
    network.clusters.set(torch.zeros(0, 8))
    torch.save(_content(network, RECORDED), tmp_path / "adapted.ckpt")
    again, _ = load_adapted(tmp_path / "adapted.ckpt")
    assert len(again.clusters) == 0
    assert again.examine(torch.rand(2, 3, 32, 32)).logits.shape == (2, 3)


def _refused(file: Path, content: dict[str, Any]) -> str:
    torch.save(content, file)
    with pytest.raises(InputError) as caught:
        load_adapted(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_refused(tmp_path):
    file = tmp_path / "adapted.ckpt"
    content = _content(_network(RECORDED), RECORDED)
    state, record = content["state_dict"], content[RECORD]
    wider = {**content, RECORD: {**record, "width": 9}}
    assert "misshapen head.bottleneck.weight" in _refused(file, wider)
    fewer = {key: value for key, value in state.items() if key != "model.memory.weight"}
    assert "missing memory.weight" in _refused(file, {**content, "state_dict": fewer})
    broken = {**state, "model.head.fc.bias": torch.full((3,), torch.nan)}
    assert "NaN or infinite values in model.head.fc.bias" in _refused(file, {**content, "state_dict": broken})
    unknown = {**content, RECORD: {**record, "rule": "guess"}}
    assert "of another version (no rule 'guess')" in _refused(file, unknown)
    assert "no network called 'resnet51'" in _refused(file, {**content, RECORD: {**record, "backbone": "resnet51"}})
    assert "unexpected memory." in _refused(file, {**content, RECORD: {**record, "method": "memory"}})
    for damaged in ({**record, "colour": 1}, {key: value for key, value in record.items() if key != "memory"}):
        assert "damaged or of another version" in _refused(file, {**content, RECORD: damaged})


def test_other_files(tmp_path):
    message = _refused(tmp_path / "plain.pt", {"weight": torch.zeros(2)})
    assert "not a checkpoint of UniversalDomainAdaptation" in message
    message = _refused(tmp_path / "tasks.ckpt", {"multitask": {}, "state_dict": {"model.a": torch.zeros(1)}})
    assert "holds another kind of network; 'vision infer medic' uses it" in message
    with pytest.raises(InputError, match=r"none\.ckpt: no such checkpoint file"):
        load_adapted(tmp_path / "none.ckpt")
