"""Words in pictures as batches: drawn ones, workers, resumption, what the task says."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from datamodules import TextImages
from datamodules.text_lmdb import write_lmdb
from datamodules.text_renderer import RenderOptions
from vision.errors import InputError

TOY = RenderOptions(count=24, test_count=6, alphabet="23456789", lengths=(0.4, 0.3, 0.3), colour="grey", size=(16, 32))


def _lmdb(folder, labels: list[str]):
    """Pictures of noise with these labels."""
    noise = np.random.default_rng(0).integers(0, 256, (len(labels), 12, 30, 3), np.uint8)
    write_lmdb(folder, [(cv2.imencode(".png", noise[i])[1].tobytes(), label) for i, label in enumerate(labels)])
    return folder


def _drawn(**options) -> TextImages:
    data = TextImages(
        **{
            **dict.fromkeys(("train", "val", "test"), "rendered"),
            "rendered": TOY,
            "num_workers": 0,
            "batch_size": 4,
            "image_size": (16, 32),
            **options,
        }
    )
    data.setup()
    return data


def _same(left, right) -> bool:
    return (
        left["text"] == right["text"] and left["path"] == right["path"] and torch.equal(left["image"], right["image"])
    )


def test_drawn_words_need_no_files():
    data = _drawn()
    assert data.test_sets == ["clean", "hard"]
    batches = list(data.train_dataloader())
    assert sum(len(batch["text"]) for batch in batches) == 24
    assert all(set(text) <= set("23456789") and 1 <= len(text) <= 3 for batch in batches for text in batch["text"])
    trained, *tested = [next(iter(loader))["image"] for loader in (data.val_dataloader(), *data.test_dataloader())]
    assert not any(torch.equal(trained, images) for images in tested)
    other = _drawn(rendered=RenderOptions(**{**TOY.__dict__, "seed": 1}))
    assert _same(next(iter(data.test_dataloader()[0])), next(iter(other.test_dataloader()[0])))
    assert data.splits["train"].targets[:] != other.splits["train"].targets[:]


@pytest.mark.parametrize("augment", ["none", "randaugment", "hard"])
def test_workers_do_not_matter(tmp_path, augment):
    stored = _lmdb(tmp_path / "train", [f"w{i}" for i in range(8)])
    options = {"augment": augment, "rotate_90": 0.5, "train": [str(stored), "rendered"]}
    # The second is asked while this process has the LMDB open.
    epochs = [list(_drawn(**options, num_workers=workers).train_dataloader()) for workers in (0, 2)]
    assert len(epochs[0]) == 8
    assert all(_same(*pair) for pair in zip(*epochs, strict=True))


def test_an_epoch_goes_on_where_it_was(tmp_path):
    whole = list(_drawn(augment="randaugment").train_dataloader())
    data = _drawn(augment="randaugment")
    batches = iter(data.train_dataloader())
    for _ in range(2):
        next(batches)
    state = data.state_dict()
    again = _drawn(augment="randaugment", num_workers=2)
    again.load_state_dict(state)
    rest = list(again.train_dataloader())
    assert len(rest) == 4
    assert all(_same(*pair) for pair in zip(rest, whole[2:], strict=True))


def test_datasets_travel_to_other_processes(tmp_path):
    dataset = _drawn(val=[str(_lmdb(tmp_path / "val", ["a", "b"])), "rendered"]).dataset("val")
    first = [dataset.load(index, 0) for index in (0, 3)]
    copied = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(copied.load(index, 0), image) for index, image in zip((0, 3), first, strict=True))


# --------------------------------------------------------------------------------------------------------- the task
def test_the_task_says_characters_and_size(tmp_path):
    _lmdb(tmp_path / "val", ["Hello", "a-b", "toolong", "?"])
    data = TextImages(str(tmp_path), num_workers=0)
    preprocessing = SimpleNamespace(size=(16, 64), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic")
    task = SimpleNamespace(charset="62", max_label_length=6, preprocessing=preprocessing)
    data.trainer = SimpleNamespace(lightning_module=task, loggers=[], world_size=1, global_rank=0)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert batch["text"] == ["Hello", "ab"]
    assert batch["image"].shape[1:] == (3, 16, 64)
    assert len(data.charset) == 62
    data = TextImages(str(tmp_path), charset="94")
    data.trainer = SimpleNamespace(lightning_module=task, loggers=[], world_size=1, global_rank=0)
    with pytest.raises(InputError, match=r"data.charset: the network does not know '!' \(U\+0021\)"):
        data.setup("validate")
    data = TextImages(str(tmp_path), max_label_length=7)
    data.trainer = SimpleNamespace(lightning_module=task, loggers=[], world_size=1, global_rank=0)
    with pytest.raises(InputError, match=r"data.max_label_length: 7 is more than the 6 characters of the network"):
        data.setup("validate")


def test_a_trainer_takes_every_loader(tmp_path):
    class Counting(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.seen: list[tuple[int, int]] = []

        def training_step(self, batch, _):
            return self.layer(batch["image"].mean().reshape(1, 1)).sum()

        def validation_step(self, batch, _):
            assert len(batch["text"]) == len(batch["image"])

        def test_step(self, batch, batch_idx, dataloader_idx=0):
            self.seen.append((dataloader_idx, len(batch["text"])))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    task = Counting()
    data = TextImages(train="rendered", val="rendered", test="rendered", rendered=TOY, num_workers=0, batch_size=4)
    trainer = pl.Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    assert task.seen == [(0, 4), (0, 2), (1, 4), (1, 2)]
