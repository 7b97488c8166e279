"""Streams of corrupted images: what each batch shows, on the fly and from published layouts, and what is refused."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from datamodules import CorruptionStream, ImageFolder
from datamodules.corruption_files import write_cifar_c
from datamodules.corruptions import corrupt, image_seed
from datamodules.decoding import read_image
from tests.command import vision
from tests.images import write_images
from vision.errors import InputError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0, "image_size": 32}
PAIR = ["fog", "gaussian_noise"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """12 training and 9 test images of three classes, 32x32 pixels."""
    root = tmp_path_factory.mktemp("source")
    write_images(root / "train", 4)
    write_images(root / "test", 3, seed=1)
    return root


def _ready(root, **options) -> CorruptionStream:
    options = {"corruptions": PAIR, "suite": "cifar", "batch_size": 4, "num_workers": 0, **PLAIN, **options}
    data = CorruptionStream(str(root), **options)
    data.prepare_data()
    data.setup()
    return data


def _error(root, **options) -> str:
    with pytest.raises(InputError) as caught:
        _ready(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _pixels(image: torch.Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def _shown(data: CorruptionStream) -> list[tuple[str, str, int, bytes]]:
    """File, corruption, round and pixels of each image of a stream, in order."""
    return [
        (path, domain, batch["round"], image.numpy().tobytes())
        for batch in data.test_dataloader()
        if not batch["probe"]
        for path, domain, image in zip(batch["path"], batch["domain"], batch["image"], strict=True)
    ]


def test_a_stretch_ends_with_the_batch_that_is_left(root):
    data = _ready(root, rounds=2)
    batches = list(data.test_dataloader())
    assert [len(batch["image"]) for batch in batches] == [4, 4, 1] * 4
    assert [batch["position"] for batch in batches] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert [batch["round"] for batch in batches] == [0] * 6 + [1] * 6
    assert not any(batch["probe"] for batch in batches)
    assert [batch["domain"] for batch in batches[:3]] == [["fog"] * 4, ["fog"] * 4, ["fog"]]
    assert data.stretches == [("fog", 5), ("gaussian_noise", 5)]
    assert len(data.test_dataloader()) == len(batches)
    for number in range(4):
        stretch = batches[3 * number : 3 * number + 3]
        assert sorted(path for batch in stretch for path in batch["path"]) == sorted(data.splits["test"].paths)
    batch = batches[0]
    assert batch["target"].dtype == torch.int64
    assert [data.class_names[target] for target in batch["target"]] == [Path(path).parts[-2] for path in batch["path"]]


def test_an_image_is_corrupted_by_its_own_seed(root):
    data = _ready(root, severity=3, seed=5)
    paths = data.splits["test"].paths
    for batch in data.test_dataloader():
        for path, name, image in zip(batch["path"], batch["domain"], batch["image"], strict=True):
            seed = image_seed(5, name, paths.index(path))
            assert np.array_equal(_pixels(image), corrupt(read_image(path), name, 3, seed, "cifar"))


def test_an_image_is_resized_before_it_is_corrupted(root):
    """A quarter of the images' area is left, where noise that was shrunk would be half as strong."""
    plain = ImageFolder(str(root), num_workers=0, **{**PLAIN, "image_size": 16})
    plain.setup()
    clean = {}
    for batch in plain.test_dataloader():
        clean |= dict(zip(batch["path"], batch["image"], strict=True))
    data = _ready(root, image_size=16, corruptions=["gaussian_noise"], suite="imagenet", severity=1, batch_size=9)
    batch = next(iter(data.test_dataloader()))
    noise = torch.stack([image - clean[path] for path, image in zip(batch["path"], batch["image"], strict=True)])
    assert noise.std().item() == pytest.approx(0.08, abs=0.01)


def test_an_image_looks_the_same_in_every_round_batch_and_worker(root):
    one = _shown(_ready(root, rounds=2))
    again = _shown(_ready(root, rounds=2, stream_batch_size=7, num_workers=2))
    assert one == again
    first, second = one[:18], one[18:]
    assert [entry[:2] + entry[3:] for entry in first] == [entry[:2] + entry[3:] for entry in second]
    assert len({pixels for *_, pixels in first}) == 18
    assert _shown(_ready(root, rounds=2, seed=1)) != one


def test_without_shuffling_images_come_as_they_are_listed(root):
    data = _ready(root, shuffle=False, images=4)
    assert [path for path, *_ in _shown(data)] == data.splits["test"].paths[:4] * 2
    shuffled = [path for path, *_ in _shown(_ready(root))]
    assert shuffled[:9] == shuffled[9:] != data.splits["test"].paths


def test_probes_are_clean_and_always_the_same(root):
    data = _ready(root, probes=5, images=2)
    batches = list(data.test_dataloader())
    assert [(batch["position"], batch["probe"]) for batch in batches] == [
        *((-1, True), (-1, True)),
        *((0, False), (0, True), (0, True)),
        *((1, False), (1, True), (1, True)),
    ]
    probes = [batches[start : start + 2] for start in (0, 3, 6)]
    for pair in probes:
        assert [path for batch in pair for path in batch["path"]] == [path for b in probes[0] for path in b["path"]]
        assert {name for batch in pair for name in batch["domain"]} == {"clean"}
        for batch in pair:
            for path, image in zip(batch["path"], batch["image"], strict=True):
                assert np.array_equal(_pixels(image), read_image(path))


