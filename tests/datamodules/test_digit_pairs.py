"""The built-in pairs of digits: what the folders promise of the pictures."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules import CorruptionStream
from datamodules.builtin import resolve_root
from datamodules.corruptions import CORRUPTIONS
from datamodules.decoding import read_image


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FRUGAL_VISION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield resolve_root("builtin:digit_pairs")


def test_there_are_a_hundred_balanced_classes(pairs):
    for split, number, each in (("train", 4000, {40}), ("test", 512, {5, 6})):
        counts = {folder.name: len(list(folder.glob("*.png"))) for folder in (pairs / split).iterdir()}
        assert sorted(counts) == [f"{pair:02d}" for pair in range(100)]
        assert sum(counts.values()) == number
        assert set(counts.values()) == each


def test_pictures_differ_in_contrast(pairs):
    pictures = np.stack([read_image(path)[..., 0] for path in sorted((pairs / "test").rglob("*.png"))]) / 255
    assert pictures.shape == (512, 16, 32)
    contrast = np.ptp(pictures, axis=(1, 2))
    assert contrast.min() == pytest.approx(0.15, abs=0.02)
    assert contrast.max() == pytest.approx(0.85, abs=0.02)
    middle = (pictures.min(axis=(1, 2)) + pictures.max(axis=(1, 2))) / 2
    assert middle == pytest.approx(np.full(512, 0.5), abs=0.03)


def test_a_pair_is_named_after_its_left_and_its_right_digit(pairs):
    def mean(pair: str) -> np.ndarray:
        return np.mean([read_image(path)[..., 0] for path in (pairs / "train" / pair).glob("*.png")], axis=0)

    left = np.stack([mean(f"{digit}{(digit + 1) % 10}")[:, :16] for digit in range(10)]).reshape(10, -1)
    right = np.stack([mean(f"{(digit + 3) % 10}{digit}")[:, 16:] for digit in range(10)]).reshape(10, -1)
    alike = np.corrcoef(left, right)[:10, 10:]
    assert alike.argmax(axis=1).tolist() == list(range(10))


def test_they_make_a_stream(pairs, monkeypatch):
    monkeypatch.setenv("FRUGAL_VISION_CACHE", str(pairs.parent))
    options = {"image_size": (16, 32), "crop_pct": 1.0, "suite": "cifar", "num_workers": 0}
    data = CorruptionStream("builtin:digit_pairs", images=4, probes=4, **options)
    data.prepare_data()
    data.setup()
    batches = list(data.test_dataloader())
    assert [batch["domain"][0] for batch in batches if not batch["probe"]] == list(CORRUPTIONS)
    assert {tuple(batch["image"].shape) for batch in batches} == {(4, 3, 16, 32)}
    assert len(data.class_names) == 100
