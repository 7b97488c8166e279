"""Features of a frozen network on disk: as good as the network itself, and refused where they are another's."""

from __future__ import annotations

import csv
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from datamodules import VideoFolder
from tests.videos import write_video
from vision.errors import InputError

CLASSES = ("to the left", "to the right", "up")


class Task(pl.LightningModule):
    """A frozen layer over the means of four columns of every frame, and a head that is trained."""

    def __init__(self, seed: int = 0, dtype: str = "float32", **fields) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.frozen = torch.nn.Linear(12, 5).requires_grad_(False)
        self.head = torch.nn.Linear(5, len(CLASSES))
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
        self.fields = {"backbone": "columns", "weights": f"seed {seed}", "dtype": dtype, **fields}
        self.encoded = 0
        self.losses: list[float] = []
        self.batches: list[dict] = []

    def frozen_features(self, media):
        self.encoded += len(media)
        columns = media.float().unflatten(-1, (4, -1)).mean(dim=(-1, -3)) / 255
        return self.frozen(columns.flatten(2))

    def cache_fields(self):
        return self.fields

    def _loss(self, batch):
        features = batch.get("features")
        if features is None:
            views = batch["video"]
            features = self.frozen_features(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return torch.nn.functional.cross_entropy(self.head(features.mean(dim=(1, 2))), batch["labels"][:, 0])

    def training_step(self, batch, batch_idx):
        loss = self._loss(batch)
        self.losses.append(loss.item())
        self.batches.append(batch)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = self._loss(batch)
        if not self.trainer.sanity_checking:
            self.losses.append(loss.item())
            self.batches.append(batch)

    def test_step(self, batch, batch_idx):
        self.batches.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _frames(side: str, number: int) -> list[np.ndarray]:
    """Bright on one side, in a shade of its own."""
    frame = np.full((32, 32, 3), 8 * number, np.uint8)
    if side != "up":
        frame[:, : 16 if side == "to the left" else 32][:, -16:] = 220
    return [frame] * 6


@pytest.fixture
def root(tmp_path) -> Path:
    """12 videos for training, 6 for validation."""
    for split, number in (("train", 4), ("val", 2)):
        for name in CLASSES:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(number):
                write_video(tmp_path / "data" / split / name / f"{i}.avi", _frames(name, i), fourcc="FFV1")
    return tmp_path / "data"


def _data(root: Path, cache: str | None = "cache", kind=VideoFolder, **options) -> VideoFolder:
    options = {"frames": 2, "image_size": 16, "batch_size": 4, "num_workers": 0, "augment": False, **options}
    return kind(str(root), cache=None if cache is None else str(root.parent / cache), **options)


def _trainer(root: Path, **options) -> pl.Trainer:
    options = {"max_epochs": 2, "logger": pl.loggers.CSVLogger(str(root.parent / "runs")), **options}
    return pl.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def _fit(data: VideoFolder, task: Task | None = None, **options) -> Task:
    task = task or Task()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trainer(Path(data.root), **options).fit(task, datamodule=data)
    return task


def _refusal(data: VideoFolder, task: Task | None = None) -> str:
    with pytest.raises(InputError) as caught:
        _fit(data, task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _left_out(task: Task) -> dict[str, str]:
    """What ``unreadable.csv`` of a run says."""
    file = Path(task.trainer.log_dir, "unreadable.csv")
    if not file.exists():
        return {}
    with file.open(newline="") as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-2)])
def test_training_on_the_cache_is_training_on_the_videos(root, dtype, tolerance):
    plain = _fit(_data(root, cache=None, crops=3, windows=2))
    cached = _fit(_data(root, crops=3, windows=2), Task(dtype=dtype))
    assert [batch["path"] for batch in cached.batches] == [batch["path"] for batch in plain.batches]
    assert np.allclose(cached.losses, plain.losses, atol=tolerance)
    assert torch.allclose(cached.head.weight, plain.head.weight, atol=tolerance)
    train, val = cached.batches[0], cached.batches[-1]
    assert train["features"].shape == (4, 1, 2, 5)
    assert val["features"].shape == (1, 6, 2, 5)
    assert train["features"].dtype == torch.float32
    assert cached.encoded < plain.encoded


