"""The steps and whole domains that a task of domain adaptation is given."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from datamodules import Domains
from datamodules.domain_sampling import StepSampler
from vision.errors import InputError

PARTS = ("source", "target", "aligned_source", "aligned_target", "clustered")


@pytest.fixture
def root(tmp_path) -> Path:
    """Source: 2, 4 and 12 pictures of a, b, c; target: 5 each of b, c, d. Each in a colour of its own."""
    numbers = {"source": {"a": 2, "b": 4, "c": 12}, "target": {"b": 5, "c": 5, "d": 5}}
    for domain, classes in numbers.items():
        for name, number in classes.items():
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(number):
                pixels = np.full((12, 10, 3), (20 * i, 80 * ord(name) % 256, 200), np.uint8)
                pixels[:, 5:] //= 2
                Image.fromarray(pixels).save(tmp_path / domain / name / f"{i:02d}.png")
    return tmp_path


def _ready(root: Path, **options) -> Domains:
    data = Domains(str(root), **{"image_size": 8, "batch_size": 6, "epoch_steps": 5, "num_workers": 0, **options})
    data.setup()
    return data


def _group(data: Domains) -> None:
    """Pairs 0 (class b), 7 (class c) and one without target rows; clusters 0, 3 and 4, the third of one row."""
    source = np.array([{"a": 5, "b": 0, "c": 7}[Path(path).parent.name] for path in data.splits["train"].paths])
    target = np.array([{"b": 0, "c": 7, "d": -1}[Path(path).parent.name] for path in data.splits["target"].paths])
    data.regroup(source, target, [0] * 5 + [3] * 5 + [-1] * 4 + [4])


def _steps(loader, epoch: int = 0) -> list[dict]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def _same(one: dict, other: dict) -> bool:
    return one["grouping"] == other["grouping"] and all(
        torch.equal(one[part][key], other[part][key])
        for part in PARTS
        for key in ("media", "index", "group", "thumbnail")
    )


def test_a_step(root):
    data = _ready(root, thumbnails=4)
    step = _steps(data.train_dataloader())[0]
    assert data.class_names == ["a", "b", "c"]
    assert data.target_names == ["a", "b", "c", "d"]
    assert data.sizes == {"source": 18, "target": 15}
    for part, number in zip(PARTS, (6, 6, 0, 0, 0), strict=True):
        assert step[part]["media"].shape == (number, 3, 8, 8)
        assert step[part]["media"].dtype == torch.float32
        assert step[part]["thumbnail"].shape == (number, 3, 4, 4)
        assert step[part]["index"].shape == step[part]["group"].shape == (number,)
        assert len(step[part]["path"]) == number
    assert step["grouping"] == 0
    assert [Path(path).parent.name for path in step["source"]["path"]] == [
        data.class_names[number] for number in step["source"]["group"]
    ]
    for part, split in (("source", "train"), ("target", "target")):
        assert step[part]["path"] == [data.splits[split].paths[row] for row in step[part]["index"]]
    assert _steps(_ready(root).train_dataloader())[0]["source"]["thumbnail"].shape == (6, 0)


def test_no_label_of_the_target_is_in_reach_of_training(root):
    """The targets' labels are in the evaluation's listing alone, and files are all that training's has of a class."""
    data = _ready(root)
    loader = data.train_dataloader()
    target = pickle.loads(pickle.dumps(loader.collate_fn)).target  # as a worker has it
    assert set(target.listing.targets) == set(target.pictures.listing.targets) == set(target.classes.tolist()) == {-1}
    assert target.listing.class_names == []
    assert loader.sampler.labels.tolist() == data.splits["train"].targets
    assert {int(number) for step in _steps(loader) for number in step["target"]["group"]} == {-1}
    assert {int(number) for batch in data.domain_loader("target") for number in batch["group"]} == {-1}


