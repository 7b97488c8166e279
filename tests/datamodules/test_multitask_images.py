"""Tables of several tasks: what is read, what is refused and how, and the batches that come of it."""

from __future__ import annotations

import csv
import warnings

import pytest
import pytorch_lightning as pl
import torch

from datamodules import MultitaskImages
from tests.images import write_images, write_table
from vision.errors import InputError

TASKS = {"damage": {"classes": ["little", "mild", "severe"], "ordinal": True}, "kind": ["fire", "flood", "other"]}
HEADER = ("image_id", "image_path", "damage", "kind")
PICTURES = [f"{colour}/{i:03d}.png" for colour in ("blue", "green", "red") for i in range(8)]
ROWS = [(str(i), path, ("little", "mild", "severe", "")[i % 4], ("fire", "", "flood")[i % 3])
        for i, path in enumerate(PICTURES)]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """24 pictures; 16 for training, 8 for validation."""
    write_images(tmp_path, 8, side=16)
    write_table(tmp_path / "train.tsv", HEADER, ROWS[:16])
    write_table(tmp_path / "dev.tsv", HEADER, ROWS[16:])
    return tmp_path


def _ready(root, **options) -> MultitaskImages:
    data = MultitaskImages(str(root), TASKS, **{"image_size": 8, "batch_size": 4, "num_workers": 0, **options})
    data.setup()
    return data


def _error(root, text: str | bytes, name: str = "bad.tsv", **options) -> str:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        _ready(root, train=name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{root}/")


def test_a_batch(root):
    data = _ready(root)
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (4, 3, 8, 8)
    assert batch["path"] == [str(root / path) for path in PICTURES[16:20]]
    assert batch["labels"].tolist() == [[0, -1], [1, 1], [2, 0], [-1, -1]]
    assert batch["labelled"].tolist() == [3, 2]
    assert data.class_counts == {"damage": [4, 4, 4], "kind": [6, 5, 0]}
    assert data.splits["test"] is data.splits["val"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", b"\xef\xbb\xbfkind\timage_path\tx\tdamage\r\nflood\tred/000.png\t\t \r\n\t./red/001.png\t\tmild\r\n"),
        ("t.csv", b'note,kind,image_path,damage\n"a ""b"", c",flood,"red/000.png",\n"half,"",red/001.png,"mild"\n'),
    ],
)  # fmt: skip
def test_spellings_of_a_table(root, name, content):
    (root / name).write_bytes(content)
    table = _ready(root, train=name).splits["train"]
    assert table.paths == [str(root / "red/000.png"), str(root / "red/001.png")]
    assert table.targets == [(-1, 1), (1, -1)]
    assert [origin.line for origin in table.origins] == [2, 3]


def test_a_quote_that_is_not_closed_stands_for_itself(root):
    write_table(root / "t.tsv", HEADER, [('"1', "a.png", "mild", "fire"), ('2"', 'b".png', "", "")])
    assert _ready(root, train="t.tsv").splits["train"].paths == [str(root / "a.png"), str(root / 'b".png')]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png\tmidl\tfire", "damage: no class 'midl' (did you mean 'mild'?); there are little, mild, severe"),
        ("a.png\tmild", "expected 3 columns, found 2"),
        ("", "expected 3 columns, found an empty line"),
        (" \tmild\tfire", "image_path is empty"),
        ("/etc/a.png\tmild\tfire", "image_path must be relative to the data's folder, found '/etc/a.png'"),
        ("C:\\a.png\tmild\tfire", "image_path must be relative to the data's folder, found 'C:\\a.png'"),
        ("data/../../a.png\tmild\tfire", "image_path must not contain '..', found 'data/../../a.png'"),
        ("..\\a.png\tmild\tfire", "image_path must not contain '..', found '..\\a.png'"),
        ("ok.png\tsevere\tfire", "damage: 'ok.png' is labelled 'severe' here and 'mild' in bad.tsv:2"),
        ("a.png\t2\tfire", "damage: the label '2' is a number; say in data.integer_labels.damage"),
    ],
)
def test_bad_rows_are_named(root, row, message):
    text = f"image_path\tdamage\tkind\nok.png\tmild\tfire\n{row}\nlast.png\tmild\tfire\n"
    assert _error(root, text).startswith(f"bad.tsv:3: {message}")