def test_the_videos_are_not_needed_any_more(root, tmp_path, capsys):
    first = _fit(_data(root))
    assert f"vision: the cache takes 480 bytes in {tmp_path}/cache/train (12 clips)" in capsys.readouterr().out
    shutil.rmtree(root)
    again = _fit(_data(root))
    assert again.losses == first.losses
    assert again.encoded == 0
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match=r"data.root: no such folder: .*has no features for test"):
        _trainer(root).test(Task(), datamodule=_data(root))


def test_only_the_splits_that_are_asked_for_are_made(root, tmp_path):
    _trainer(root).test(Task(), datamodule=_data(root, num_workers=1))
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == ["test"]
    task = Task()
    _trainer(root).validate(task, datamodule=_data(root), verbose=False)
    assert {folder.name for folder in (tmp_path / "cache").iterdir()} == {"test", "val"}
    assert sum(len(batch["features"]) for batch in task.batches) == 6


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (Task(seed=1), {}, "task.weights seed 0, now it is seed 1"),
        (Task(dtype="float16"), {}, "task.dtype float32, now it is float16"),
        (Task(layers=[3, 4]), {}, "task.layers None, now it is [3, 4]"),
        (Task(), {"stride": 1}, "data.stride 2, now it is 1"),
        (Task(), {"image_size": 8}, "data.preprocessing.size [16, 16], now it is [8, 8]"),
        (Task(), {"augment": True}, "data.augment False, now it is True"),
    ],
)
def test_features_of_something_else_are_refused(root, tmp_path, task, options, message):
    _fit(_data(root))
    expected = f"the features were made with {message}; take another folder (data.cache), or remove this one"
    assert expected in _refusal(_data(root, **options), task)


def test_changed_files_are_named(root, tmp_path):
    _fit(_data(root))
    changed = root / "train/up/2.avi"
    before = changed.stat()
    os.utime(changed, (before.st_atime, before.st_mtime + 60))
    assert "train/up/2.avi has changed since its features were made (" in _refusal(_data(root))
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    _fit(_data(root))
    (root / "train/up/0.avi").rename(root / "train/up/9.avi")
    message = _refusal(_data(root))
    assert "file 9 of the features is train/up/0.avi, now train/up/1.avi is listed there" in message
    (root / "train/up/9.avi").unlink()
    assert "the features are of 12 files, 11 are listed now" in _refusal(_data(root))


def test_an_interrupted_cache_is_finished(root, tmp_path):
    whole = _fit(_data(root))
    folder = tmp_path / "cache/train"
    status, features = np.fromfile(folder / "done.bin", np.uint8), (folder / "features.bin").read_bytes()
    assert status.tolist() == [1] * 12
    status[5:] = 0
    status.tofile(folder / "done.bin")
    (folder / "features.bin").write_bytes(features[: 5 * 40] + bytes(7 * 40))
    rest = _fit(_data(root))
    assert rest.losses == whole.losses
    assert rest.encoded == 7 + 3 + 3  # and a few of each split that are made again, to be compared
    assert (folder / "features.bin").read_bytes() == features


def test_features_that_do_not_come_out_again_are_refused(root, tmp_path):
    _fit(_data(root))
    stored = np.fromfile(tmp_path / "cache/train/features.bin", np.float32)
    (stored + 1).tofile(tmp_path / "cache/train/features.bin")
    message = _refusal(_data(root))
    assert "do not come out again: they differ by" in message
    assert message.startswith(f"{tmp_path}/cache/train: the features of {root}/train/")


@pytest.mark.parametrize(("name", "text"), [("index.json", "[]"), ("index.json", "{"), ("features.bin", "few")])
def test_damaged_caches_are_named(root, tmp_path, name, text):
    _fit(_data(root))
    (tmp_path / "cache/train" / name).write_text(text)
    assert _refusal(_data(root)).startswith(f"{tmp_path}/cache/train/{name}: ")


def test_draws_of_a_clip_differ_and_are_taken_by_turns(root, tmp_path):
    options = {"augment": True, "cache_draws": 3, "scale_jitter": (0.9, 1.33), "horizontal_flip": 0.5}
    one, two = (_fit(_data(root, cache, **options), max_epochs=6) for cache in ("one", "two"))
    assert one.losses == two.losses
    seen: dict[str, set[bytes]] = {}
    for batch in one.batches:
        for path, features in zip(batch["path"], batch["features"], strict=True):
            if "/train/" in path:
                seen.setdefault(path, set()).add(features.numpy().tobytes())
    assert len(seen) == 12
    assert max(len(draws) for draws in seen.values()) == 3
    assert sum(len(draws) for draws in seen.values()) > 20
    index = json.loads((tmp_path / "one/train/index.json").read_text())
    assert index["fields"]["data"]["draws"] == 3
    assert (tmp_path / "one/train/done.bin").stat().st_size == 36


