"""Training, measuring and resuming a network for several tasks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from tasks import MultitaskClassifier
from tests.tasks.multitask import BACKBONE, RULES, TASKS, data, write_tables
from tests.tasks.quick import trainer
from vision.errors import InputError
from vision.medic.gradients import PCGrad
from vision.medic.losses import class_balanced_weights, log_priors
from vision.medic.weighting import FAMO, EqualWeights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tables(tmp_path_factory.mktemp("tables"), rows=48)


def fit(folder, runs, data_options=None, trainer_options=None, **options) -> tuple[MultitaskClassifier, pl.Trainer]:
    pl.seed_everything(0, verbose=False)
    settings = {"backbone": "timm:test_resnet", "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-2)}
    module = MultitaskClassifier(**{**settings, **options})
    runner = trainer(runs, **(trainer_options or {}))
    runner.fit(module, datamodule=data(folder, **(data_options or {})))
    return module, runner


def test_it_learns_every_task_from_tables_with_gaps(folder, tmp_path):
    options = {"max_epochs": 14, "logger": CSVLogger(str(tmp_path), name="run")}
    _, runner = fit(folder, tmp_path, trainer_options=options)
    (file,) = tmp_path.rglob("val_report.json")
    report = json.loads(file.read_text())
    assert list(report) == list(TASKS)
    for task, of in report.items():
        assert of["f1_weighted"] > of["majority"]["f1_weighted"], task
        assert np.sum(of["confusion"]) == of["images"] == 9
    assert report["level"]["mean_absolute_error"] < report["level"]["majority"]["mean_absolute_error"]
    logged = runner.callback_metrics
    assert logged["val_mean_f1_macro"] == pytest.approx(np.mean([of["f1_macro"] for of in report.values()]), abs=1e-5)
    assert logged["val_loss"] == pytest.approx(sum(of["loss"] for of in report.values()), rel=1e-5)
    pictures = {path.name for path in tmp_path.rglob("val_confusion_*.png")}
    assert pictures == {f"val_confusion_{task}.png" for task in TASKS}


@pytest.mark.parametrize("rule", ["uncertainty", "dwa", "famo", "pcgrad"])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(folder, tmp_path, rule):
    """Three epochs, and two plus one: weights of the network and state of the weighting, to the bit."""
    options = {"backbone": BACKBONE, "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-3)}
    whole, _ = fit(folder, tmp_path, trainer_options={"max_epochs": 3}, weighting=RULES[rule](), **options)
    _, first = fit(folder, tmp_path, trainer_options={"max_epochs": 2}, weighting=RULES[rule](), **options)
    first.save_checkpoint(tmp_path / "two.ckpt")
    second = MultitaskClassifier(weighting=RULES[rule](), **options)
    trainer(tmp_path, max_epochs=3).fit(second, datamodule=data(folder), ckpt_path=tmp_path / "two.ckpt")
    expected = whole.state_dict()
    for name, value in second.state_dict().items():
        assert torch.equal(value, expected[name]), name


class Blank(pl.Callback):
    """Takes away every label from the third step on, and keeps what there was before it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            self.weights = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
            self.moments = [state["exp_avg"].clone() for state in trainer.optimizers[0].state.values()]
        if batch_idx >= 2:
            batch["labels"][:], batch["labelled"][:] = -1, 0


@pytest.mark.parametrize("rule", ["equal", "uncertainty", "famo", "pcgrad"])
def test_steps_without_any_label_change_nothing(folder, tmp_path, rule):
    """Nor do they move an optimizer's moments, or decay weights."""
    blank = Blank()
    options = {"callbacks": [blank], "limit_val_batches": 0, "gradient_clip_val": 1.0}
    module, runner = fit(folder, tmp_path, trainer_options=options, weighting=RULES[rule]())
    assert runner.global_step == 6
    assert all(torch.equal(value, blank.weights[name]) for name, value in module.named_parameters())
    moments = [state["exp_avg"] for state in runner.optimizers[0].state.values()]
    assert all(torch.equal(now, then) for now, then in zip(moments, blank.moments, strict=True))


class EqualByGradients(EqualWeights):
    """The sum of the losses, by way of the tasks' gradients."""

    needs = "gradients"


