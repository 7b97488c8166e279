"""Warming up, adapting by the Trainer, and what becomes of the configuration's files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torchvision.models import get_model

from datamodules import CorruptionStream, SegmentationStream
from tasks import TestTimeAdaptation
from tasks.stream_measures import Score
from tests.command import error_line, vision
from tests.images import write_images
from tests.tasks.quick import trainer as _trainer
from vision.ecotta import Online, WideResNet

METHODS = ["source", "bn", "adaptbn", "tent", "eta", "eata", "cotta", "rdumb", "ecotta"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for seed, part in enumerate(("train", "val", "test")):
        write_images(root / part, 12, seed=seed)
    return root


@pytest.fixture(scope="module")
def classes(root) -> int:
    return len(list((root / "train").iterdir()))


@pytest.fixture(scope="module")
def source(tmp_path_factory, classes) -> Path:
    """A network's file as RobustBench's are."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("source") / "wrn.pt"
    state = {f"module.{key}": value for key, value in WideResNet(10, 1, classes).state_dict().items()}
    torch.save({"state_dict": state}, file)
    return file


def _stream(root, **options) -> CorruptionStream:
    settings = {"image_size": 16, "batch_size": 8, "num_workers": 0, "images": 16, "probes": 8}
    return CorruptionStream(str(root), **{**settings, "corruptions": ["fog", "contrast"], **options})


def _task(source, **options) -> TestTimeAdaptation:
    pl.seed_everything(0, verbose=False)
    own = {"cotta": {"views": 2}}
    settings = {"source": str(source), "methods": METHODS, "method_options": own, "online": Online(lr=0.01)}
    return TestTimeAdaptation(**{**settings, **options})


def test_the_warm_up_trains_the_meta_networks_alone(root, source, tmp_path):
    task = _task(source)
    untouched = torch.load(source)["state_dict"]
    _trainer(tmp_path, max_epochs=2).fit(task, datamodule=_stream(root))
    for key, value in task.adapter.model.state_dict().items():
        assert torch.equal(value, untouched[f"module.{key}"]), key
    assert not torch.equal(task.adapter.metas[0].meta_bn.bias, torch.zeros(16))
    assert task.trainer.callback_metrics["val_top1"] >= 0


@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_test_adapts_whatever_inference_mode_the_trainer_has(root, source, tmp_path, inference_mode):
    task = _task(source, methods=["tent", "ecotta"])
    runner = _trainer(tmp_path, inference_mode=inference_mode)
    runner.test(task, datamodule=_stream(root), verbose=False)
    assert task.adapter.steps == 4
    assert any(parameter.any() for parameter in (meta.conv_block.bn.bias for meta in task.adapter.metas))
    assert 0 <= runner.callback_metrics["test_ecotta_error"] <= 1
    assert runner.callback_metrics["test_ecotta_held_mb"] < runner.callback_metrics["test_tent_held_mb"]


def test_every_method_is_measured_side_by_side(root, source, tmp_path, capsys):
    task = _task(source)
    runner = _trainer(tmp_path, logger=pl.loggers.CSVLogger(tmp_path))
    runner.test(task, datamodule=_stream(root, rounds=2), verbose=False)
    folder = Path(runner.log_dir)
    report = json.loads((folder / "stream.json").read_text())["methods"]
    assert list(report) == METHODS
    for of in report.values():
        assert len(of["error_by_round"]) == 2
        assert list(of["error_by_corruption"]) == ["fog", "contrast"]
        assert [position for position, _ in of["clean"]] == [-1, 0, 1, 2, 3]
        assert of["paper_mb"] > 0
    # What learns nothing does not change from round to round.
    assert report["source"]["error_by_round"][0] == report["source"]["error_by_round"][1]
    assert (folder / "pictures" / "test_forgetting.png").stat().st_size > 1000
    assert "paper MB" in capsys.readouterr().out


def test_labels_are_for_measuring_only(root, source, tmp_path):
    """With other labels the same predictions are made."""
    found = []
    for shift in (0, 1):
        task = _task(source, methods=["ecotta"])
        stream = _stream(root)
        stream.prepare_data()
        stream.setup()
        stream.stream.targets = [(target + shift) % 3 for target in stream.stream.targets]
        _trainer(tmp_path).test(task, datamodule=stream, verbose=False)
        found.append(copy.deepcopy(task.adapter.meta_state_dict()))
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key


