"""Street scenes in the layout of Cityscapes: pictures with their labels, and the stream of them in bad weather."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import SegmentationStream
from datamodules.corruptions import corrupt, image_seed
from datamodules.decoding import read_image
from tests.command import vision
from vision.errors import InputError

HEIGHT, WIDTH = 32, 64
NAMES = ("aachen/aachen_000000_000019", "aachen/aachen_000001_000019", "ulm/ulm_000000_000019")
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "image_size": (HEIGHT, WIDTH)}
SHADE = 10  # of red, for each class


def _picture(root: Path, split: str, name: str) -> Path:
    return root / "leftImg8bit" / split / f"{name}_leftImg8bit.png"


def _labels(root: Path, split: str, name: str) -> Path:
    return root / "gtFine" / split / f"{name}_gtFine_labelTrainIds.png"


def _save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def root(tmp_path):
    """Three scenes a split of blocks of 8x8 pixels, the red of which tells their class; sky at the top has no label."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in NAMES:
            blocks = random.integers(19, size=(HEIGHT // 8, WIDTH // 8), dtype=np.uint8)
            labels = blocks.repeat(8, axis=0).repeat(8, axis=1)
            picture = np.stack([labels * SHADE, np.full_like(labels, 90), np.full_like(labels, 30)], axis=2)
            _save(_picture(tmp_path, split, name), picture)
            labels[:8] = 255
            _save(_labels(tmp_path, split, name), labels)
    return tmp_path


def _ready(root, **options) -> SegmentationStream:
    data = SegmentationStream(str(root), **{"num_workers": 0, **PLAIN, **options})
    data.setup()
    return data


def _stored_labels(path: str) -> np.ndarray:
    return np.asarray(
        Image.open(path.replace("leftImg8bit", "gtFine", 1).replace("leftImg8bit", "gtFine_labelTrainIds"))
    )


def _pixels(image: torch.Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def test_validation_shows_whole_pictures_with_their_labels(root):
    data = _ready(root)
    batches = list(data.val_dataloader())
    assert [len(batch["image"]) for batch in batches] == [2, 1]
    assert batches[0].keys() == {"image", "target", "path", "unreadable"}
    assert [path for batch in batches for path in batch["path"]] == [str(_picture(root, "val", name)) for name in NAMES]
    for batch in batches:
        assert batch["target"].dtype == torch.int64
        for path, image, target in zip(batch["path"], batch["image"], batch["target"], strict=True):
            assert np.array_equal(_pixels(image), read_image(path))
            assert np.array_equal(target.numpy(), _stored_labels(path))
    assert data.class_names[0] == "road"
    assert data.class_names[-1] == "bicycle"
    assert len(data.class_names) == 19


def test_labels_are_resized_with_the_picture_to_the_nearest(root):
    """Halved in height alone: the whole picture still, and no label between two."""
    batch = next(iter(_ready(root, image_size=(HEIGHT // 2, WIDTH)).val_dataloader()))
    assert batch["image"].shape == (2, 3, HEIGHT // 2, WIDTH)
    for path, target in zip(batch["path"], batch["target"], strict=True):
        assert np.array_equal(target.numpy(), _stored_labels(path)[::2])


def test_training_crops_and_flips_labels_with_the_picture(root):
    data = _ready(root, interpolation="nearest", batch_size=3)
    loader = data.train_dataloader()
    shown = []
    for epoch in range(5):
        loader.sampler.set_epoch(epoch)
        shown += list(loader)
    for batch in shown:
        labelled = batch["target"] != 255
        red = (batch["image"][:, 0] * 255 / SHADE).round().long()
        assert (red == batch["target"])[labelled].float().mean() > 0.98
    whole = torch.cat([batch["image"] for batch in shown])
    assert len({image.numpy().tobytes() for image in whole}) == 15
    assert whole.shape[1:] == (3, HEIGHT, WIDTH)


def test_a_training_crop_has_the_shape_of_the_input(root):
    """All of the area then is the whole picture."""
    batch = next(iter(_ready(root, scale=(1.0, 1.0), horizontal_flip=0.0).train_dataloader()))
    for path, image, target in zip(batch["path"], batch["image"], batch["target"], strict=True):
        assert np.array_equal(_pixels(image), read_image(path))
        assert np.array_equal(target.numpy(), _stored_labels(path))


def test_the_stream_is_the_papers_by_default(root):
    data = _ready(root)
    assert data.stretches == [("brightness", 5), ("fog", 5), ("frost", 5), ("snow", 5)]
    batches = list(data.test_dataloader())
    assert len(batches) == 10 * 4 * 2
    assert [batch["position"] for batch in batches] == [number // 2 for number in range(80)]
    assert [batch["round"] for batch in batches] == [number // 8 for number in range(80)]
    for one, again in zip(batches[:8], batches[72:], strict=True):
        assert one["path"] == again["path"]
        assert torch.equal(one["image"], again["image"])


def test_weather_changes_pictures_and_not_labels(root):
    data = _ready(root, corruptions=["fog"], rounds=1, probes=3, severity=2)
    for batch in data.test_dataloader():
        assert batch["probe"] == (batch["domain"][0] == "clean")
        for path, image, target in zip(batch["path"], batch["image"], batch["target"], strict=True):
            clean = read_image(path)
            seed = image_seed(0, "fog", data.splits["val"].paths.index(path))
            assert np.array_equal(_pixels(image), clean if batch["probe"] else corrupt(clean, "fog", 2, seed))
            assert np.array_equal(target.numpy(), _stored_labels(path))


def test_pictures_that_are_corrupted_already(root):
    folder = root / "weather"
    for number, name in enumerate(NAMES):
        _save(folder / "rain" / "4" / f"{name}_leftImg8bit.png", np.full((HEIGHT, WIDTH, 3), 50 * number, np.uint8))
    options = {"corrupted": str(folder), "corruptions": ["rain"], "rounds": 1}
    data = _ready(root, severity=4, shuffle=False, probes=1, **options)
    probe, *batches = list(data.test_dataloader())[:-1]
    assert probe["path"][0] in data.splits["val"].paths
    assert [path for batch in batches for path in batch["path"]] == [
        str(folder / "rain" / "4" / f"{name}_leftImg8bit.png") for name in NAMES
    ]
    images = torch.cat([batch["image"] for batch in batches])
    assert [_pixels(image).max() for image in images] == [0, 50, 100]
    targets = torch.cat([batch["target"] for batch in batches])
    for name, target in zip(NAMES, targets, strict=True):
        assert np.array_equal(target.numpy(), np.asarray(Image.open(_labels(root, "val", name))))
    with pytest.raises(InputError, match=r"weather/rain/5: expected pictures .* found none"):
        _ready(root, severity=5, **options)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, "no such file"),
        (_truncate, "not a picture, or damaged"),
        (lambda file: _save(file, np.zeros((8, 9), np.uint8)), "9x8 pixels, the picture has 64x32"),
        (lambda file: _save(file, np.zeros((32, 64, 3), np.uint8)), "expected one channel, found 3"),
        (lambda file: _save(file, np.full((32, 64), 19, np.uint8)), "expected 0 to 18 and 255, found 19"),
    ],
)
def test_labels_that_cannot_be_used_leave_their_picture_out(root, damage, reason):
    labels = _labels(root, "val", NAMES[0])
    damage(labels)
    data = _ready(root, corruptions=["fog"], rounds=1, batch_size=3, shuffle=False)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert batch["unreadable"] == [(str(_picture(root, "val", NAMES[0])), f"its labels {labels.name}: {reason}")]
        assert len(batch["image"]) == len(batch["target"]) == 2
    assert batch["domain"] == ["fog"] * 2


def test_pictures_and_labels_that_are_not_there(root):
    with pytest.raises(InputError, match=r"gtFine/leftImg8bit/val: expected pictures .*, found none"):
        _ready(root / "gtFine")
    for name in NAMES:
        _labels(root, "val", name).unlink()
    with pytest.raises(InputError, match=r"gtFine/val: expected labels .*, found none"):
        _ready(root)


def test_what_does_not_go_with_pixels(root):
    with pytest.raises(InputError, match="order must be one of continual, gradual, mixed, got correlated"):
        _ready(root, order="correlated")


def test_the_command_lists_the_flags():
    finished = vision("fit", "--data.help", "SegmentationStream")
    assert finished.returncode == 0
    for flag in ("corrupted", "corruptions", "order", "rounds", "probes", "batch_size", "scale", "image_size"):
        assert f"--data.{flag} " in finished.stdout
    for flag in ("crop_pct", "crop_mode", "concentration", "mixup"):
        assert f"--data.{flag} " not in finished.stdout