@pytest.mark.parametrize("clip", [None, 0.1])
def test_gradients_put_together_are_those_of_the_sum(folder, tmp_path, clip):
    """With what the configurations have: a convolutional network in the channels-last layout, and a fused optimizer."""
    found = []
    for rule in (EqualWeights(), EqualByGradients()):
        fused = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.05, fused=True)}
        options = {"max_steps": 3, "gradient_clip_val": clip}
        module, _ = fit(folder, tmp_path, trainer_options=options, weighting=rule, **fused)
        found.append(module.model.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_network_for_one_of_the_tasks(folder, tmp_path):
    module, runner = fit(folder, tmp_path, tasks=["side"])
    assert module.model.head.out_features == 2
    assert "val_side_f1_macro" in runner.callback_metrics
    assert not any("colour" in name for name in runner.callback_metrics)


def test_imbalance_options_come_from_the_labelled_training_rows(folder, tmp_path):
    module, runner = fit(folder, tmp_path, class_weights="balanced", logit_adjustment=0.5, ordinal=True)
    counts = runner.datamodule.class_counts
    assert torch.equal(module.losses.weight_level, class_balanced_weights(counts["level"]))
    assert torch.equal(module.losses.adjustment_side, 0.5 * log_priors(counts["side"]))
    assert module.losses.adjustment_level is None  # an ordinal head has no logits of classes
    assert module.model.head.out_features == 3 + 2 + 2
    assert module.plain_losses.weight_level is None


def test_validation_without_labels_of_a_task_leaves_it_out(folder, tmp_path):
    header, *rows = (folder / "dev.tsv").read_text().splitlines()
    (folder / "dev_gap.tsv").write_text("\n".join([header, *(row.rsplit("\t", 1)[0] + "\t" for row in rows)]) + "\n")
    with pytest.warns(UserWarning, match="side"):
        _, runner = fit(folder, tmp_path, data_options={"val": "dev_gap.tsv"})
    assert not any("side" in name for name in runner.callback_metrics if name.startswith("val_"))
    assert torch.isfinite(runner.callback_metrics["val_mean_f1_macro"])


def test_bf16_with_gradient_rules_and_accumulation(folder, tmp_path):
    for rule in ("pcgrad", "famo"):
        options = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
        module, _ = fit(folder, tmp_path, trainer_options=options, weighting=RULES[rule]())
        assert all(torch.isfinite(value).all() for value in module.parameters())


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_other_precisions(folder, tmp_path, precision):
    for rule in ("gradnorm", "uncertainty"):
        options = {"precision": precision, "max_epochs": 2, "limit_val_batches": 0}
        module, _ = fit(folder, tmp_path, trainer_options=options, weighting=RULES[rule]())
        assert all(torch.isfinite(value).all() for value in module.parameters())


def test_a_frozen_part_of_the_backbone_stays_as_it_is(folder, tmp_path):
    class Freeze(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            first = next(pl_module.model.trunk.parameters())
            first.requires_grad_(False)
            self.frozen, self.before = first, first.detach().clone()

    callback = Freeze()
    fit(folder, tmp_path, trainer_options={"callbacks": [callback], "limit_val_batches": 0}, weighting=PCGrad())
    assert torch.equal(callback.frozen, callback.before)


def test_a_task_reads_its_own_checkpoint_alone(folder, tmp_path):
    module, runner = fit(folder, tmp_path, weighting=FAMO())
    runner.save_checkpoint(tmp_path / "net.ckpt")
    again = MultitaskClassifier.load_from_checkpoint(tmp_path / "net.ckpt", weighting=FAMO()).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, expected = again(images), module.eval()(images)
    assert all(torch.equal(found[task], expected[task]) for task in TASKS)
    assert again.schema == module.schema


def test_checkpoint_of_other_tasks_is_refused(folder, tmp_path):
    _, runner = fit(folder, tmp_path, tasks=["side"])
    runner.save_checkpoint(tmp_path / "side.ckpt")
    module = MultitaskClassifier("timm:test_resnet")
    with pytest.raises(InputError, match="the checkpoint answers side, the network colour, level, side"):
        trainer(tmp_path).test(module, datamodule=data(folder), ckpt_path=tmp_path / "side.ckpt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": ["sied"]}, r"no task 'sied' \(did you mean 'side'\?\)"),
        ({"label_smoothing": 2.0}, r"label_smoothing must be in \[0, 1\], got 2"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1"),
        ({"logit_adjustment": -1.0}, "logit_adjustment must be at least 0, got -1"),
    ],
)
def test_unusable_settings(folder, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        fit(folder, tmp_path, **options)


def test_data_of_one_task_is_refused(tmp_path):
    from datamodules import ImageFolder
    from tests.images import write_images

    write_images(tmp_path / "train", 2)
    images = ImageFolder(str(tmp_path), image_size=32, batch_size=2, num_workers=0, val_fraction=0.5)
    with pytest.raises(InputError, match="needs a data module with several tasks, such as MultitaskImages"):
        trainer(tmp_path).fit(MultitaskClassifier("timm:test_resnet"), datamodule=images)
