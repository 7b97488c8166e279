"""Two processes measure and train as one does."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from datamodules import VideoFolder
from tasks import VideoClassifier
from tests.command import vision, vision_process, write_config
from tests.images import write_images
from tests.tasks.quick import trainer
from tests.videos import numbered_frames, write_video
from vision.vivit.model import AdapterOptions, TemporalOptions
from vision.vivit.start import Start

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """32 training images, and 21 test images: an odd number, which two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("ddp")
    write_images(folder / "data" / "train", 12)
    write_images(folder / "data" / "val", 7, seed=1)
    return folder


def _metrics(runs: Path) -> dict[str, float]:
    """The last value of everything that was logged."""
    newest = max(runs.rglob("metrics.csv"), key=lambda file: file.stat().st_mtime)
    with newest.open(newline="") as stream:
        return {name: float(value) for row in csv.DictReader(stream) for name, value in row.items() if value}


def test_training_and_measuring(folder, monkeypatch):
    """Batch normalisations are kept in evaluation mode: in training mode each process sees its own batch."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the two processes have it
    results = {}
    for name, batch, command, flags in (("one", 12, vision, ()), ("two", 6, vision_process, TWO)):
        config = write_config(
            folder / f"{name}.yaml",
            folder / "data",
            model={"freeze_norm": True, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}}},
            data={"batch_size": batch},
            default_root_dir=str(folder / name),
        )
        finished = command("fit", "--config", config, *flags)
        assert finished.returncode == 0, finished.stderr
        (last,) = (folder / name).rglob("last.ckpt")
        tested = command("test", "--config", config, "--ckpt_path", last, *flags)
        assert tested.returncode == 0, tested.stderr
        results[name] = (torch.load(last, weights_only=True)["state_dict"], _metrics(folder / name))
    (weights, metrics), (weights_two, metrics_two) = results["one"], results["two"]
    assert metrics["test_loss"] > 0
    assert {name for name in metrics if name.startswith("test_")} >= {"test_top1", "test_f1_macro", "test_loss"}
    for name in metrics:
        if name.startswith("test_"):
            assert metrics_two[name] == pytest.approx(metrics[name], abs=1e-5), name
    for name, value in weights.items():
        torch.testing.assert_close(weights_two[name], value, rtol=1e-4, atol=1e-5, msg=name)


# ------------------------------------------------------------------------------------------------------------- videos
FORKED = {"devices": 2, "strategy": "ddp_fork"}
NOUNS, VERBS = ("cup", "pan", "jar"), ("take", "put", "cut", "wash")
EPIC = "video_id,start_timestamp,stop_timestamp,start_frame,stop_frame,noun_class,verb_class\n"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Lists of EPIC-KITCHENS: 8 videos for training; 7, 7 of which the second process can read none, and one."""
    root = tmp_path_factory.mktemp("videos")
    for kind, names in (("noun", NOUNS), ("verb", VERBS)):
        (root / f"EPIC_100_{kind}_classes.csv").write_text(
            "id,key\n" + "".join(f"{i},{name}\n" for i, name in enumerate(names))
        )
    random = torch.Generator().manual_seed(0)
    for split, number in (("train", 8), ("uneven", 7), ("broken", 7), ("single", 1)):
        rows = []
        for i in range(number):
            file = root / f"{split}_{i}.avi"
            if split == "broken" and i % 2:
                file.write_text("no video")
            else:
                first = int(torch.randint(400, (1,), generator=random))
                write_video(file, numbered_frames(first + 12, 32, 48)[first:], fourcc="MJPG")
            labels = [int(torch.randint(len(names), (1,), generator=random)) for names in (NOUNS, VERBS)]
            rows.append(f"{file.stem},00:00:00.00,00:00:01.20,1,12,{labels[0]},{labels[1]}\n")
        (root / f"{split}.csv").write_text(EPIC + "".join(rows))
    return root


def _videos(root: Path, held: str = "uneven", batch_size: int = 2) -> VideoFolder:
    return VideoFolder(
        str(root), "epic", "train.csv", f"{held}.csv", frames=4, stride=1, windows=2, image_size=16, num_workers=0,
        batch_size=batch_size, max_unreadable=0.9,
    )  # fmt: skip


def _classifier(root: Path) -> VideoClassifier:
    """A small network with its spatial part frozen; built here, so that all processes begin with the same one."""
    pl.seed_everything(0, verbose=False)
    task = VideoClassifier(
        backbone="timm:test_vit",
        backbone_options={"patch_size": 8, "depth": 1},
        adapter=AdapterOptions("grid", width=8, grid=2),
        temporal=TemporalOptions(1),
        start=Start(spatial="random"),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.5),
    )
    trainer(root, max_steps=0, limit_val_batches=0).fit(task, datamodule=_videos(root))
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return task


@pytest.mark.parametrize("held", ["uneven", "broken", "single"])
def test_videos_are_measured_together(videos, held):
    for measure, part in (("validate", "val"), ("test", "test")):
        one, two = (
            getattr(trainer(videos, **options), measure)(
                _classifier(videos), datamodule=_videos(videos, held), verbose=False
            )[0]
            for options in ({}, FORKED)
        )
        names = ("loss", "top1", "top5", "noun_loss", "noun_top1", "noun_f1_macro", "verb_calibration_error")
        assert one.keys() >= {f"{part}_{name}" for name in names}
        assert two == pytest.approx(one, abs=1e-5)


def test_two_processes_train_on_videos_as_one_with_twice_the_batch(videos):
    trained = []
    for batch_size, options in ((4, {}), (2, FORKED)):
        task = _classifier(videos)
        before = {name: value.clone() for name, value in task.state_dict().items()}
        settings = {"max_epochs": 1, "limit_val_batches": 0, **options}
        trainer(videos, **settings).fit(task, datamodule=_videos(videos, batch_size=batch_size))
        after = task.state_dict()
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert {"model.head.weight", "model.temporal.pos_embed", "model.adapter.reduce.weight"} <= moved
        assert not any(name.startswith("model.spatial.") for name in moved)
        trained.append(after)
    one, two = trained
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=name)