def test_mirrored_draws_have_mirrored_labels(root):
    """The side that is bright tells the class, in whatever draw."""

    class Sides(Task):
        def frozen_features(self, media):
            return (media[..., :8].float().mean(dim=(1, 2, 3, 4)) - media[..., 8:].float().mean(dim=(1, 2, 3, 4)))[
                :, None
            ]

        def training_step(self, batch, batch_idx):
            self.batches.append(batch)
            return self.head.weight.sum()

        def validation_step(self, batch, batch_idx):
            pass

    options = {"augment": True, "cache_draws": 4, "scale_jitter": None, "horizontal_flip": 0.5, "crop_pct": 1.0}
    batches = _fit(_data(root, **options), Sides(), max_epochs=5).batches
    kinds = set()
    for batch in batches:
        for path, side, label in zip(batch["path"], batch["features"].flatten(), batch["labels"][:, 0], strict=True):
            assert CLASSES[label] == ("to the left" if side > 1 else "to the right" if side < -1 else "up")
            kinds.add((Path(path).parent.name, CLASSES[label]))
    assert len(kinds) == 5


def test_labels_that_say_what_is_mirrored_belong_to_the_features(root):
    """Renamed, a class has a mirror image no more; without mirroring, labels are those of the day."""
    (root / "classes.txt").write_text("to the left\nto the right\nup\n")
    files = sorted((root / "train").rglob("*.avi"))
    rows = [f"{file.relative_to(root)},{CLASSES.index(file.parent.name)}\n" for file in files]
    (root / "train.csv").write_text("".join(rows))
    listed = {"layout": "list", "train": "train.csv", "val": "train.csv"}
    _fit(_data(root, "mirrored", **listed, augment=True), max_epochs=1)
    _fit(_data(root, "plain", **listed, augment=True, horizontal_flip=0.0), max_epochs=1)
    _fit(_data(root, "mirrored", **listed, augment=True), max_epochs=1)
    for name, text in (
        ("classes.txt", "to the left\ndown\nup\n"),
        ("train.csv", "".join(rows).replace("up/0.avi,2", "up/0.avi,1")),
    ):
        before = (root / name).read_text()
        (root / name).write_text(text)
        message = _refusal(_data(root, "mirrored", **listed, augment=True))
        assert "mirrored/train: the features were made with data.labels " in message
        _fit(_data(root, "plain", **listed, augment=True, horizontal_flip=0.0), max_epochs=1)
        (root / name).write_text(before)


def test_a_resumed_epoch_goes_on_with_the_same_features(root):
    options = {"augment": True, "cache_draws": 2}
    whole = _fit(_data(root, **options), max_epochs=1, limit_val_batches=0).batches
    data = _data(root, **options)
    data.load_state_dict({"batches": 1})
    rest = _fit(data, max_epochs=1, limit_val_batches=0).batches
    assert len(rest) == 2
    for one, other in zip(rest, whole[1:], strict=True):
        assert torch.equal(one["features"], other["features"])


def test_unreadable_videos_are_skipped_and_listed_every_time(root):
    bad = {root / "train/up/1.avi", root / "val/to the left/0.avi"}
    for file in bad:
        file.write_text("no video")
    for task in (
        _fit(_data(root, None, max_unreadable=0.2), max_epochs=1),
        _fit(_data(root, max_unreadable=0.2), max_epochs=1),
        _fit(_data(root, max_unreadable=0.2), max_epochs=1),
    ):
        paths = [path for batch in task.batches for path in batch["path"]]
        assert len(paths) == 12 + 5
        assert not bad & {Path(path) for path in paths}
        assert paths.count(str(root / "train/up/2.avi")) == 2
        rows = _left_out(task)
        assert rows.keys() == {str(file) for file in bad}
        assert all("not a video" in reason for reason in rows.values())
    assert "2 of 18 videos cannot be read" in _refusal(_data(root, "other", max_unreadable=0.1))


