"""Training on two domains by the Trainer: what moves, what is made once, and what must not matter."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import nn

from tasks.memspm import RateScales
from tests.tasks.quick import trainer
from tests.tasks.stripes import WHOLE, data, differing, fit, task, write_domains


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_domains(tmp_path_factory.mktemp("domains"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A network's file; with statistics that are of no picture, so that any that come in show."""
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0)
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.uniform_(-0.1, 0.1)
    file = tmp_path_factory.mktemp("encoder") / "resnet.pt"
    torch.save(network.state_dict(), file)
    return file


# ------------------------------------------------------------------------------------------------------ the encoder
def test_a_frozen_encoder_stays_as_it_was_bit_for_bit(root, encoder, tmp_path):
    """With its statistics, though the training augments and is in training mode."""
    adapted = task(backbone="test_resnet", checkpoint=str(encoder))
    fit(tmp_path, adapted, data(root, image_size=32, scale=(0.5, 1.0), horizontal_flip=0.5), max_epochs=1)
    assert differing(adapted.model.encoder.state_dict(), torch.load(encoder)) == []
    assert not any(parameter.requires_grad for parameter in adapted.model.encoder.parameters())
    assert adapted.model.head.training
    assert not adapted.model.encoder.training


@pytest.mark.parametrize("trainable", ["norm", "last", "all"])
def test_what_of_the_encoder_is_trained(root, encoder, tmp_path, trainable):
    adapted = task(backbone="test_resnet", checkpoint=str(encoder), trainable=trainable)
    fit(tmp_path, adapted, data(root, image_size=32), max_epochs=1)
    before = torch.load(encoder)
    changed = set(differing(adapted.model.encoder.state_dict(), before))
    norms = {
        f"{name}.{key}"
        for name, module in adapted.model.encoder.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert norms
    expected = {
        "norm": norms,
        "last": {name for name in before if name.startswith("layer4.")},
        "all": set(before),
    }
    assert changed == expected[trainable]


def test_rates_are_in_proportion_to_the_heads(root, encoder, tmp_path):
    adapted = task(
        backbone="test_resnet",
        checkpoint=str(encoder),
        trainable="last",
        rate_scales=RateScales(memory=2.0, encoder=0.1),
        optimizer=lambda groups: torch.optim.SGD(groups, 0.01, weight_decay=0.1),
    )
    fit(tmp_path, adapted, data(root, image_size=32, epoch_steps=1), max_epochs=1)
    groups = adapted.optimizers().param_groups
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    rates = {
        "head": (adapted.model.head.fc.weight, 0.01, 0.1),
        "memory": (adapted.model.memory.weight, 0.02, 0.0),
        "encoder": (next(iter(adapted.model.encoder.layer4.parameters())), 0.001, 0.1),
    }
    for name, (parameter, rate, decay) in rates.items():
        group = of[id(parameter)]
        assert (group["lr"], group["weight_decay"]) == (pytest.approx(rate), decay), name
    assert id(next(adapted.model.encoder.parameters())) not in of


# ------------------------------------------------------------------------------------------------- cached features
class Encoded(pl.Callback):
    """Counts the pictures that go through the encoder, and those of them that steps asked for."""

    def __init__(self) -> None:
        self.pictures = self.of_steps = 0

    def on_fit_start(self, trainer, pl_module):
        def count(_module, inputs):
            self.pictures += len(inputs[0])

        pl_module.model.encoder.register_forward_pre_hook(count)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        parts = ("source", "aligned_source", "aligned_target", "clustered")
        self.of_steps += sum(len(batch[part]["index"]) for part in parts)


class WithoutFiles(pl.Callback):
    """Takes the pictures away when the steps begin."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_epoch_start(self, trainer, pl_module):
        for file in self.root.rglob("*.png"):
            file.unlink()


def test_cached_features_are_made_once_and_no_picture_is_opened_again(tmp_path):
    root = write_domains(tmp_path / "data")
    options = {**WHOLE, "cache": str(tmp_path / "features")}
    first, second = Encoded(), Encoded()
    fit(tmp_path, task(backbone="test_resnet"), data(root, **options), callbacks=[first])
    assert first.pictures == 72 + 2  # each once, and of either domain one to find out how many features there are
    adapted = task(backbone="test_resnet")
    fit(tmp_path, adapted, data(root, **options), callbacks=[second, WithoutFiles(root)])
    assert second.pictures <= 6  # made again to see that they come out the same
    assert adapted.global_step == 18
    assert len(adapted.model.clusters) >= 3


def test_a_frozen_encoder_sees_each_picture_once_for_all_clusterings(root, encoder, tmp_path):
    """Even without a cache: five clusterings are of features that were made for the first of them."""
    encoded = Encoded()
    adapted = task(backbone="test_resnet", checkpoint=str(encoder), method="dcc", clustering={"every": 3})
    fit(tmp_path, adapted, data(root, **WHOLE), callbacks=[encoded], max_epochs=2, limit_val_batches=0)
    assert adapted.model.clusters.matched.any()
    assert encoded.pictures == 72 + encoded.of_steps


@pytest.mark.parametrize("backbone", ["hog_32", "test_resnet"])
def test_cached_features_train_as_pictures_do(root, encoder, tmp_path, backbone):
    settings = {"backbone": backbone, "checkpoint": str(encoder) if backbone == "test_resnet" else None}
    states = [
        fit(tmp_path, task(**settings), data(root, **WHOLE, **cache), max_epochs=2)
        for cache in ({}, {"cache": str(tmp_path / "features")})
    ]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-3, msg=name)


# ------------------------------------------------------------------------------------------------------- precision
class Gradients(pl.Callback):
    """Looks at every gradient of the memory."""

    def __init__(self) -> None:
        self.finite: list[bool] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradient = pl_module.model.memory.weight.grad
        self.finite.append(bool(gradient.isfinite().all() and gradient.any()))


@pytest.mark.parametrize("assign", ["kmeans", "online"])
def test_bfloat16(root, tmp_path, assign):
    gradients = Gradients()
    adapted = task(clustering={"assign": assign, "clusters": 4}, decoder=14)
    options = {"precision": "bf16-mixed", "max_steps": 20, "max_epochs": -1, "callbacks": [gradients]}
    state = fit(tmp_path, adapted, data(root, thumbnails=14), **options)
    assert gradients.finite == [True] * 20
    assert all(value.isfinite().all() for value in state.values())
    assert bool(adapted.model.clusters.matched.any())


# ---------------------------------------------------------------------------------------------------- target labels
@pytest.mark.parametrize("settings", [{}, {"clustering": {"assign": "online", "clusters": 4}}, {"method": "dance"}])
def test_no_label_of_the_target_has_influence(root, tmp_path, settings):
    files = sorted((root / "target").rglob("*.png"))
    labels = [file.parent.name for file in files]
    states, accuracies = [], []
    for name, order in (("as_it_is", np.arange(36)), ("permuted", np.random.default_rng(0).permutation(36))):
        lines = [f"{file} {labels[place]}" for file, place in zip(files, order, strict=True)]
        (root / f"{name}.txt").write_text("\n".join(lines))
        adapted = task(**settings, select="consensus" if "method" not in settings else "last")
        states.append(fit(tmp_path, adapted, data(root, target=f"{name}.txt"), max_epochs=2))
        accuracies.append(float(adapted.trainer.callback_metrics["val_accuracy"]))
    assert differing(*states) == []
    assert accuracies[0] > accuracies[1]  # the labels did come in where they are measured with


def test_training_steps_are_given_no_label_of_the_target(root, tmp_path):
    class Spy(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert (batch["target"]["group"] == -1).all()

    fit(tmp_path, task(), data(root), callbacks=[Spy()], max_epochs=1)


# --------------------------------------------------------------------------------------------------- used as a whole
def test_training_goes_on_with_a_task_that_was_trained(root, tmp_path):
    adapted = task()
    first = copy.deepcopy(fit(tmp_path, adapted, data(root), max_epochs=1))
    second = fit(tmp_path, adapted, data(root), max_epochs=1)
    assert "model.head.fc.weight" in differing(first, second)
    tested = trainer(tmp_path).test(adapted, datamodule=data(root), verbose=False)
    assert tested[0]["test_accuracy"] > 0.5