def test_all_bad_rows_are_found_at_once(root):
    text = "image_path\tdamage\tkind\nok.png\tmild\tfire\n\ta\tb\nb.png\tx\tfire\nok.png\t\t\nc.png\nd.png\tx\t\n"
    assert _error(root, text) == "bad.tsv:3: image_path is empty; and 3 more bad rows: lines 4, 6, 7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_path\tdamge\tkind\n", "bad.tsv:1: no column 'damage' (did you mean 'damge'?); it has image_path,"),
        ("image_path\tdamage\tkind\tkind\n", "bad.tsv:1: the column 'kind' is there more than once"),
        ("image_path\tdamage\tkind\n\n", "bad.tsv:1: the table has no rows"),
        ("", "bad.tsv:1: the table is empty"),
        (b"image_path\tdamage\tkind\na\xff.png\tmild\tfire\n", "bad.tsv:2: not a text in UTF-8 (byte 0xff)"),
        ("image_path\tdamage\tkind\na.png\tmild\t\n", "data.train: no image has a label for the task kind (bad.tsv)"),
    ],
)
def test_bad_tables_are_named(root, text, message):
    assert _error(root, text).startswith(message)


def test_missing_tables_are_named(root):
    with pytest.raises(InputError, match=r"nowhere.tsv: the table cannot be read \(No such file"):
        _ready(root, val="nowhere.tsv")
    with pytest.raises(InputError, match=r"tests.tsv: the table cannot be read"):
        _ready(root, test="tests.tsv")


def test_rows_of_one_image_are_merged_and_counted(root):
    rows = [("1", "a.png", "mild", ""), ("2", "b.png", "", "fire"), ("3", "./a.png", "", "flood"),
            ("1", "a.png", "mild", "")]  # fmt: skip
    write_table(root / "t.tsv", HEADER, rows)
    with pytest.warns(UserWarning, match=r"data.train: 2 rows list an image that was listed before"):
        table = _ready(root, train="t.tsv").splits["train"]
    assert table.targets == [(1, 1), (-1, 0)]


def test_a_class_that_a_file_lacks_moves_no_index(root):
    write_table(root / "dev.tsv", HEADER, [("1", PICTURES[20], "severe", "other")])
    assert _ready(root).splits["val"].targets == [(2, 2)]


def test_a_task_without_validation_labels_is_warned_of(root):
    write_table(root / "dev.tsv", HEADER, [("1", PICTURES[20], "severe", "")])
    with pytest.warns(UserWarning, match=r"data.val: no image has a label for the task kind"):
        _ready(root)


def test_labels_that_hardly_go_together_are_counted_and_kept(root):
    combination = {"damage": "severe", "kind": "flood"}
    number = sum((row[2], row[3]) == ("severe", "flood") for row in ROWS[:16])
    with pytest.warns(UserWarning, match=f"train: {number} images are labelled damage 'severe' and kind 'flood'"):
        data = _ready(root, unlikely=[combination])
    assert len(data.splits["train"]) == 16
    with pytest.raises(InputError, match=r"unlikely: kind has no class 'floods' \(did you mean 'flood'\?\)"):
        _ready(root, unlikely=[{"kind": "floods"}])


def test_tables_of_single_tasks_are_joined_on_the_path(root):
    header = ("source", "image_id", "image_path", "class_label")
    write_table(root / "damage.tsv", header, [("s", "1", PICTURES[0], "mild"), ("s", "2", PICTURES[1], "severe")])
    write_table(root / "kind.tsv", header, [("s", "2", PICTURES[1], "flood"), ("s", "3", PICTURES[2], "fire")])
    table = _ready(root, train={"damage": "damage.tsv", "kind": "kind.tsv"}).splits["train"]
    assert table.paths == [str(root / path) for path in PICTURES[:3]]
    assert table.targets == [(1, -1), (2, 1), (-1, 0)]
    assert list(map(str, table.origins)) == ["damage.tsv:2", "damage.tsv:3", "kind.tsv:3"]
    with pytest.raises(InputError, match=r"no task 'kid'.*did you mean 'kind'"):
        _ready(root, train={"kid": "kind.tsv"})


def test_integer_labels_go_through_the_names(root):
    rows = [("1", "a.png", "0", "0"), ("2", "b.png", "mild", "2"), ("3", "c.png", "", "1")]
    write_table(root / "t.tsv", HEADER, rows)
    orders = {"damage": ["little", "mild", "severe"], "kind": ["flood", "other", "fire"]}
    assert _ready(root, train="t.tsv", integer_labels=orders).splits["train"].targets == [(0, 1), (1, 0), (-1, 2)]
    message = _error(root, "image_path\tdamage\tkind\na.png\tmild\t3\n", integer_labels=orders)
    assert message == "bad.tsv:2: kind: the label '3' is not in 0 to 2"
    with pytest.raises(InputError, match=r"kind needs each of the task's classes once .*found flood, fire"):
        _ready(root, integer_labels={"kind": ["flood", "fire"]})
    with pytest.raises(InputError, match="no task 'knd'"):
        _ready(root, integer_labels={"knd": ["flood", "fire"]})