@pytest.mark.parametrize("draws", [1, 2])
def test_repaired_videos_are_made_up_for(root, tmp_path, draws):
    options = {"max_unreadable": 0.2, "augment": draws > 1, "cache_draws": draws, "num_workers": 0}
    bad, good = root / "train/up/1.avi", (root / "train/up/1.avi").read_bytes()
    whole = _fit(_data(root, "whole", **options), max_epochs=1)
    for text in ("no video", "no video either"):
        bad.write_text(text)
        assert str(bad) in _left_out(_fit(_data(root, **options), max_epochs=1))
    again = _fit(_data(root, **options), max_epochs=1)
    assert again.encoded == 3 + 3, "what is as it was is not tried again, and a few are compared"
    bad.write_bytes(good)
    repaired = _fit(_data(root, **options), max_epochs=1)
    assert repaired.encoded == draws + 3 + 3
    assert repaired.losses == whole.losses
    assert not _left_out(repaired)
    for name in ("features.bin", "done.bin"):
        assert (tmp_path / "cache/train" / name).read_bytes() == (tmp_path / "whole/train" / name).read_bytes()
    assert _fit(_data(root, **options), max_epochs=1).encoded == 3 + 3
    bad.write_text("broken again")
    assert "train/up/1.avi has changed since its features were made (" in _refusal(_data(root, **options))


def test_videos_that_are_there_again_are_made_up_for(root, tmp_path):
    whole = _fit(_data(root))
    folder = tmp_path / "cache/train"
    features, status = (folder / "features.bin").read_bytes(), np.fromfile(folder / "done.bin", np.uint8)
    status[[4, 9]] = 0
    status.tofile(folder / "done.bin")
    root.rename(tmp_path / "elsewhere")
    assert len(_left_out(_fit(_data(root, max_unreadable=0.2)))) == 2
    assert np.fromfile(folder / "done.bin", np.uint8)[[4, 9]].tolist() == [2, 2]
    (tmp_path / "elsewhere").rename(root)
    again = _fit(_data(root))
    assert again.losses == whole.losses
    assert again.encoded == 2 + 3 + 3
    assert (folder / "features.bin").read_bytes() == features
    assert not (folder / "unreadable-0.csv").read_text()


def test_what_cannot_be_cached_is_said(root, tmp_path):
    class Broken(Task):
        def frozen_features(self, media):
            return super().frozen_features(media) / 0

    class Large(Task):
        def frozen_features(self, media):
            return super().frozen_features(media) * 0 + 1e6

    many = _data(root, augment=True, cache_draws=10**12)
    assert f"data.cache: the features take 480.0 TB, {tmp_path}/cache/train has room for " in _refusal(many)
    assert not (tmp_path / "cache/train").exists()
    shutil.rmtree(tmp_path / "cache")
    assert "features are not finite in float32" in _refusal(_data(root), Broken())
    assert "features are not finite in float16" in _refusal(_data(root, "half"), Large(dtype="float16"))
    assert "features are kept in float16 or float32, got int8" in _refusal(_data(root), Task(dtype="int8"))
    (tmp_path / "file").write_text("")
    assert f"data.cache: {tmp_path}/file/val cannot be written (Not a directory)" in _refusal(_data(root, "file"))
    with pytest.raises(InputError, match="BoringTask has no frozen network"):
        _trainer(root).fit(BoringTask(), datamodule=_data(root))
    data = _data(root)
    data.setup()
    with pytest.raises(InputError, match="features are made by a task's network, so it needs a Trainer"):
        data.train_dataloader()


class BoringTask(pl.LightningModule):
    def training_step(self, batch, batch_idx): ...

    def configure_optimizers(self): ...


def test_two_processes_make_the_features_together(root, tmp_path):
    """With a video that only the second time can be read."""
    _fit(_data(root))
    bad, kept = root / "train/up/1.avi", tmp_path / "kept.avi"
    shutil.copy2(bad, kept)
    bad.write_text("no video")
    together = {"max_epochs": 1, "devices": 2, "strategy": "ddp_fork"}
    for expected in (2, 1):
        _fit(_data(root, "shared", batch_size=2, max_unreadable=0.2), **together)
        assert np.fromfile(tmp_path / "shared/train/done.bin", np.uint8).max() == expected
        shutil.copy2(kept, bad)
    for split, name in (("train", "features.bin"), ("val", "features.bin"), ("train", "done.bin"), ("val", "done.bin")):
        one, other = ((tmp_path / cache / split / name).read_bytes() for cache in ("cache", "shared"))
        assert one == other