def test_thumbnails_are_means_over_the_whole_picture(root):
    batch = next(iter(_ready(root, thumbnails=2, crop_pct=0.5).domain_loader("source")))
    pixels = np.asarray(Image.open(batch["path"][3])).astype(float)
    expected = pixels.reshape(2, 6, 2, 5, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    assert batch["thumbnail"].dtype == torch.uint8
    assert np.abs(batch["thumbnail"][3].numpy() - expected).max() <= 0.5


def test_source_classes_and_target_rows_come_equally_often(root):
    """6 steps of 6: 12 of each class, each picture of a class as often as the others of it."""
    steps = _steps(_ready(root, epoch_steps=6).train_dataloader(), epoch=3)
    classes = torch.cat([step["source"]["group"] for step in steps])
    rows = torch.cat([step["source"]["index"] for step in steps])
    assert torch.bincount(classes).tolist() == [12, 12, 12]
    assert torch.bincount(rows).tolist() == [6] * 2 + [3] * 4 + [1] * 12
    assert all(sorted(step["source"]["group"].tolist()) == [0, 0, 1, 1, 2, 2] for step in steps)
    targets = torch.bincount(torch.cat([step["target"]["index"] for step in steps]))
    assert set(targets.tolist()) == {2, 3}
    plain = _steps(_ready(root, epoch_steps=6, balanced=False).train_dataloader(), epoch=3)
    assert torch.bincount(torch.cat([step["source"]["index"] for step in plain])).tolist() == [2] * 18


def test_rows_of_groups_are_of_these_groups(root):
    data = _ready(root, per_group=5, groups=10)
    _group(data)
    assert data.grouping == 1
    for step in _steps(data.train_dataloader()):
        assert step["grouping"] == 1
        for part in ("aligned_source", "aligned_target"):
            names = [Path(path).parent.name for path in step[part]["path"]]
            assert [{"b": 0, "c": 7}[name] for name in names] == step[part]["group"].tolist()
            assert torch.unique(step[part]["group"], return_counts=True)[1].tolist() == [5, 5]
        assert step["aligned_source"]["group"].tolist() == step["aligned_target"]["group"].tolist()
        assert step["clustered"]["group"].unique().tolist() == [0, 3, 4]
        clusters = np.array([0] * 5 + [3] * 5 + [-1] * 4 + [4])
        assert clusters[step["clustered"]["index"]].tolist() == step["clustered"]["group"].tolist()
        for group, (part, number) in {0: ("aligned_target", 5), 7: ("aligned_source", 5), 3: ("clustered", 5)}.items():
            rows = step[part]["index"][step[part]["group"] == group]
            assert len(rows.unique()) == number, "without replacement where there are enough"


def test_groups_of_a_step_are_distinct_and_all_have_their_turn(root):
    data = _ready(root, groups=2, per_group=1, epoch_steps=60)
    data.regroup(np.arange(18) % 6, np.arange(15) % 6, np.arange(15) % 4)
    steps = _steps(data.train_dataloader())
    for part, number in (("aligned_source", 6), ("clustered", 4)):
        groups = torch.stack([step[part]["group"] for step in steps])
        assert (groups[:, 0] != groups[:, 1]).all()
        shares = torch.bincount(groups.flatten()) / groups.numel()
        assert shares.tolist() == pytest.approx([1 / number] * number, abs=0.09)


def test_regrouping_while_steps_are_given_out(root):
    data = _ready(root)
    loader = data.train_dataloader()
    batches = iter(loader)
    assert next(batches)["grouping"] == 0
    _group(data)
    step = next(batches)
    assert (step["grouping"], len(step["aligned_source"]["index"])) == (1, 6)
    data.regroup([-1] * 18, [-1] * 15, [-1] * 15)
    step = next(batches)
    assert (step["grouping"], len(step["aligned_source"]["index"]), len(step["clustered"]["index"])) == (2, 0, 0)
    with pytest.raises(InputError, match="groups are of 17 source and 15 target pictures, and the data have 18 and 15"):
        data.regroup([-1] * 17, [-1] * 15, [-1] * 15)


def test_workers_make_the_same_steps(root):
    own, workers = _ready(root), _ready(root, num_workers=2)
    for data in (own, workers):
        _group(data)
    one, other = _steps(own.train_dataloader()), _steps(workers.train_dataloader())
    assert len(one) == len(other) == 5
    assert all(map(_same, one, other))
    assert not _same(one[0], _steps(own.train_dataloader(), epoch=1)[0])


def test_regrouping_reaches_workers(root):
    data = _ready(root, num_workers=1, epoch_steps=20)
    batches = iter(data.train_dataloader())
    next(batches)
    _group(data)
    seen = [(step["grouping"], len(step["clustered"]["index"])) for step in batches]
    assert set(seen) == {(0, 0), (1, 9)}
    assert seen == sorted(seen)
    assert seen.count((0, 0)) <= 3


def test_training_pictures_are_augmented_and_others_are_not(root):
    data = _ready(root, epoch_steps=12, horizontal_flip=0.5, crop_pct=1.0)
    for one, other in zip(data.domain_loader("target"), data.test_dataloader(), strict=True):
        assert torch.equal(one["media"], other["media"])
    seen: dict[int, set[bytes]] = {}
    for step in _steps(data.train_dataloader()):
        for row, media in zip(step["target"]["index"].tolist(), step["target"]["media"], strict=True):
            seen.setdefault(row, set()).add(media.numpy().tobytes())
    assert max(map(len, seen.values())) > 1


class _Recorder(pl.LightningModule):
    """Keeps what it is given, sets groups after its third step, and a checkpoint after as many as are wanted."""

    def __init__(self, interrupt: int | None = None) -> None:
        super().__init__()
        self.interrupt = interrupt
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[dict] = []
        self.tested: list[dict] = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        if self.global_step == 2:
            _group(self.trainer.datamodule)
        return self.weight.sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step == self.interrupt:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir, "interrupted.ckpt"))

    def validation_step(self, batch, batch_idx):
        self.tested.append(batch)

    def test_step(self, batch, batch_idx):
        self.tested.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _trainer(folder: Path, **options) -> pl.Trainer:
    options = {"max_epochs": 2, "logger": False, "limit_val_batches": 0, "enable_checkpointing": False, **options}
    return pl.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options
    )