def test_balancing_draws_rare_classes_more_often(root):
    rows = [(str(i), path, "severe" if i < 2 else "little", "fire") for i, path in enumerate(PICTURES[:16])]
    write_table(root / "train.tsv", HEADER, rows)

    def share(**options) -> float:
        loader = _ready(root, **options).train_dataloader()
        labels = []
        for epoch in range(30):
            loader.sampler.set_epoch(epoch)
            labels += [batch["labels"][:, 0] for batch in loader]
        return (torch.cat(labels) == 2).float().mean().item()

    assert share() == pytest.approx(2 / 16, abs=0.02)
    assert share(balance=["damage"]) == pytest.approx(1 / 2, abs=0.08)
    with pytest.raises(InputError, match=r"balance: no task 'damag'.*did you mean 'damage'"):
        _ready(root, balance=["damag"])


class _Recorder(pl.LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[dict] = []
        self.states: list[int] = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        self.states.append(self.trainer.datamodule.state_dict()["batches"])
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(data: MultitaskImages, folder, **options) -> _Recorder:
    module = _Recorder()
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "limit_val_batches": 0, **options}
    trainer = pl.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data)
    return module


def _labelled(batches) -> list[int]:
    return torch.stack([(batch["labels"] != -1).sum(dim=0) for batch in batches]).sum(dim=0).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_labelled_counts_the_batches_of_an_optimizer_step(root, workers):
    """8 batches, of which the trainer takes 5, in steps of 2: two steps of two batches, and one of one."""
    data = _ready(root, batch_size=2, num_workers=workers)
    batches = _fit(data, root, accumulate_grad_batches=2, limit_train_batches=5).batches
    assert len(batches) == 5
    for start, end in ((0, 2), (2, 4), (4, 5)):
        for batch in batches[start:end]:
            assert batch["labelled"].tolist() == _labelled(batches[start:end])


@pytest.mark.parametrize("done", [3, 4])
def test_resuming_goes_on_with_the_same_batches(root, done):
    """Interrupted within a step of three batches, that step ends where it would have ended."""
    whole = _fit(_ready(root, batch_size=2), root, accumulate_grad_batches=3).batches
    data = _ready(root, batch_size=2)
    data.load_state_dict({"batches": done})
    rest = _fit(data, root, accumulate_grad_batches=3).batches
    assert [batch["path"] for batch in rest] == [batch["path"] for batch in whole[done:]]
    assert rest[0]["labelled"].tolist() == _labelled(whole[done:6])
    assert rest[-1]["labelled"].tolist() == _labelled(whole[6:])


def test_the_state_counts_the_batches_that_were_given_out(root):
    module = _fit(_ready(root, batch_size=2), root, accumulate_grad_batches=4)
    assert module.states == [1, 2, 3, 4, 5, 6, 7, 0]


def test_unreadable_images_are_listed_with_their_row(root):
    (root / PICTURES[2]).unlink()
    (root / PICTURES[17]).write_text("no image")
    data = MultitaskImages(str(root), TASKS, image_size=8, batch_size=4, num_workers=0, max_unreadable=0.2)
    logger = pl.loggers.CSVLogger(str(root / "runs"))
    module = _fit(data, root, logger=logger)
    assert sum(len(batch["labels"]) for batch in module.batches) == 16
    with (root / "runs/lightning_logs/version_0/unreadable.csv").open(newline="") as stream:
        rows = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
    assert rows == {str(root / PICTURES[2]): "cannot be read (No such file or directory), train.tsv:4"}
    batch = next(iter(data.val_dataloader()))
    assert batch["path"] == [str(root / PICTURES[row]) for row in (16, 18, 19)]
    assert batch["unreadable"][0][1].endswith(", dev.tsv:3")


def test_duplicates_are_left_out_and_listed(root):
    """One within training, one of training in validation, one of validation in test."""
    write_table(root / "test.tsv", HEADER, ROWS[20:])
    write_table(root / "dev.tsv", HEADER, ROWS[16:20])
    for copy, original in ((3, 1), (5, 16), (17, 22)):
        (root / PICTURES[copy]).write_bytes((root / PICTURES[original]).read_bytes())
    assert len(_ready(root).splits["train"]) == 16
    data = MultitaskImages(str(root), TASKS, image_size=8, batch_size=4, num_workers=0, deduplicate=True)
    _fit(data, root, logger=pl.loggers.CSVLogger(str(root / "runs")))
    assert {split: len(table) for split, table in data.splits.items()} == {"train": 14, "val": 3, "test": 4}
    with (root / "runs/lightning_logs/version_0/duplicates.csv").open(newline="") as stream:
        rows = {(row["path"], row["row"], row["split"], row["same_as"]) for row in csv.DictReader(stream)}
    assert rows == {
        (str(root / PICTURES[3]), "train.tsv:5", "train", str(root / PICTURES[1])),
        (str(root / PICTURES[5]), "train.tsv:7", "train", str(root / PICTURES[16])),
        (str(root / PICTURES[17]), "dev.tsv:3", "val", str(root / PICTURES[22])),
    }
    with pytest.warns(UserWarning, match="3 images with the content of another were left out"):
        _ready(root, deduplicate=True)
