"""Class folders and lists, splits, mixing, preprocessing, and files that cannot be read."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import albumentations
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image

from datamodules import ImageFolder
from datamodules.builtin import photographs as source
from datamodules.builtin import resolve_root
from datamodules.transforms import apply_seeded
from tests.images import COLOURS, write_images
from vision.errors import InputError


def _ready(root, **options) -> ImageFolder:
    data = ImageFolder(str(root), **{"image_size": 16, "batch_size": 6, "num_workers": 0, **options})
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for split, number in (("train", 10), ("val", 2), ("test", 3)):
        write_images(root / split, number)
    return root


def test_imagenet_layout(folders):
    data = _ready(folders)
    assert data.class_names == sorted(COLOURS)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "val": 6, "test": 9}
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (6, 3, 16, 16)
    assert [data.class_names[t] for t in batch["target"]] == [path.split("/")[-2] for path in batch["path"]]


def test_values_are_normalised_by_mean_and_std(folders):
    data = _ready(folders, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), image_size=32, crop_pct=1.0)
    batch = next(iter(data.val_dataloader()))
    from datamodules.decoding import read_image

    expected = (read_image(batch["path"][0]) / 255 - 0.5) / 0.25
    assert np.allclose(batch["image"][0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    """Wide pictures whose outer quarters are white: cut off by a centre crop, kept by squashing."""
    root = tmp_path_factory.mktemp("striped")
    pixels = np.zeros((20, 80, 3), np.uint8)
    pixels[:, :20] = pixels[:, 60:] = 255
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(3):
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "image_size": 20}


@pytest.mark.parametrize(("crop_mode", "white"), [("center", 0.0), ("squash", 0.5)])
def test_squashing_shows_the_whole_width(striped, crop_mode, white):
    image = next(iter(_ready(striped, crop_mode=crop_mode, crop_pct=1.0, **PLAIN).val_dataloader()))["image"]
    assert image.mean().item() == pytest.approx(white, abs=0.01)


def test_without_a_scale_training_images_are_resized_as_in_evaluation(striped):
    """Squashed to 40x40, of which any 20x20 are taken: 0 to 10 columns of white, on one side."""
    options = {**PLAIN, "crop_mode": "squash", "crop_pct": 0.5, "scale": None, "horizontal_flip": 0.0, "batch_size": 2}
    loader = _ready(striped, **options).train_dataloader()
    images = []
    for epoch in range(10):
        loader.sampler.set_epoch(epoch)
        images += [batch["image"] for batch in loader]
    white = (torch.cat(images)[:, 0].mean(dim=1) > 0.5).sum(dim=1)
    assert white.max() <= 10
    assert len(white.unique()) > 3


def test_an_unknown_crop_mode(striped):
    with pytest.raises(InputError, match="crop_mode must be one of center, squash, got squeeze"):
        _ready(striped, crop_mode="squeeze")


def test_an_epoch_that_the_trainer_shortens_ends_at_its_beginning(folders, tmp_path):
    """What a checkpoint says at the end of such an epoch: the next one starts with its first batch."""
    data = ImageFolder(str(folders), image_size=16, batch_size=6, num_workers=0)
    _fit(data, tmp_path, limit_train_batches=3)
    assert data.state_dict() == {"batches": 0}


def test_a_plain_folder_is_split_by_seed_and_class(tmp_path):
    root = write_images(tmp_path / "all", 10)
    first, again, other = (_ready(root, val_fraction=0.2, seed=seed) for seed in (0, 0, 1))
    train, val = first.splits["train"], first.splits["val"]
    assert set(train.paths).isdisjoint(val.paths)
    assert len(train) + len(val) == 30
    assert np.bincount(val.targets).tolist() == [2, 2, 2]
    assert again.splits["val"].paths == val.paths
    assert other.splits["val"].paths != val.paths


def test_lists_with_names_and_numbers(tmp_path):
    write_images(tmp_path / "files", 2)
    (tmp_path / "train.csv").write_text(
        "label,path,note\n10,files/red/000.png,x\n9,files/green/000.png,\n9,files/green/001.png,\n10,files/red/001.png,\n"
    )
    (tmp_path / "val.tsv").write_text("path\tlabel\nfiles/red/000.png\t10\n")
    data = _ready(tmp_path, train="train.csv", val="val.tsv")
    assert data.class_names == ["9", "10"]
    assert data.splits["train"].targets == [1, 0, 0, 1]
    assert data.splits["val"].targets == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,1\n", r"list.csv: no column 'path'.*file, label"),
        ("path,label\na.png,1\nb.png,\n", r"list.csv:3: expected a path and a label"),
        ("path,label\n", r"list.csv: the list has no rows"),
        ("", r"list.csv: no column 'path'"),
    ],
)
def test_bad_lists_name_the_row(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        _ready(tmp_path, train="list.csv")


def test_a_label_that_training_does_not_have(tmp_path):
    (tmp_path / "train.csv").write_text("path,label\na.png,cat\nb.png,dog\n")
    (tmp_path / "val.csv").write_text("path,label\na.png,cat\nb.png,dgo\n")
    with pytest.raises(InputError, match=r"val.csv:3: label 'dgo' .*did you mean 'dog'"):
        _ready(tmp_path, train="train.csv", val="val.csv")


def test_bad_folders_are_named(tmp_path, folders):
    with pytest.raises(InputError, match=r"no such folder.*nowhere"):
        _ready(tmp_path / "nowhere")
    with pytest.raises(InputError, match="one folder a class"):
        _ready(tmp_path)
    root = write_images(tmp_path / "data", 3)
    (root / "yellow").mkdir()
    with pytest.raises(InputError, match="yellow: the class folder has no images"):
        _ready(root)
    (root / "yellow").rmdir()
    write_images(root / "val", 2)
    (root / "val" / "red").rename(root / "val" / "rde")
    for name in COLOURS:
        (root / "train").mkdir(exist_ok=True)
        (root / name).rename(root / "train" / name)
    with pytest.raises(InputError, match="class folders that the training images do not have: rde"):
        _ready(root)


def test_builtin_typo():
    with pytest.raises(InputError, match="did you mean 'photographs'"):
        resolve_root("builtin:photograph")


def test_mixed_targets_are_probabilities_and_follow_from_the_seed(folders):
    batches = [next(iter(_ready(folders, mixup=0.8, cutmix=1.0, num_workers=n).train_dataloader())) for n in (0, 2)]
    assert batches[0]["target"].shape == (6, 3)
    assert torch.allclose(batches[0]["target"].sum(dim=1), torch.ones(6))
    assert (batches[0]["target"] < 1).any()
    for key in ("image", "target"):
        assert torch.equal(batches[0][key], batches[1][key])


def test_chances_of_different_steps_are_independent():
    """Flipped along either side or both: a quarter each."""
    both = albumentations.Compose(
        [albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5), ToTensorV2()]
    )
    picture = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    found = Counter(tuple(apply_seeded(both, picture, seed).flatten().tolist()) for seed in range(200))
    assert len(found) == 4
    assert min(found.values()) > 30


def test_augmentation_does_not_depend_on_workers(folders):
    options = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5}
    epochs = [list(_ready(folders, num_workers=n, **options).train_dataloader()) for n in (0, 2)]
    for one, two in zip(*epochs, strict=True):
        assert one["path"] == two["path"]
        assert torch.equal(one["image"], two["image"])


def test_odd_batches_cannot_be_mixed(folders):
    with pytest.raises(InputError, match="batch_size must be even"):
        ImageFolder(str(folders), batch_size=5, mixup=0.2)


class _Counter(pl.LightningModule):
    """Counts what arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[str] = []
        self.trained = 0

    def training_step(self, batch, batch_idx):
        self.trained += len(batch["image"])
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen += batch["path"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(data: ImageFolder, folder, **options) -> tuple[_Counter, pl.Trainer]:
    module = _Counter()
    logger = pl.loggers.CSVLogger(str(folder))
    trainer = pl.Trainer(
        max_epochs=1,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, datamodule=data)
    return module, trainer


def test_unreadable_files_are_replaced_left_out_and_listed(tmp_path):
    root = tmp_path / "data"
    write_images(root / "train", 10)
    write_images(root / "val", 4)
    bad = [root / "train" / "red" / "003.png", root / "val" / "blue" / "000.png"]
    bad[0].write_bytes(b"")
    bad[1].write_text("no image")
    data = ImageFolder(str(root), image_size=16, batch_size=6, num_workers=2, max_unreadable=0.1)
    with pytest.warns(UserWarning, match="2 unreadable images were skipped"):
        module, trainer = _fit(data, tmp_path)
    assert module.trained == 30
    assert len(module.seen) == 11
    assert str(bad[1]) not in module.seen
    with Path(trainer.log_dir, "unreadable.csv").open(newline="") as stream:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
    assert rows.keys() == {str(path) for path in bad}
    assert "empty" in rows[str(bad[0])]


def test_too_many_unreadable_files_stop_the_run(tmp_path):
    root = write_images(tmp_path / "data", 10)
    for i in range(5):
        (root / "red" / f"{i:03d}.png").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"of 30 images cannot be read, more than data.max_unreadable \(10.0%\).*empty"
    ):
        _fit(ImageFolder(str(root), image_size=16, batch_size=6, num_workers=0, max_unreadable=0.1), tmp_path)


def test_test_areas_of_photographs_are_apart_from_training_areas():
    assert len(source.photographs()) == 10
    for picture in source.photographs().values():
        height, width = picture.shape[:2]
        places, cells = source.train_places(height, width), source.test_cells(height, width)
        assert len(places) >= 240
        for top, left in cells:
            apart_y = (places[:, 0] + source.PART + source.GAP <= top) | (
                places[:, 0] >= top + source.CELL + source.GAP
            )
            apart_x = (places[:, 1] + source.PART + source.GAP <= left) | (
                places[:, 1] >= left + source.CELL + source.GAP
            )
            assert (apart_y | apart_x).all()


def test_builtin_data_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FRUGAL_VISION_CACHE", str(tmp_path))
    folder = resolve_root("builtin:digits")
    written = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
    assert len(written) == 1797
    assert resolve_root("builtin:digits") == folder
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")} == written
