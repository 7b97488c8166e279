"""What a training of an image classifier does with its options."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from datamodules import ImageFolder
from tasks import ImageClassifier
from tasks.classification import Measures
from tests.images import write_images
from tests.tasks.quick import trainer as _trainer
from vision.classifiers import create_classifier, load_classifier
from vision.errors import InputError
from vision.schedule import WarmupCosine

TINY = "timm:test_resnet"  # a network of timm's own tests, 0.5 million parameters


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 8)
    write_images(root / "val", 4, seed=1)
    return root


def _fit(root, folder, data=None, trainer=None, **options) -> tuple[ImageClassifier, pl.Trainer]:
    pl.seed_everything(0, verbose=False)
    module = ImageClassifier(**{"backbone": TINY, **options})
    images = ImageFolder(str(root), **{"image_size": 32, "batch_size": 8, "num_workers": 0, **(data or {})})
    runner = _trainer(folder, **(trainer or {}))
    runner.fit(module, datamodule=images)
    return module, runner


def test_it_learns_colours(root, tmp_path):
    schedule = {"lr_scheduler": lambda optimizer: WarmupCosine(optimizer, warmup_epochs=1)}
    options = {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-2), **schedule}
    _, trainer = _fit(root, tmp_path, trainer={"max_epochs": 12}, **options)
    assert trainer.callback_metrics["val_top1"] >= 0.9


def test_a_schedule_over_so_many_steps(root, tmp_path):
    """The same whether the length is said in epochs or in steps; the cosine ends where the training does."""
    schedule = {"lr_scheduler": lambda optimizer: WarmupCosine(optimizer, warmup_epochs=0, min_lr=0.0)}
    options = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=1e-3), **schedule}
    _, trainer = _fit(root, tmp_path, trainer={"max_epochs": 2}, **options)
    steps = trainer.global_step
    for length in ({}, {"max_epochs": -1, "max_steps": steps}, {"max_epochs": 9, "max_steps": steps // 2}):
        _, trainer = _fit(root, tmp_path, trainer={"max_epochs": 2, **length}, **options)
        assert trainer.global_step == length.get("max_steps", steps)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_measures_by_hand():
    """Six classes, three images: one right, one wrong but second likely, one wrong and least likely."""
    measures = Measures(6)
    right = torch.tensor([[5.0, 4, 3, 2, 1, 0]])
    measures.update(right, torch.tensor([0]), torch.tensor([1.0]))
    measures.update(torch.cat([right, right]), torch.tensor([1, 5]), torch.tensor([2.0, 6.0]))
    measured, matrix = measures.finish()
    assert measured["top1"] == pytest.approx(1 / 3)
    assert measured["top5"] == pytest.approx(2 / 3)
    assert measured["loss"] == pytest.approx(3.0)
    # Classes that occur: 0 (precision 1/3, recall 1: F1 1/2), 1 and 5 (F1 0).
    assert measured["f1_macro"] == pytest.approx(0.5 / 3)
    confidence = math.exp(5) / sum(math.exp(i) for i in range(6))
    assert measured["calibration_error"] == pytest.approx(confidence - 1 / 3, abs=1e-5)
    assert matrix[:, 0].tolist() == [1, 1, 0, 0, 0, 1]


def test_no_readable_image_in_a_batch_is_no_error(root, tmp_path):
    module, _ = _fit(root, tmp_path)
    module._evaluate({"image": torch.zeros(0, 3, 32, 32), "target": torch.zeros(0).long(), "path": []}, "val")


def test_freezing_the_backbone(root, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "start.pth"
    start = create_classifier(TINY, 3, (32, 32))
    torch.save(start.state_dict(), file)
    module, _ = _fit(root, tmp_path, checkpoint=str(file), freeze=["backbone"])
    after = module.model.state_dict()
    changed = {name for name, value in start.state_dict().items() if not torch.equal(value, after[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_freezing_what_does_not_exist(root, tmp_path):
    with pytest.raises(InputError, match=r"no parameter of timm:test_resnet begins with 'layer7'.*did you mean 'layer"):
        _fit(root, tmp_path, freeze=["layer7"])


def test_the_head_is_swapped_and_the_rest_is_kept(tmp_path):
    torch.manual_seed(0)
    before = create_classifier("efficientvit_m0", 10, (64, 64))
    file = tmp_path / "ten.pth"
    torch.save({"model": before.state_dict()}, file)
    seven = create_classifier("efficientvit_m0", 7, (64, 64), checkpoint=file)
    ten = create_classifier("efficientvit_m0", 10, (64, 64), checkpoint=file)
    image = torch.randn(2, 3, 64, 64)
    before, seven, ten = before.eval(), seven.eval(), ten.eval()
    assert torch.equal(seven.forward_features(image), before.forward_features(image))
    assert seven(image).shape == (2, 7)
    assert torch.equal(ten(image), before(image))


def test_pretrained_weights_that_cannot_be_had():
    with pytest.raises(InputError, match=r"'efficientvit_m0' cannot be had.*give a file with checkpoint"):
        create_classifier("efficientvit_m0", 3, pretrained=True)


def test_the_average_of_the_weights(root, tmp_path):
    """Three steps by hand: the average starts at the first weights and moves a tenth of the way at each step."""
    history = []

    class Recorded(ImageClassifier):
        def on_train_batch_start(self, batch, batch_idx):
            history.append(self.model.fc.weight.detach().clone())

    pl.seed_everything(0, verbose=False)
    module = Recorded(TINY, ema_decay=0.9, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    images = ImageFolder(str(root), image_size=32, batch_size=8, num_workers=0)
    _trainer(tmp_path).fit(module, datamodule=images)
    history.append(module.model.fc.weight.detach())
    assert len(history) == 4
    average = history[0]
    for weights in history[1:]:
        average = 0.9 * average + 0.1 * weights
    torch.testing.assert_close(module.ema.module.fc.weight, average)
    image = torch.randn(1, 3, 32, 32)
    module.eval()
    torch.testing.assert_close(module(image), module.ema.module.eval()(image))


def test_weight_decay_spares_vectors_and_bias_tables():
    module = ImageClassifier("efficientvit_m0", num_classes=3)
    module.configure_model()
    optimizer = module.configure_optimizers()
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in module.model.named_parameters():
        spared = parameter.ndim == 1 or name.endswith("attention_biases")
        assert (decay[parameter] == 0) == spared, name


def test_the_learning_rate_follows_the_batch(root, tmp_path):
    options = {"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.64), "lr_batch": 512}
    _, trainer = _fit(root, tmp_path, trainer={"accumulate_grad_batches": 2}, **options)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.64 * 16 / 512)


def _teacher(folder):
    torch.manual_seed(3)
    teacher = create_classifier(TINY, 3, (32, 32))
    file = folder / "teacher.pth"
    torch.save(teacher.state_dict(), file)
    return teacher.eval(), {"teacher": TINY, "teacher_checkpoint": str(file)}


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distillation(root, tmp_path, kind):
    teacher, options = _teacher(tmp_path)
    module, trainer = _fit(root, tmp_path, distillation=kind, distillation_alpha=0.25, distillation_tau=2.0, **options)
    batch = next(iter(trainer.datamodule.val_dataloader()))
    module.eval()
    loss = module.loss(batch["image"], batch["target"])
    with torch.no_grad():
        logits, taught = module.model(batch["image"]), teacher(batch["image"])
    if kind == "hard":
        teaching = F.cross_entropy(logits, taught.argmax(1))
    else:
        p, q = (taught / 2).softmax(1), (logits / 2).softmax(1)
        teaching = (p * (p / q).log()).sum() * 4 / logits.numel()
    expected = 0.75 * F.cross_entropy(logits, batch["target"]) + 0.25 * teaching
    torch.testing.assert_close(loss.detach(), expected)
    assert not any("teacher" in name for name in module.state_dict())


def test_a_teacher_of_other_classes(root, tmp_path):
    torch.save(create_classifier(TINY, 5, (32, 32)).state_dict(), tmp_path / "five.pth")
    options = {"teacher": TINY, "teacher_checkpoint": str(tmp_path / "five.pth"), "distillation": "hard"}
    with pytest.raises(InputError, match="the teacher knows 5 classes, the data has 3"):
        _fit(root, tmp_path, **options)


def test_adaptive_clipping_bounds_every_unit(root, tmp_path):
    """With a rate of 1 and plain SGD no unit may move further than the clipping's share of its norm."""
    before = {}

    class Recorded(ImageClassifier):
        def on_train_batch_start(self, batch, batch_idx):
            before.update({name: value.detach().clone() for name, value in self.model.named_parameters()})

    module = Recorded(TINY, agc=0.01, optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0))
    images = ImageFolder(str(root), image_size=32, batch_size=8, num_workers=0)
    _trainer(tmp_path, max_steps=1).fit(module, datamodule=images)
    for name, value in module.model.named_parameters():
        if value.ndim > 1:
            moved = (value.detach() - before[name]).flatten(1).norm(dim=1)
            assert (moved <= 0.01 * before[name].flatten(1).norm(dim=1).clamp(min=1e-3) * 1.001).all(), name


def test_a_checkpoint_is_enough_to_use_the_network(root, tmp_path):
    module, trainer = _fit(root, tmp_path, backbone="efficientvit_m0", data={"image_size": 64, "mean": (0.5, 0.5, 0.5)})
    file = tmp_path / "last.ckpt"
    trainer.save_checkpoint(file)
    model, record = load_classifier(file)
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(image), module.eval()(image))
    assert record.class_names == ["blue", "green", "red"]
    assert record.preprocessing.size == (64, 64)
    assert record.preprocessing.mean == (0.5, 0.5, 0.5)
    loaded = ImageClassifier.load_from_checkpoint(file, weights_only=True).eval()
    torch.testing.assert_close(loaded(image), model(image))


def test_wrong_options():
    for options, words in (
        ({"backbone": "resnet19"}, "no network called 'resnet19'"),
        ({"label_smoothing": 1.5}, "label_smoothing must be in"),
        ({"distillation": "soft"}, "distillation and teacher belong together"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
    ):
        with pytest.raises(InputError, match=words):
            ImageClassifier(**options)
    with pytest.raises(InputError, match="where num_classes is given"):
        ImageClassifier(TINY)(torch.zeros(1, 3, 32, 32))
