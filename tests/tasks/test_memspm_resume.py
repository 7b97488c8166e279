"""Trainings on two domains that are resumed or repeated, and checkpoints that are used by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from tasks.checkpointing import RandomState
from tests.tasks.quick import trainer
from tests.tasks.stripes import WHOLE, data, differing, fit, task, write_domains
from vision.memspm.checkpoint import load_adapted


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_domains(tmp_path_factory.mktemp("domains"))


def _steps(folder: Path, every: int) -> list[pl.Callback]:
    kept = pl.callbacks.ModelCheckpoint(
        folder, "{step}", every_n_train_steps=every, save_top_k=-1, save_on_train_epoch_end=False
    )
    return [kept, RandomState()]


RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "behind a clustering in mid-epoch": ({}, {}, 8),
    "before a clustering": ({}, {}, 9),
    "dcc": ({"method": "dcc"}, {}, 8),
    "settled clusters": ({"clustering": {"settle": True}}, {}, 15),
    "online": ({"clustering": {"assign": "online", "clusters": 4}}, {}, 8),
    "ovanet": ({"method": "ovanet"}, {}, 8),
    "decoder": ({"decoder": 14}, {"thumbnails": 14}, 8),
    "augmented, encoder trained": (
        {"backbone": "test_resnet", "trainable": "all"},
        {"image_size": 32, "scale": (0.5, 1.0), "horizontal_flip": 0.5},
        8,
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_training_ends_as_an_uninterrupted_one(root, tmp_path, case):
    """Clusterings are at steps 2, 6, 10 and 14 of 18, epochs begin at 0, 6 and 12."""
    settings, options, step = RESUMED[case]
    whole = fit(
        tmp_path, task(**settings), data(root, **options), callbacks=_steps(tmp_path, step), enable_checkpointing=True
    )
    resumed = task(**settings)
    runner = trainer(tmp_path, max_epochs=3, callbacks=[RandomState()])
    file = tmp_path / f"step={step}.ckpt"
    runner.fit(resumed, datamodule=data(root, **options), ckpt_path=file, weights_only=False)
    assert runner.global_step == 18
    assert differing(whole, resumed.state_dict()) == []


def test_the_bank_of_features_is_resumed(root, tmp_path):
    settings, options = {"method": "dance"}, {}
    whole = fit(
        tmp_path, task(**settings), data(root, **options), callbacks=_steps(tmp_path, 7), enable_checkpointing=True
    )
    resumed = task(**settings)
    runner = trainer(tmp_path, max_epochs=3, callbacks=[RandomState()])
    runner.fit(resumed, datamodule=data(root, **options), ckpt_path=tmp_path / "step=7.ckpt", weights_only=False)
    assert differing(whole, resumed.state_dict()) == []


@pytest.mark.parametrize("method", ["memspm", "dance"])
def test_the_same_seed_gives_the_same_network(root, tmp_path, method):
    states = [fit(tmp_path, task(method=method), data(root), max_epochs=2) for _ in range(2)]
    assert differing(*states) == []
    other = fit(tmp_path, task(method=method), data(root, seed=1), max_epochs=2)
    assert "model.head.fc.weight" in differing(states[0], other)


@pytest.mark.parametrize(
    "settings",
    [{}, {"clustering": {"assign": "online", "clusters": 4}}, {"method": "dcc"}, {"method": "ovanet"},
     {"method": "dance"}, {"memory": {"start": "random", "address": "paper", "temperature": 1.0}},
     {"backbone": "test_resnet", "trainable": "norm"}],
)  # fmt: skip
def test_a_checkpoint_alone_answers_as_the_task_does(root, tmp_path, settings):
    options = WHOLE if "backbone" in settings else {}
    adapted = task(**settings)
    runner = trainer(tmp_path, max_epochs=2)
    runner.fit(adapted, datamodule=data(root, **options))
    runner.save_checkpoint(tmp_path / "adapted.ckpt")
    network, record = load_adapted(tmp_path / "adapted.ckpt")
    assert record.class_names == ["flat", "rising", "steep"]
    assert record.preprocessing == adapted.preprocessing
    domains = data(root, **options)
    answers = trainer(tmp_path).predict(adapted, datamodule=domains)
    batches = list(domains.predict_dataloader())
    assert len(answers) == len(batches) == 5
    for answer, batch in zip(answers, batches, strict=True):
        with torch.inference_mode():
            found = network.examine(batch["media"])
            scores = network.rejection(found.scores)
            assert torch.equal(network(batch["media"]).argmax(dim=1), found.logits.argmax(dim=1))
        assert answer["path"] == batch["path"]
        assert torch.equal(answer["scores"], scores)
        assert torch.equal(answer["classes"], torch.where(scores > 0, found.logits.argmax(dim=1), 3))
        if found.addressed is not None:
            assert torch.equal(answer["rows"], found.addressed.rows)
            assert torch.equal(answer["weights"], found.addressed.weights)
