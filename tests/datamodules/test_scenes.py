"""The built-in pictures with labels of four tasks: what the tables promise of the files."""

from __future__ import annotations

import csv
from collections import Counter

import numpy as np
import pytest

from datamodules import MultitaskImages
from datamodules.builtin import resolve_root
from datamodules.builtin import scenes as source
from datamodules.decoding import read_image
from vision.labels import MISSING


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRUGAL_VISION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield resolve_root("builtin:scenes")


def _rows(file):
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_the_data_module_reads_them(folder):
    data = MultitaskImages("builtin:scenes", source.TASKS, batch_size=4, num_workers=0)
    data.setup()
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 2400, "val": 300, "test": 800}
    for split, blank in (("train", 0.3), ("val", 0.3), ("test", 0.0)):
        assert (data.splits[split].labels() == MISSING).mean(axis=0).tolist() == pytest.approx([blank] * 4)
    assert (data.splits["train"].labels() == MISSING).all(axis=1).any()
    assert next(iter(data.test_dataloader()))["image"].shape == (4, 3, 224, 224)


def test_the_full_table_fills_in_the_blanks(folder):
    for row, full in zip(_rows(folder / "train.tsv"), _rows(folder / "train_full.tsv"), strict=True):
        assert all(full.values())
        assert all(value in ("", full[name]) for name, value in row.items())


def test_labels_are_spread_as_described(folder):
    rows = _rows(folder / "test.tsv")
    share = {task: {k: n / 800 for k, n in Counter(row[task] for row in rows).items()} for task in source.TASKS}
    assert share["level"] == pytest.approx({"little": 0.45, "some": 0.30, "much": 0.25}, abs=0.05)
    assert share["useful"]["no"] == share["kind"]["none"] == pytest.approx(0.25, abs=0.05)
    assert share["type"]["other"] == pytest.approx(0.55, abs=0.05)
    assert set(share["type"]) == set(source.TASKS["type"])


def test_much_is_more_than_some(folder):
    """Shapes are of even, bright colours: most pixels of a picture with much of them are like their neighbours."""
    even = {"little": [], "some": [], "much": []}
    for row in _rows(folder / "test.tsv"):
        if row["kind"] == "none" or row["type"] != "temple":
            continue
        picture = read_image(folder / row["image_path"]).astype(int)
        assert picture.shape == (64, 64, 3)
        bright = (picture.max(axis=-1) > 200) & (np.ptp(picture, axis=-1) > 120)
        even[row["level"]].append(bright.mean())
    assert np.median(even["little"]) < 0.12 < np.median(even["some"]) < 0.28 < np.median(even["much"])