def test_mixed_gives_each_image_one_corruption(root):
    data = _ready(root, order="mixed", rounds=2, corruptions=["fog", "frost", "snow"])
    assert data.stretches == [("mixed", 5)]
    batches = list(data.test_dataloader())
    assert [batch["position"] for batch in batches] == [0] * 3 + [1] * 3
    shown = _shown(data)
    assert Counter(name for _, name, *_ in shown[:9]) == {"fog": 3, "frost": 3, "snow": 3}
    assert [entry[:2] + entry[3:] for entry in shown[:9]] == [entry[:2] + entry[3:] for entry in shown[9:]]


def test_gradual_is_harsher_in_the_middle(root):
    data = _ready(root, order="gradual", corruptions=["gaussian_noise"], severity=3, batch_size=9, suite="imagenet")
    assert data.stretches == [("gaussian_noise", level) for level in (1, 2, 3, 2, 1)]
    contrast = [batch["image"].std(dim=(2, 3)).mean().item() for batch in data.test_dataloader()]
    assert contrast[0] < contrast[1] < contrast[2]
    assert contrast[:2] == contrast[:2:-1]


def test_correlated_labels_come_in_runs(tmp_path):
    write_images(tmp_path / "train", 2, side=8)
    write_images(tmp_path / "test", 20, side=8)
    options = {"image_size": 8, "order": "correlated", "corruptions": ["contrast", "pixelate"], "batch_size": 60}
    targets = [batch["target"].tolist() for batch in _ready(tmp_path, concentration=0.01, **options).test_dataloader()]
    assert [sorted(stretch) for stretch in targets] == [[0] * 20 + [1] * 20 + [2] * 20] * 2
    assert all(len(list(groupby(stretch))) <= 5 for stretch in targets)
    assert targets[0] != targets[1]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """CIFAR-10-C's layout with four images a severity, each of which is filled with its number in the file."""
    folder = tmp_path_factory.mktemp("CIFAR-3-C")
    numbers = np.arange(20, dtype=np.uint8)[:, None, None, None]
    for name, offset in (("fog", 0), ("gaussian_noise", 100)):
        np.save(folder / f"{name}.npy", np.broadcast_to(numbers + offset, (20, 32, 32, 3)).astype(np.uint8))
    np.save(folder / "labels.npy", np.tile([2, 0, 1, 1], 5))
    return folder


def test_arrays_as_of_cifar_c(root, arrays):
    data = _ready(root, corrupted=str(arrays), severity=2, shuffle=False, probes=2)
    batches = [batch for batch in data.test_dataloader() if not batch["probe"]]
    assert [_pixels(image)[0, 0, 0] for batch in batches for image in batch["image"]] == [
        *range(4, 8),
        *range(104, 108),
    ]
    assert batches[0]["path"] == [f"{arrays / 'fog.npy'}:{row}" for row in range(4, 8)]
    assert batches[1]["target"].tolist() == [2, 0, 1, 1]
    assert [batch["domain"][0] for batch in batches] == PAIR
    probe = next(iter(data.test_dataloader()))
    assert set(probe["path"]) <= set(data.splits["test"].paths)


def test_arrays_that_were_written_here_are_what_is_made_on_the_fly(root, tmp_path):
    live = _ready(root, severity=4, seed=3)
    listing = live.splits["test"]
    images = np.stack([read_image(path) for path in listing.paths])
    write_cifar_c(images, np.array(listing.targets), tmp_path, "cifar", 3, PAIR)
    stored = _ready(root, severity=4, seed=3, corrupted=str(tmp_path))
    for one, other in zip(live.test_dataloader(), stored.test_dataloader(), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["target"], other["target"])
        assert one["domain"] == other["domain"]


def test_arrays_that_do_not_fit(root, arrays, tmp_path):
    message = _error(root, corrupted=str(arrays), image_size=16)
    assert message.startswith(f"{arrays}: 32x32 pixels, the network takes 16x16; corrupted images are not resized")
    assert "snow" in _error(root, corrupted=str(arrays), corruptions=["fog", "snow"])
    write_images(tmp_path / "train", 2)
    shutil.copytree(tmp_path / "train" / "red", tmp_path / "train" / "yellow")
    assert _error(tmp_path, corrupted=str(arrays)) == (f"{arrays}: labels of 3 classes, but the training images have 4")


@pytest.fixture
def files(tmp_path):
    """ImageNet-C's layout, two images a class."""
    folder = tmp_path / "ImageNet-C"
    for number, name in enumerate(PAIR):
        write_images(folder / name / "5", 2, seed=number)
    return folder