def _fit(
    data: Domains, folder: Path, ckpt_path: Path | None = None, interrupt: int | None = None, **options
) -> _Recorder:
    module = _Recorder(interrupt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _trainer(folder, **options).fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("done", [4, 5, 7])
def test_a_resumed_training_goes_on_with_the_same_steps_and_groups(root, tmp_path, done):
    """Interrupted in the first epoch, between the two, and in the second; after groups were set."""
    whole = _fit(_ready(root), tmp_path, interrupt=done)
    assert len(whole.batches) == 10
    assert [batch["grouping"] for batch in whole.batches] == [0] * 3 + [1] * 7
    rest = _fit(_ready(root), tmp_path, ckpt_path=tmp_path / "interrupted.ckpt")
    assert len(rest.batches) == 10 - done
    assert all(map(_same, rest.batches, whole.batches[done:]))


def test_a_limit_of_steps_ends_the_epoch(root, tmp_path):
    module = _fit(_ready(root), tmp_path, limit_train_batches=3)
    assert len(module.batches) == 6
    assert not _same(module.batches[0], module.batches[3])


def test_processes_take_turns_and_draw_groups_of_their_own(root):
    """The evenly drawn parts of two processes are, together, those of one with twice the batch."""
    data = _ready(root)
    _group(data)
    groups = data.train_dataloader().sampler.groups

    def steps(batch_size: int, processes: int, rank: int):
        targets = data.splits["train"].targets
        sampler = StepSampler(targets, (18, 15), batch_size, 1, 3, 6, processes, rank, seed=0)
        sampler.groups = groups
        return list(sampler)

    one, two, together = steps(6, 2, 0), steps(6, 2, 1), steps(12, 1, 0)
    for first, second, whole in zip(one, two, together, strict=True):
        for part in ("source", "target"):
            rows = [getattr(step, part).rows.tolist() for step in (first, second)]
            assert [row for pair in zip(*rows, strict=True) for row in pair] == getattr(whole, part).rows.tolist()
        assert not set(first.source.rows[:3].tolist()) & set(second.source.rows[:3].tolist()) - {0, 1}
        assert first.source.seeds.tolist() != second.source.seeds.tolist()
    assert any(
        first.clustered.rows.tolist() != second.clustered.rows.tolist() for first, second in zip(one, two, strict=True)
    )


def test_whole_domains_in_order(root, tmp_path):
    data = _ready(root)
    for domain, groups in (("source", data.splits["train"].targets), ("target", [-1] * 15)):
        batches = list(data.domain_loader(domain))
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(groups)))
        assert torch.cat([batch["group"] for batch in batches]).tolist() == groups
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert torch.cat([batch["group"] for batch in loader]).tolist() == [1] * 5 + [2] * 5 + [3] * 5
    tested = _ready(root, target_test="source")
    assert torch.cat([batch["group"] for batch in tested.test_dataloader()]).tolist() == data.splits["train"].targets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = _Recorder()
        _trainer(tmp_path).test(module, datamodule=_ready(root), verbose=False)
    assert sum(len(batch["path"]) for batch in module.tested) == 15


def test_the_split_says_who_takes_part(root):
    data = _ready(root, split=[1, 1, 1])
    assert data.class_names == ["a", "b"]
    assert data.target_names == ["a", "b", "c"]
    assert data.sizes == {"source": 6, "target": 5}
    assert torch.cat([batch["group"] for batch in data.test_dataloader()]).tolist() == [2] * 5


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_pictures_are_replaced_or_left_out(root, workers):
    for file in ("source/b/01.png", "target/c/02.png"):
        (root / file).write_text("no picture")
    data = _ready(root, max_unreadable=0.2, epoch_steps=6, num_workers=workers)
    _group(data)
    bad = {str(root / file) for file in ("source/b/01.png", "target/c/02.png")}
    steps = _steps(data.train_dataloader())
    unreadable = {path for step in steps for path, _ in step["unreadable"]}
    assert unreadable == bad
    for step in steps:
        assert len(step["source"]["index"]) == len(step["target"]["index"]) == 6
        assert not bad & {path for part in PARTS for path in step[part]["path"]}
        for part in ("aligned_source", "aligned_target", "clustered"):
            assert len(step[part]["index"]) + len(step[part]["unreadable"]) == (9 if part == "clustered" else 6)
            assert len(step[part]["group"]) == len(step[part]["media"]) == len(step[part]["index"])
        named = [data.class_names[number] for number in step["source"]["group"]]
        assert named == [Path(path).parent.name for path in step["source"]["path"]]
    batches = list(data.domain_loader("source"))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == [0, 1, 2, *range(4, 18)]
    data.count_unreadable(entry for batch in batches for entry in batch["unreadable"])
    assert data.unreadable.keys() == {str(root / "source/b/01.png")}