def test_score_by_hand():
    score = Score(3, pixels=False)
    score.add(torch.eye(3), torch.tensor([0, 1, 0]))
    assert score.error == pytest.approx(1 / 3)
    pixels = Score(2, pixels=True)
    logits = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]])  # classes 0 1 / 0 1
    pixels.add(logits, torch.tensor([[[0, 1], [1, 255]]]))
    assert pixels.error == pytest.approx(1 - (1 / 2 + 1 / 2) / 2)


def test_pixels_are_adapted_on_and_measured(tmp_path):
    torch.manual_seed(0)
    network = get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=19)
    torch.save(network.state_dict(), tmp_path / "network.pth")
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for number in range(2):
            for kind, name, shape in (
                ("leftImg8bit", "leftImg8bit", (64, 128, 3)),
                ("gtFine", "gtFine_labelTrainIds", (64, 128)),
            ):
                folder = tmp_path / kind / part / "city"
                folder.mkdir(parents=True, exist_ok=True)
                values = random.integers(0, 256 if len(shape) == 3 else 19, shape).astype(np.uint8)
                Image.fromarray(values).save(folder / f"city_{number:06d}_000019_{name}.png")
    task = TestTimeAdaptation(
        source=str(tmp_path / "network.pth"),
        backbone="torchvision:lraspp_mobilenet_v3_large",
        methods=["source", "tent", "ecotta"],
    )
    data = SegmentationStream(str(tmp_path), image_size=(64, 128), rounds=1, num_workers=0, corruptions=["fog"])
    runner = _trainer(tmp_path)
    runner.fit(task, datamodule=data)
    assert 0 <= runner.callback_metrics["val_miou"] <= 1
    runner.test(task, datamodule=data, verbose=False)
    assert 0 <= runner.callback_metrics["test_ecotta_error"] <= 1
    assert task.adapter.last.updated


def _config(file: Path, root: Path, source: Path, **model) -> Path:
    content = {
        "model": {
            "class_path": "TestTimeAdaptation",
            "init_args": {"source": str(source), "methods": ["bn", "ecotta"], **model},
        },
        "data": {
            "class_path": "CorruptionStream",
            "init_args": {
                "root": str(root),
                "image_size": 16,
                "batch_size": 8,
                "num_workers": 0,
                "images": 8,
                "corruptions": ["fog"],
            },
        },
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "default_root_dir": str(file.parent / "runs"),
        },
    }
    file.write_text(json.dumps(content))
    return file


def test_a_test_takes_the_newest_training_of_its_configuration(root, source, tmp_path):
    config = _config(tmp_path / "eco.yaml", root, source)
    assert vision("fit", "--config", config).returncode == 0
    tested = vision("test", "--config", config)
    assert tested.returncode == 0, tested.stderr
    assert "version_0/checkpoints/best.ckpt" in tested.stdout
    predicted = vision("predict", "--config", config)
    assert predicted.returncode == 0, predicted.stderr
    tables = list(tmp_path.glob("runs/**/predictions.csv"))
    assert tables[0].read_text().splitlines()[0] == "path,domain,class,probability"
    assert len(tables[0].read_text().splitlines()) == 9


def test_without_a_training_a_configuration_that_names_another_one_says_so(root, source, tmp_path):
    first = _config(tmp_path / "first.yaml", root, source)
    config = _config(tmp_path / "second.yaml", root, first.name)
    assert "run 'vision fit' with this configuration first" in error_line("test", "--config", config)


def test_what_is_wrong_is_said_in_one_line(root, source, tmp_path):
    config = _config(tmp_path / "eco.yaml", root, source)
    assert "no 'tint' (did you mean 'tent'?)" in error_line("test", "--config", config, "--model.methods", "[tint]")
    assert "4 groups of 3 blocks" in error_line("test", "--config", config, "--model.meta.groups", "4")
    wrong = error_line("test", "--config", config, "--model.method_options", "{bn: {views: 3}}")
    assert "method_options: bn" in wrong
    other = tmp_path / "other.pt"
    torch.save(WideResNet(10, 1, 7).state_dict(), other)
    assert "the network has 7 classes" in error_line("fit", "--config", config, "--model.source", str(other))
    missing = error_line("fit", "--config", config, "--model.source", str(tmp_path / "none.pt"))
    assert "no such checkpoint file" in missing
