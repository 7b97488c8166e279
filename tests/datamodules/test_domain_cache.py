"""Features of two domains on disk, in the place of their pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from datamodules import Domains
from vision.errors import InputError

NUMBERS = {"source": {"a": 4, "b": 6}, "target": {"a": 5, "c": 7}}


class Task(pl.LightningModule):
    """A frozen layer over the halves of a picture, and whatever it is given."""

    def __init__(self, seed: int = 0, dtype: str = "float32") -> None:
        super().__init__()
        self.frozen = torch.nn.Linear(6, 4, bias=False).requires_grad_(False)
        torch.nn.init.normal_(self.frozen.weight, generator=torch.Generator().manual_seed(seed))
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fields = {"weights": f"seed {seed}", "dtype": dtype}
        self.encoded = 0
        self.batches: list[dict] = []
        self.tested: list[dict] = []
        self.whole: dict[str, list[dict]] = {}

    def frozen_features(self, media):
        self.encoded += len(media)
        return self.frozen(media.unflatten(-1, (2, -1)).mean(dim=(-1, -3)).flatten(1))

    def cache_fields(self):
        return self.fields

    def on_train_start(self):
        data = self.trainer.datamodule
        self.whole = {domain: list(data.domain_loader(domain)) for domain in ("source", "target")}
        sizes = data.sizes
        data.regroup(np.arange(sizes["source"]) % 2, np.arange(sizes["target"]) % 2, np.arange(sizes["target"]) % 3)

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.tested.append(batch)

    def test_step(self, batch, batch_idx):
        self.tested.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def root(tmp_path) -> Path:
    """10 source and 12 target pictures of noise."""
    random = np.random.default_rng(0)
    for domain, classes in NUMBERS.items():
        for name, number in classes.items():
            (tmp_path / "data" / domain / name).mkdir(parents=True)
            for i in range(number):
                pixels = random.integers(256, size=(11, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / domain / name / f"{i}.png")
    return tmp_path / "data"


def _data(root: Path, cache: str | None = "cache", **options) -> Domains:
    options = {"image_size": 8, "batch_size": 4, "epoch_steps": 5, "num_workers": 0, **options}
    return Domains(str(root), cache=None if cache is None else str(root.parent / cache), **options)


def _trainer(root: Path, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=root.parent,
        **options,
    )


def _fit(data: Domains, task: Task | None = None, **options) -> Task:
    task = task or Task()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trainer(Path(data.root), **options).fit(task, datamodule=data)
    return task


def _refusal(data: Domains, task: Task | None = None) -> str:
    with pytest.raises(InputError) as caught:
        _fit(data, task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _joined(batches, key: str) -> torch.Tensor:
    return torch.cat([batch[key] for batch in batches])


def test_features_are_those_of_the_pictures(root, capsys):
    plain, cached = _fit(_data(root, None, thumbnails=3)), _fit(_data(root, thumbnails=3))
    cache = root.parent / "cache"
    printed = capsys.readouterr().out
    assert f"vision: the cache takes 160 bytes in {cache}/source (10 images)" in printed
    assert f"vision: the cache takes 324 bytes in {cache}/target_thumbnails (12 thumbnails)" in printed
    assert {folder.name for folder in cache.iterdir()} == {
        "source", "target", "source_thumbnails", "target_thumbnails",
    }  # fmt: skip
    for made, read in ((plain.whole["source"], cached.whole["source"]), (plain.tested, cached.tested)):
        features = plain.frozen_features(_joined(made, "media"))
        assert torch.allclose(_joined(read, "media"), features, atol=1e-5)
        for key in ("index", "group", "thumbnail"):
            assert torch.equal(_joined(made, key), _joined(read, key))
            assert _joined(made, key).dtype == _joined(read, key).dtype
        assert [path for batch in made for path in batch["path"]] == [path for batch in read for path in batch["path"]]
    # Training shows the same rows, and of the pictures it shows thumbnails that know nothing of their augmentation.
    features = {domain: _joined(cached.whole[domain], "media") for domain in NUMBERS}
    for one, other in zip(plain.batches, cached.batches, strict=True):
        for part in ("source", "target", "aligned_source", "aligned_target", "clustered"):
            for key in ("index", "group", "thumbnail"):
                assert torch.equal(one[part][key], other[part][key])
            domain = "source" if "source" in part else "target"
            assert torch.equal(other[part]["media"], features[domain][other[part]["index"]])
            assert other[part]["media"].dtype == torch.float32


def test_what_is_there_is_not_made_again(root):
    first = _fit(_data(root))
    assert first.encoded == 10 + 12 + 2  # two more to know what a row's features look like
    again = _fit(_data(root))
    assert again.encoded == 3 + 3, "of each domain a few are compared"
    assert torch.equal(_joined(again.tested, "media"), _joined(first.tested, "media"))
    task = Task()
    _trainer(root).test(task, datamodule=_data(root), verbose=False)
    assert task.encoded == 3


def test_one_cache_serves_all_splits_and_orders(root):
    whole = _fit(_data(root))
    rows = dict(zip(whole.whole["target"][0]["path"], whole.whole["target"][0]["media"], strict=True))
    for options in ({"split": [1, 1, 1]}, {"split": [1, 0, 1], "setting": "osda", "class_order": "order.txt"}):
        (root / "order.txt").write_text("a\nc\nb\n")
        task = _fit(_data(root, **options))
        assert task.encoded == 6
        batch = task.whole["target"][0]
        assert 0 < len(batch["path"]) < 13
        assert all(torch.equal(rows[path], media) for path, media in zip(batch["path"], batch["media"], strict=True))


def test_other_test_pictures_have_features_of_their_own(root):
    task = _fit(_data(root, target_test="source"))
    assert task.encoded == 10 + 12 + 10 + 3
    assert (root.parent / "cache/target_test/features.bin").stat().st_size == 160
    assert torch.equal(_joined(task.tested, "media"), _joined(task.whole["source"], "media"))


def test_what_is_of_something_else_is_refused(root):
    _fit(_data(root, thumbnails=3))
    for data, task, message in (
        (_data(root), Task(seed=1), "cache/source: the features were made with task.weights seed 0, now it is seed 1"),
        (_data(root, image_size=6), None, "data.preprocessing.size [8, 8], now it is [6, 6]"),
        (
            _data(root, thumbnails=2),
            None,
            "cache/source_thumbnails: the features were made with task.thumbnail 3, now it",
        ),
    ):
        assert message in _refusal(data, task)
    data = _data(root)
    data.setup()
    with pytest.raises(InputError, match="features are made by a task's network, so it needs a Trainer"):
        data.train_dataloader()
    Image.new("RGB", (9, 11)).save(root / "target/c/2.png")
    assert "target/c/2.png has changed since its features were made (" in _refusal(_data(root))


def test_unreadable_pictures_are_replaced_or_left_out(root):
    bad = {str(root / file) for file in ("source/b/5.png", "target/a/2.png")}
    for file in bad:
        Path(file).write_text("no picture")
    plain, cached = (_fit(_data(root, cache, max_unreadable=0.3)) for cache in (None, "cache"))
    again = _fit(_data(root, max_unreadable=0.3))
    for task in (cached, again):
        for one, other in zip(plain.batches, task.batches, strict=True):
            for part in ("source", "target", "aligned_source", "aligned_target", "clustered"):
                assert torch.equal(one[part]["index"], other[part]["index"])
                assert torch.equal(one[part]["group"], other[part]["group"])
                assert {path for path, _ in one[part]["unreadable"]} == {path for path, _ in other[part]["unreadable"]}
        assert len(_joined(task.tested, "index")) == 11
        assert not bad & {path for batch in task.tested for path in batch["path"]}
        assert task.trainer.datamodule.unreadable.keys() == bad
    assert "2 of 22 images cannot be read" in _refusal(_data(root, "other", max_unreadable=0.05))


def test_half_precision_is_kept_and_single_given(root):
    task = _fit(_data(root), Task(dtype="float16"))
    assert (root.parent / "cache/source/features.bin").stat().st_size == 80
    assert task.batches[0]["source"]["media"].dtype == torch.float32


def test_two_processes_share_the_cache_and_the_rows(root, tmp_path):
    _fit(_data(root))
    _fit(_data(root, "shared"), devices=2, strategy="ddp_fork")
    for domain in NUMBERS:
        one, other = (np.fromfile(tmp_path / cache / domain / "features.bin", "f4") for cache in ("cache", "shared"))
        assert np.allclose(one, other, atol=1e-5)
