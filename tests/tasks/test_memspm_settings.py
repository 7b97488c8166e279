"""Settings, targets without labels, and options of domain adaptation, by the command as a user gives it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from tests.command import vision
from tests.tasks.stripes import (
    CLUSTERING,
    DIRECTIONS,
    MEMORY,
    predictions,
    run,
    write_config,
    write_domain,
    write_domains,
)
from vision.memspm.checkpoint import load_adapted


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_the_command():
    """Or the command would share the cores out, which so small networks lose by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = write_domains(tmp_path_factory.mktemp("domains"))
    write_domain(root / "part", DIRECTIONS[:2], 6.0, seed=2)
    (root / "nameless").mkdir()
    for number, file in enumerate(sorted((root / "target").rglob("*.png"))):
        shutil.copy(file, root / "nameless" / f"{number:02d}.png")
    return root


def test_a_target_without_labels(root, tmp_path):
    found = run(write_config(tmp_path / "nameless.yaml", root, data={"target": "nameless"}))
    assert "the target has no labels, so nothing could be measured" in found.tested.stdout
    assert found.report["rules"] == {}
    assert found.logged("val_consensus")[-1] > 0.5
    assert not {"val_h", "val_accuracy"} & set(found.columns)
    rows = predictions(found.config)
    assert len(rows) == 36
    answers = [row["class"] for row in sorted(rows, key=lambda row: row["path"])]
    truth = ["unknown"] * 12 + ["flat"] * 12 + ["rising"] * 12  # the numbers of falling, flat and rising pictures
    assert sum(answer == name for answer, name in zip(answers, truth, strict=True)) > 28


@pytest.mark.parametrize(("setting", "split"), [("pda", None), ("closed", [2, 0, 0])])
def test_nothing_is_rejected_where_the_target_has_no_classes_of_its_own(root, tmp_path, setting, split):
    data = {"setting": setting, "target": "part", "split": split}
    found = run(write_config(tmp_path / "part.yaml", root, data=data))
    assert found.report["rule"] == "none"
    chosen = found.report["rules"]["none"]
    assert chosen["rejected"] == 0
    assert chosen["h"] is None
    assert chosen["unknown"] is None
    assert chosen["accuracy"] > 0.9
    assert f"nothing is rejected in the setting {setting}" in found.tested.stdout
    assert "unknown" not in {row["class"] for row in predictions(found.config)}


def test_partial_adaptation_loses_nothing_to_training_on_the_source_alone(tmp_path):
    """On the demo's handwriting: all ten digits in the source, five of them in the target."""
    accuracies = {}
    for method in ("source_only", "memspm"):
        config = write_config(
            tmp_path / f"{method}.yaml",
            "builtin:styles",
            model={
                "method": method,
                "width": 128,
                "memory": {},
                "clustering": {"warmup": 40, "every": 40, "restarts": 1, "max_search": 1.5},
                "lr_scheduler": "vision.schedule.InverseDecay",
            },
            data={
                "setting": "pda",
                "split": [5, 5, 0],
                "shuffle_classes": 0,
                "batch_size": 36,
                "groups": 10,
                "epoch_steps": 120,
                "cache": str(tmp_path / "features"),
            },
            max_epochs=1,
        )
        found = run(config)
        assert found.report["rule"] == "none"
        accuracies[method] = found.report["rules"]["none"]["accuracy"]
    assert accuracies["source_only"] > 0.6
    assert accuracies["memspm"] >= accuracies["source_only"] - 0.02


def test_online_assignment_finds_pairs(root, tmp_path):
    clustering = {**CLUSTERING, "assign": "online", "clusters": 4}
    found = run(write_config(tmp_path / "online.yaml", root, model={"clustering": clustering}))
    assert found.report["clusters"]["with_a_class"] >= 2
    assert sum(found.report["clusters"].values()) == 4
    assert found.logged("train_cdd")
    assert found.logged("val_consensus")[-1] > 0.7


def test_online_clusters_are_of_use_on_other_targets(root, tmp_path):
    clustering = {**CLUSTERING, "assign": "online", "clusters": 4}
    found = run(write_config(tmp_path / "online.yaml", root, model={"clustering": clustering}, max_epochs=1))
    assert vision("test", "--config", found.config, "--data.target", "part").returncode == 0


def test_a_training_without_validation_has_its_cut(root, tmp_path):
    found = run(write_config(tmp_path / "unseen.yaml", root, limit_val_batches=0))
    assert found.report["rules"]["blend"]["weights"] != [0, 0, 0, 0]


@pytest.mark.parametrize("select", ["consensus", "last"])
def test_the_best_checkpoint_is_that_of_the_best_consensus_or_the_last(root, tmp_path, select):
    clustering = {"warmup": 0, "every": 3, "least": 1}  # with an untrained head first, so that consensus changes
    config = write_config(
        tmp_path / f"{select}.yaml",
        root,
        model={"select": select, "method": "dcc", "clustering": clustering},
        data={"epoch_steps": 3},
        max_epochs=5,
    )
    found = run(config)
    consensus = found.logged("val_consensus")
    assert len(set(consensus)) > 1
    epoch = consensus.index(max(consensus)) if select == "consensus" else len(consensus) - 1
    best = torch.load(found.best, weights_only=True)
    assert best["epoch"] == epoch
    assert best["search"]["consensus"] == pytest.approx(consensus[epoch])


def test_a_decoder_learns_to_draw(root, tmp_path):
    """From features of pictures that are not decoded again, and thumbnails that are kept beside them."""
    config = write_config(
        tmp_path / "drawing.yaml",
        root,
        model={"decoder": 14},
        data={"thumbnails": 14, "epoch_steps": 15, "cache": str(tmp_path / "features")},
    )
    found = run(config)
    losses = found.logged("train_reconstruction")
    assert len(losses) == 45
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    network, record = load_adapted(found.best)
    assert record.decoder == 14
    with torch.no_grad():
        drawn = network.decoder(network.memory.weight[:2, 0])
    assert drawn.shape == (2, 3, 14, 14)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


def test_the_papers_memory_trains_and_a_collapsed_one_is_warned_of(root, tmp_path):
    """Of many random sub-prototypes most are nobody's nearest."""
    memory = {**MEMORY, "items": 60, "subs": 4, "start": "random", "temperature": 1.0, "address": "paper"}
    found = run(write_config(tmp_path / "paper.yaml", root, model={"memory": memory}))
    assert all(math.isfinite(loss) for loss in found.logged("train_loss"))
    assert found.logged("train_ce")[-1] < found.logged("train_ce")[0]
    health = found.report["memory"]
    assert health["total"] == 240
    assert health["used"] < 0.3 * 240
    warning = f"memory: {health['used']} of 240 sub-prototypes used"
    for finished in (found.trained, found.tested):
        (line,) = [line for line in finished.stdout.splitlines() if warning in line]
        assert "the memory has collapsed (begin it from the data, at a lower temperature)" in line
