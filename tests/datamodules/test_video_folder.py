"""Clips of videos: which frames, one draw a clip, mirrored labels, views, and videos that cannot be read."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from datamodules import VideoFolder
from datamodules.sampling import Draw
from tests.videos import frame_number, numbered_frame, numbered_frames, numbers, write_video
from vision.errors import InputError

CLASSES = ("move left", "move right", "turn clockwise", "wave")
WHOLE = {"crop_mode": "squash", "crop_pct": 1.0, "image_size": (48, 72)}  # nothing of a frame is cut off
STILL = {"scale_jitter": None, "horizontal_flip": 0.0}


def _write(root: Path, videos: int, frames: int = 20) -> Path:
    """Class folders of videos, whose frames carry their numbers."""
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(videos):
            write_video(root / name / f"{i}.mp4", numbered_frames(frames))
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    _write(root / "train", 3)
    _write(root / "val", 1)
    return root


def _ready(root, **options) -> VideoFolder:
    options = {"image_size": 32, "batch_size": 4, "num_workers": 0, "frames": 4, "stride": 2, **options}
    data = VideoFolder(str(root), **options)
    data.prepare_data()
    data.setup()
    return data


def _epoch(data: VideoFolder, epoch: int = 0) -> list[dict]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def _clip(video: torch.Tensor) -> list[np.ndarray]:
    """(T, 3, H, W) as pictures."""
    return list(video.permute(0, 2, 3, 1).numpy())


def test_class_folders(folders):
    data = _ready(folders, crops=3, windows=2, batch_size=24)
    assert data.class_names == list(data.schema.tasks["action"].classes) == list(CLASSES)
    assert data.class_counts == {"action": [3, 3, 3, 3]}
    assert {split: len(listing) for split, listing in data.splits.items()} == {"train": 12, "val": 4, "test": 4}
    train, val = _epoch(data)[0], next(iter(data.val_dataloader()))
    assert train["video"].shape == (12, 1, 4, 3, 32, 32)
    assert val["video"].shape == (4, 6, 4, 3, 32, 32)
    assert train["video"].dtype == val["video"].dtype == torch.uint8
    assert [Path(path).parent.name for path in val["path"]] == [CLASSES[i] for i in val["labels"][:, 0]]
    assert val["unreadable"] == []


@pytest.mark.parametrize(("views", "videos"), [((2, 1), [2, 2]), ((3, 1), [1] * 4), ((2, 3), [1] * 4), ((1, 1), [4])])
def test_batches_of_an_evaluation_have_as_many_views_as_those_of_the_training(folders, views, videos):
    data = _ready(folders, test_windows=views[0], test_crops=views[1])
    batches = list(data.test_dataloader())
    assert [batch["video"].shape[:2] for batch in batches] == [(number, views[0] * views[1]) for number in videos]
    assert [path for batch in batches for path in batch["path"]] == data.splits["test"].paths
    assert [len(batch["video"]) for batch in data.val_dataloader()] == [4]
    assert [len(batch["video"]) for batch in _epoch(data)] == [4, 4, 4]


def test_a_plain_folder_is_split_by_seed_and_class(folders):
    data = _ready(folders / "train", val_fraction=0.3)
    assert {split: len(listing) for split, listing in data.splits.items()} == {"train": 8, "val": 4, "test": 4}
    assert set(data.splits["train"].paths).isdisjoint(data.splits["val"].paths)


def test_dense_clips_start_anywhere_in_training_and_are_spread_in_evaluation(folders):
    data = _ready(folders, windows=3, **WHOLE, **STILL)
    starts = set()
    for epoch in range(5):
        for batch in _epoch(data, epoch):
            for video in batch["video"]:
                first, *others = numbers(_clip(video[0]))
                assert others == [first + 2, first + 4, first + 6]
                starts.add(first)
    assert starts <= set(range(14))
    assert len(starts) > 8
    views = next(iter(data.val_dataloader()))["video"][0]
    assert [numbers(_clip(view)) for view in views] == [[0, 2, 4, 6], [6, 8, 10, 12], [12, 14, 16, 18]]


def test_uniform_clips_span_the_video(folders):
    data = _ready(folders, sampling="uniform", **WHOLE, **STILL)
    assert numbers(_clip(next(iter(data.val_dataloader()))["video"][0, 0])) == [4, 8, 12, 16]
    drawn = [numbers(_clip(video[0])) for batch in _epoch(data) for video in batch["video"]]
    assert all(number // 5 == part for clip in drawn for part, number in enumerate(clip))
    assert len({tuple(clip) for clip in drawn}) > 8
    with pytest.raises(InputError, match="windows must be 1 with sampling uniform"):
        _ready(folders, sampling="uniform", test_windows=4)


@pytest.mark.parametrize("sampling", ["dense", "uniform"])
def test_short_videos_are_warned_of_once(tmp_path, sampling):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for i in range(2):
            write_video(tmp_path / name / f"{i}.mp4", numbered_frames(3))
    data = _ready(tmp_path, sampling=sampling, val_fraction=0.5, batch_size=1, **WHOLE, **STILL)
    with pytest.warns(UserWarning, match=r"mp4 has 3 frames, where a clip needs \d") as caught:
        batches = list(data.val_dataloader())
    assert len([one for one in caught if "has 3 frames" in str(one.message)]) == 1
    expected = {"dense": [0, 2, 1, 0], "uniform": [0, 0, 1, 2]}[sampling]
    assert [numbers(_clip(batch["video"][0, 0])) for batch in batches] == [expected] * 4


def test_three_crops_go_along_the_longer_side(tmp_path):
    frame = np.zeros((32, 64, 3), np.uint8)
    frame[:, :16], frame[:, 48:] = (250, 0, 0), (0, 0, 250)
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for i in range(2):
            write_video(tmp_path / name / f"{i}.avi", [frame] * 6, fourcc="FFV1")
    data = _ready(tmp_path, val_fraction=0.5, crops=3, windows=2, frames=2, crop_pct=1.0, image_size=32)
    views = next(iter(data.val_dataloader()))["video"][0].float().mean(dim=(1, 3, 4))
    assert views[:3].tolist() == [[125, 0, 0], [0, 0, 0], [0, 0, 125]]
    assert torch.equal(views[:3], views[3:])


@pytest.mark.parametrize(
    "options",
    [
        {"colour": True, "horizontal_flip": 0.5},
        {"rand_augment": (2, 20)},
        {"scale": (0.3, 1.0), "augmentations": [A.GaussNoise(p=1.0), A.CoarseDropout(p=1.0), A.RandomGamma(p=1.0)]},
    ],
)
def test_all_frames_of_a_clip_are_drawn_alike(tmp_path, options):
    """Of a video whose frames are all the same, and of others than each other."""
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (40, 60, 3), np.uint8)
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for i in range(3):
            write_video(tmp_path / name / f"{i}.avi", [frame] * 6, fourcc="FFV1")
    clips = [clip[0] for batch in _epoch(_ready(tmp_path, **options)) for clip in batch["video"]]
    for clip in clips:
        assert (clip == clip[:1]).all()
    assert len({clip.numpy().tobytes() for clip in clips}) == len(clips)
    assert all(clip.shape == (4, 3, 32, 32) for clip in clips)


def test_height_and_width_are_jittered_apart(tmp_path):
    """Read off a square of 16 of 64 pixels, which is shown on 8 to 16 of 32."""
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[24:40, 24:40] = 255
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for i in range(3):
            write_video(tmp_path / name / f"{i}.avi", [frame] * 4, fourcc="FFV1")
    data = _ready(tmp_path, frames=1, crop_pct=1.0, scale_jitter=(1.0, 2.0))
    sides = []
    for epoch in range(4):
        for batch in _epoch(data, epoch):
            for clip in batch["video"]:
                rows, columns = ((clip[0, 0, 0] > 127).any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
                if len(rows) and min(rows[0], columns[0]) > 0 and max(rows[-1], columns[-1]) < 31:
                    sides.append((len(rows), len(columns)))
    heights, widths = zip(*sides, strict=True)
    assert min(heights + widths) >= 8
    assert max(heights + widths) <= 17
    assert len({*heights}) > 3
    assert any(abs(height - width) > 3 for height, width in sides)


def test_mirrored_videos_have_the_labels_of_the_mirror(folders):
    data = _ready(folders, horizontal_flip=0.5, scale_jitter=None, **WHOLE)
    seen: dict[tuple[str, bool], set[str]] = {}
    for epoch in range(6):
        for batch in _epoch(data, epoch):
            for path, video, label in zip(batch["path"], batch["video"], batch["labels"][:, 0], strict=True):
                clip = _clip(video[0])
                first = frame_number(clip[0])
                steps = {frame_number(frame) - first for frame in clip}
                mirrored = steps != {0, 2, 4, 6}
                if mirrored:
                    assert {frame_number(frame[:, ::-1]) - frame_number(clip[0][:, ::-1]) for frame in clip} == {
                        0,
                        2,
                        4,
                        6,
                    }
                seen.setdefault((Path(path).parent.name, mirrored), set()).add(CLASSES[label])
    assert seen == {
        ("move left", False): {"move left"},
        ("move left", True): {"move right"},
        ("move right", False): {"move right"},
        ("move right", True): {"move left"},
        ("turn clockwise", False): {"turn clockwise"},
        ("wave", False): {"wave"},
        ("wave", True): {"wave"},
    }


def test_without_augmentation_training_is_as_evaluation(folders):
    data = _ready(folders, augment=False)
    epochs = [[(p, v) for b in _epoch(data, n) for p, v in zip(b["path"], b["video"], strict=True)] for n in (0, 1)]
    assert [path for path, _ in epochs[0]] != [path for path, _ in epochs[1]]
    first, second = map(dict, epochs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[path], second[path]) for path in first)


def test_batches_do_not_depend_on_workers(folders):
    options = {"rand_augment": (2, 9), "augmentations": [A.GaussNoise(p=0.5)]}
    for one, two in zip(*(_epoch(_ready(folders, num_workers=n, **options)) for n in (0, 2)), strict=True):
        assert one["path"] == two["path"]
        assert torch.equal(one["video"], two["video"])
        assert torch.equal(one["labels"], two["labels"])


def test_a_resumed_epoch_goes_on_with_the_same_clips(folders):
    whole = _epoch(_ready(folders), 1)
    data = _ready(folders)
    data.load_state_dict({"batches": 2})
    rest = _epoch(data, 1)
    assert len(rest) == 1
    assert torch.equal(rest[0]["video"], whole[2]["video"])


class _Counter(pl.LightningModule):
    """Counts what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[str] = []
        self.seen: list[str] = []

    def training_step(self, batch, batch_idx):
        self.trained += batch["path"]
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        assert len(batch["video"]) == len(batch["path"]) == len(batch["labels"])
        self.seen += batch["path"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(data: VideoFolder, folder: Path) -> tuple[_Counter, dict[str, str]]:
    """What arrived, and what ``unreadable.csv`` says."""
    module = _Counter()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=pl.loggers.CSVLogger(str(folder)),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    with Path(trainer.log_dir, "unreadable.csv").open(newline="") as stream:
        return module, {row["path"]: row["reason"] for row in csv.DictReader(stream)}


def test_broken_and_missing_videos_are_skipped_and_listed(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", numbered_frames(8))
    for split, number in (("train", 10), ("val", 4)):
        rows = [f"{split}{i}.mp4 {i % 2}" for i in range(number)] + [f"gone-{split}.mp4 1"]
        (tmp_path / f"{split}.txt").write_text("".join(f"{row}\n" for row in rows))
        (tmp_path / "clips").mkdir(exist_ok=True)
        for i in range(number):
            (tmp_path / "clips" / f"{split}{i}.mp4").write_bytes(clip.read_bytes())
    bad = [tmp_path / "clips" / "train3.mp4", tmp_path / "clips" / "val0.mp4"]
    bad[0].write_bytes(b"")
    bad[1].write_text("no video")
    data = VideoFolder(
        str(tmp_path), "list", "train.txt", "val.txt", videos="clips", frames=2, image_size=16, batch_size=2,
        num_workers=1, max_unreadable=0.2,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module, listed = _fit(data, tmp_path / "runs")
    said = [str(warning.message) for warning in caught]
    assert any(text.startswith("2 videos are left out: ") and "train.txt:11" in text for text in said)
    assert any(text.startswith("2 missing and 2 unreadable videos were skipped") for text in said)
    assert len(module.trained) == 10
    assert str(bad[0]) not in module.trained
    assert [Path(path).name for path in module.seen] == ["val1.mp4", "val2.mp4", "val3.mp4"]
    assert listed.keys() == {*map(str, bad), *(str(tmp_path / f"clips/gone-{split}.mp4") for split in ("train", "val"))}
    assert listed[str(bad[0])] == "empty file (0 bytes), train.txt:4"
    assert listed[str(tmp_path / "clips/gone-val.mp4")].endswith("val.txt:5")


def test_too_many_broken_videos_stop_the_run(tmp_path):
    root = tmp_path / "data"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(5):
            (root / name / f"{i}.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match=r"of 20 videos cannot be read, more than data.max_unreadable \(1.0%\)"):
        _fit(VideoFolder(str(root), frames=2, num_workers=0), tmp_path / "runs")


def _spans(root: Path, rows: dict[str, int], broken: set[str]) -> VideoFolder:
    """A list with many parts of each video, those of a video one behind the other."""
    for name in rows:
        if name in broken:
            (root / name).write_text("no video")
        else:
            write_video(root / name, numbered_frames(20))
    lines = [f"{name} {i % 2} {i % 10 / 10} 2\n" for name, number in rows.items() for i in range(number)]
    (root / "train.txt").write_text("".join(lines))
    return _ready(root, layout="list", train="train.txt", val="train.txt")


def test_a_video_that_is_broken_is_one_however_many_of_its_parts_are_listed(tmp_path):
    data = _spans(tmp_path, {"a.mp4": 150, "b.mp4": 150}, {"a.mp4", "b.mp4"})
    with pytest.raises(InputError, match=r"2 of 2 videos cannot be read, more than data.max_unreadable \(1.0%\)"):
        _fit(data, tmp_path / "runs")


def test_processes_that_see_parts_of_all_videos_may_each_find_all_broken_ones(tmp_path, monkeypatch):
    data = _spans(tmp_path, {"a.mp4": 12, "b.mp4": 12, "c.mp4": 12, "d.mp4": 12}, {"b.mp4"})
    data.max_unreadable = 0.25
    monkeypatch.setattr(data, "processes", lambda: (4, 1))
    data.count_unreadable([("b.mp4", "damaged")])
    with pytest.raises(InputError, match="2 of 4 videos cannot be read"):
        data.count_unreadable([("c.mp4", "damaged")])


def test_a_broken_video_is_replaced_by_another_one(tmp_path, monkeypatch):
    """And not by other parts of itself, which could not be read either."""
    data = _spans(tmp_path, {"a.mp4": 15, "b.mp4": 15, "c.mp4": 3}, {"a.mp4", "b.mp4"})
    clips = data.dataset("train")
    opened = []
    load = clips.load
    monkeypatch.setattr(clips, "load", lambda index, seed: opened.append(index) or load(index, seed))
    first, second = clips[Draw(2, 7)], clips[Draw(2, 7)]
    assert [Path(path).name for path, _ in first.unreadable] == ["a.mp4", "b.mp4"]
    assert opened == [2, 15, 30] * 2
    assert Path(first.path).name == "c.mp4"
    assert torch.equal(first.media, second.media)
    (tmp_path / "c.mp4").write_text("no video")
    assert clips[Draw(31, 7)].media is None
    assert opened[6:] == [31, 0, 15]


def test_processes_without_a_video_have_an_empty_batch(folders, monkeypatch):
    data = _ready(folders, windows=2)
    monkeypatch.setattr(data, "processes", lambda: (5, 4))
    (batch,) = data.val_dataloader()
    assert batch["video"].shape == (0, 2, 4, 3, 32, 32)
    assert batch["labels"].shape == (0, 1)
    assert batch["path"] == batch["unreadable"] == []


def test_the_fastest_decoder_is_found(folders):
    assert _epoch(_ready(folders, decoder="auto"))[0]["video"].shape == (4, 1, 4, 3, 32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "kinetic"}, r"layout: no layout 'kinetic' \(did you mean 'kinetics'\?\)"),
        ({"layout": "kinetics"}, "train: the layout kinetics needs the list of the training videos"),
        ({"decoder": "openvc"}, r"decoder: no decoder 'openvc' \(did you mean 'opencv'\?\)"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"sampling": "random"}, "sampling must be dense or uniform, got random"),
        ({"crops": 2}, "windows must be at least 1 and crops 1 or 3, got 1 and 2"),
        ({"colour": True, "rand_augment": (2, 9)}, "colour and rand_augment exclude each other"),
        ({"rand_augment": (2, 40)}, r"rand_augment must be \[layers, magnitude\].*got \[2, 40\]"),
        ({"scale_jitter": (1.3, 0.9)}, "scale_jitter must be two factors, the smaller first"),
        ({"scale": (0.5, 2.0)}, r"scale must be two shares in \(0, 1\]"),
        ({"horizontal_flip": 2.0}, r"horizontal_flip must be in \[0, 1\], got 2.0"),
        ({"augment": False, "cache_draws": 2}, "cache_draws must be at least 1, and 1 with augment off, got 2"),
    ],
)
def test_bad_arguments_are_named(folders, options, message):
    with pytest.raises(InputError, match=message):
        VideoFolder(str(folders), **options)


def test_a_frame_says_its_number_after_its_way_through_the_pipeline(folders):
    """What the other tests rely on."""
    data = _ready(folders, **WHOLE)
    frame = _clip(next(iter(data.val_dataloader()))["video"][0, 0])[0]
    assert np.abs(frame.astype(int) - numbered_frame(6)).mean() < 8