def test_files_as_of_imagenet_c(root, files):
    data = _ready(root, corrupted=str(files))
    batches = list(data.test_dataloader())
    assert [batch["domain"][0] for batch in batches] == ["fog"] * 2 + ["gaussian_noise"] * 2
    for batch in batches:
        for path, target, image in zip(batch["path"], batch["target"], batch["image"], strict=True):
            assert Path(path).parts[-4:-1] == (batch["domain"][0], "5", data.class_names[target])
            assert np.array_equal(_pixels(image), read_image(path))


def test_files_that_do_not_fit(root, files):
    first = files / "fog" / "5" / "blue" / "000.png"
    assert _error(root, corrupted=str(files), image_size=16) == (
        f"{first}: 32x32 pixels, the network takes 16x16; corrupted images are not resized, so set data.image_size"
    )
    assert str(files / "fog" / "4") in _error(root, corrupted=str(files), severity=4)
    (files / "gaussian_noise" / "5" / "red" / "001.png").unlink()
    message = _error(root, corrupted=str(files))
    assert message.startswith("expected the same images of every corruption, found 6 like")
    assert "5 like" in message


def test_a_file_of_another_size_is_left_out(root, files):
    odd = files / "fog" / "5" / "red" / "001.png"
    Image.new("RGB", (40, 30)).save(odd)
    batch = next(iter(_ready(root, corrupted=str(files), batch_size=6).test_dataloader()))
    assert batch["unreadable"] == [(str(odd), "40x30 pixels, the network takes 32x32")]
    assert len(batch["image"]) == len(batch["path"]) == len(batch["domain"]) == 5


class _Observer(pl.LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict] = []

    def test_step(self, batch, batch_idx):
        self.batches.append(batch)

    def predict_step(self, batch, batch_idx):
        self.batches.append(batch)


def _trainer(folder, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_lightning_hands_the_stream_on_as_it_is(root, tmp_path, stage):
    module, options = _Observer(), {"rounds": 2, "probes": 3}
    getattr(_trainer(tmp_path, logger=False), stage)(module, datamodule=_ready(root, **options))
    own = list(_ready(root, **options).test_dataloader())
    assert len(module.batches) == len(own)
    for one, other in zip(module.batches, own, strict=True):
        assert torch.equal(one.pop("image"), other.pop("image"))
        assert torch.equal(one.pop("target"), other.pop("target"))
        assert one == other


def test_unreadable_images_are_left_out_and_listed_once(tmp_path):
    write_images(tmp_path / "train", 4)
    write_images(tmp_path / "test", 3)
    bad = tmp_path / "test" / "green" / "001.png"
    bad.write_bytes(b"")
    module = _Observer()
    trainer = _trainer(tmp_path, logger=pl.loggers.CSVLogger(str(tmp_path / "runs")))
    with pytest.warns(UserWarning, match="1 unreadable images were skipped"):
        trainer.test(module, datamodule=_ready(tmp_path, num_workers=1, max_unreadable=0.1))
    assert sum(len(batch["image"]) for batch in module.batches) == 2 * 8
    assert all(len(batch["domain"]) == len(batch["path"]) == len(batch["image"]) for batch in module.batches)
    with Path(trainer.log_dir, "unreadable.csv").open(newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == [str(bad)]
    with pytest.raises(InputError, match=r"1 of 21 images cannot be read, more than data.max_unreadable"):
        _trainer(tmp_path, logger=False).test(_Observer(), datamodule=_ready(tmp_path, max_unreadable=0.01))


def test_a_stream_is_not_divided(root):
    data = _ready(root)
    data.trainer = SimpleNamespace(world_size=2, global_rank=0)
    with pytest.raises(InputError, match=r"adapted on in its order, by one process: set trainer.devices .* to 1"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": ["frog"]}, "no corruption 'frog' (did you mean 'fog'?)"),
        ({"corruptions": []}, "corruptions: expected one at least"),
        ({"severity": 6}, "severity must be 1, 2, 3, 4 or 5, got 6"),
        ({"order": "random"}, "order must be one of continual, gradual, mixed, correlated, got random"),
        ({"suite": "coco"}, "suite must be one of imagenet, cifar, got coco"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"probes": -1}, "probes must be at least 0, got -1"),
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"stream_batch_size": 0}, "stream_batch_size must be at least 1, got 0"),
        ({"concentration": 0.0}, "concentration must be positive, got 0.0"),
        ({"corrupted": "nowhere"}, "nowhere: no such folder"),
        ({"image_size": 4}, "at least 8 pixels a side"),
        ({"corruptions": ["frost"], "frost_folder": "nowhere"}, "frost_folder: nowhere has no pictures"),
    ],
)
def test_what_cannot_be_streamed_is_said(root, options, message):
    assert message in _error(root, **options)


def test_the_command_lists_the_flags():
    finished = vision("fit", "--data.help", "CorruptionStream")
    assert finished.returncode == 0
    own = ("corrupted", "suite", "severity", "corruptions", "order", "rounds", "probes", "images", "frost_folder")
    for flag in (*own, "shuffle", "stream_batch_size", "concentration", "val_fraction", "image_size", "num_workers"):
        assert f"--data.{flag} " in finished.stdout
