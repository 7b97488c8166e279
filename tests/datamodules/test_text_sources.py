"""Sources of words in pictures: what is kept of their labels, what is refused and how."""

from __future__ import annotations

import io
import json

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import TextImages
from vision.errors import InputError


def _png(shade: int, mode: str = "RGB", size: tuple[int, int] = (20, 10), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.full((size[1], size[0]), shade * 257, np.uint16)).save(stream, "PNG")
    else:
        Image.new("RGB", size, (shade,) * 3).convert(mode).save(stream, kind)
    return stream.getvalue()


def _lmdb(folder, labels: list[str], samples: str | None = None, **extra: bytes | None):
    """An LMDB with one grey picture a label; ``extra`` keys replace others or, being None, delete them."""
    entries: dict[str, bytes | None] = {"num-samples": str(len(labels) if samples is None else samples).encode()}
    for number, label in enumerate(labels, 1):
        entries[f"image-{number:09d}"] = _png(number)
        entries[f"label-{number:09d}"] = label.encode()
    entries |= {name.replace("_", "-"): value for name, value in extra.items()}
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            if value is not None:
                transaction.put(key.encode(), value)
    return folder


def _ready(root, stage: str = "validate", **options) -> TextImages:
    data = TextImages(str(root), **{"num_workers": 0, "batch_size": 4, "image_size": (8, 32), **options})
    data.setup(stage)
    return data


def _texts(loader) -> list[str]:
    return [text for batch in loader for text in batch["text"]]


def _error(root, **options) -> str:
    with pytest.raises(InputError) as caught:
        _ready(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{root}/", "")


# ---------------------------------------------------------------------------------------------------------- LMDBs
def test_a_batch_of_an_lmdb(tmp_path):
    _lmdb(tmp_path / "val", ["Hello World!", "Café", "x2"], path_000000001=b"ignored")
    batch = next(iter(_ready(tmp_path).val_dataloader()))
    assert batch["text"] == ["helloworld", "cafe", "x2"]
    assert batch["path"] == [f"{tmp_path}/val#{number}" for number in (1, 2, 3)]
    assert batch["image"].shape == (3, 3, 8, 32)
    grey = (torch.tensor([1, 2, 3]) / 255 - 0.5) / 0.5
    assert torch.allclose(batch["image"].mean(dim=(1, 2, 3)), grey)
    assert batch["unreadable"] == []


def test_every_dropped_word_has_its_own_reason(tmp_path, capsys):
    labels = ["ok", " \t", "x" * 26, "中文", "no picture", "no label", "bad", "fine", "late"]
    bad = {"image_000000005": None, "label_000000006": None, "label_000000007": b"\xff\xfe"}
    _lmdb(tmp_path / "val", labels, samples="8", **bad)
    data = _ready(tmp_path)
    assert _texts(data.val_dataloader()) == ["ok", "fine"]
    assert data.splits["val"].sources[0].dropped == {
        "empty": 1,
        "too long": 1,
        "no character of the charset": 1,
        "missing image": 1,
        "missing label": 1,
        "label is no UTF-8": 1,
        "beyond num-samples": 1,
    }
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:5] == ["dropped", "from", "kept", "empty", "too"]
    assert row.split() == ["val:", str(tmp_path / "val"), "2", *"1111111"]


def test_nothing_is_printed_where_nothing_is_dropped(tmp_path, capsys):
    _lmdb(tmp_path / "val", ["a", "b"])
    _ready(tmp_path)
    assert capsys.readouterr().out == ""


def test_more_samples_are_promised_than_there_are(tmp_path):
    _lmdb(tmp_path / "val", ["a", "b"], samples="2000000000")
    data = _ready(tmp_path)
    assert _texts(data.val_dataloader()) == ["a", "b"]
    assert data.splits["val"].sources[0].dropped == {"missing label": 1_999_999_998}


def test_an_empty_result_is_refused_with_the_counts(tmp_path):
    _lmdb(tmp_path / "val/one", ["中", "文", "x" * 30])
    _lmdb(tmp_path / "val/two", ["  "])
    assert _error(tmp_path) == (
        "data.val: no word is left of val/one (2 no character of the charset, 1 too long), val/two (1 empty)"
    )


def test_letters_outside_ascii_are_kept_where_the_charset_has_some(tmp_path):
    _lmdb(tmp_path / "val", ["ПЛЮЩ", "xyz"])
    data = _ready(tmp_path, charset="лпщю")
    assert _texts(data.val_dataloader()) == ["плющ"]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (None, "val/data.mdb: no key num-samples; expected an LMDB of words (num-samples, image-*, label-*)"),
        (b"many", "val/data.mdb: num-samples is 'many', expected a number up to 2,147,483,647"),
        (b"-3", "val/data.mdb: num-samples is '-3', expected a number up to 2,147,483,647"),
    ],
)
def test_a_senseless_number_of_samples(tmp_path, samples, message):
    _lmdb(tmp_path / "val", ["a"], num_samples=samples)
    assert _error(tmp_path) == message


def test_damaged_files(tmp_path):
    whole = (_lmdb(tmp_path / "whole", ["word"] * 300) / "data.mdb").read_bytes()
    pages = bytearray(whole)
    pages[8192 : len(pages) // 2] = bytes(len(pages) // 2 - 8192)
    files = {
        b"": "val/data.mdb: empty file (0 bytes), expected an LMDB",
        b"no database" * 2000: "val/data.mdb: cannot be opened as an LMDB (File is not an LMDB file)",
        whole[: len(whole) // 2]: f"val/data.mdb: truncated, it has {len(whole) // 2:,} of {len(whole):,} bytes",
        bytes(pages): "val/data.mdb: damaged (Located page was wrong type)",
    }
    for number, (content, message) in enumerate(files.items()):
        place = tmp_path / str(number)
        (place / "val").mkdir(parents=True)
        (place / "val/data.mdb").write_bytes(content)
        assert _error(place) == message


def test_sources_that_are_not_there(tmp_path):
    assert _error(tmp_path) == "data.val: no such folder or list: val"
    (tmp_path / "val").mkdir()
    expected = "has neither data.mdb nor labels (.tsv, .csv, .jsonl, .txt, .json)"
    assert _error(tmp_path) == f"data.val: val {expected}"
    (tmp_path / "val/data.mdb").mkdir()
    assert _error(tmp_path) == f"data.val: val {expected}"


def test_pictures_that_cannot_be_read_are_left_out_and_replaced(tmp_path):
    labels = [f"w{number}" for number in range(1, 9)]
    _lmdb(tmp_path / "val", labels, image_000000002=b"", image_000000003=_png(9)[:60], image_000000004=b"nothing")
    data = _ready(tmp_path, stage="validate", batch_size=8, max_unreadable=0.9)
    batch = next(iter(data.val_dataloader()))
    assert batch["text"] == ["w1", "w5", "w6", "w7", "w8"]
    reasons = {path.rpartition("#")[2]: reason for path, reason in batch["unreadable"]}
    assert reasons == {
        "2": "empty file (0 bytes)",
        "3": "the PNG data is truncated, damaged or of an unsupported kind",
        "4": "not an image of a known format, or its header is damaged",
    }
    data = _ready(tmp_path, stage="fit", train="val", batch_size=8, max_unreadable=0.3)
    batch = next(iter(data.train_dataloader()))
    assert len(batch["text"]) == 8
    assert not {"w2", "w3", "w4"} & set(batch["text"])
    with pytest.raises(InputError, match=r"3 of 8 pictures cannot be read"):
        data.on_before_batch_transfer(batch, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "I;16", "1"])
def test_kinds_of_pictures(tmp_path, mode):
    picture = _png(255, mode, kind="JPEG" if mode == "CMYK" else "PNG")
    _lmdb(tmp_path / "val", ["a", "b"], image_000000001=picture, image_000000002=_png(255, mode="RGB", size=(1, 1)))
    batch = next(iter(_ready(tmp_path).val_dataloader()))
    assert batch["image"].min() > 0.97


# ---------------------------------------------------------------------------------------------------------- lists
LISTS = {
    "labels.tsv": "a b.png\tHello World\nü.png\tBye\r\n\n",
    "labels.csv": 'filename,words\na b.png,"Hello, World"\nü.png,Bye\n',
    "labels.txt": "a b.png\tHello World\nü.png   Bye\n",
    "labels.jsonl": '{"filename": "a b.png", "text": "Hello World"}\n\n{"filename": "ü.png", "text": "Bye", "x": 1}\n',
    "labels.json": json.dumps(
        {
            "metainfo": {},
            "data_list": [
                {"img_path": "a b.png", "instances": [{"text": "Hello World"}]},
                {"img_path": "ü.png", "instances": [{"text": "Bye"}]},
            ],
        }
    ),
}


def _folder(place, name: str = "labels.tsv", text: str | None = None):
    place.mkdir(parents=True)
    (place / "a b.png").write_bytes(_png(50))
    (place / "ü.png").write_bytes(_png(60))
    (place / name).write_text(LISTS[name] if text is None else text, encoding="utf-8")
    return place


@pytest.mark.parametrize("name", LISTS)
def test_spellings_of_a_list(tmp_path, name):
    folder = _folder(tmp_path / "val", name)
    for source in ("val", f"val/{name}"):
        batch = next(iter(_ready(tmp_path, val=source).val_dataloader()))
        assert batch["text"] == ["helloworld", "bye"]
        assert batch["path"] == [str(folder / "a b.png"), str(folder / "ü.png")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.tsv", "", "val/labels.tsv: the list has no rows"),
        ("labels.tsv", "\tword\n", "val/labels.tsv:1: expected a path and a label, found no path"),
        ("labels.tsv", "b.png\tword\n", "val/labels.tsv: no such picture: val/b.png (paths are relative to"),
        ("labels.jsonl", '{"filename": "ü.png"}\n{"text"', "val/labels.jsonl:2: not JSON (Expecting ':' delimiter"),
        ("labels.jsonl", '{"file": 1}\n', 'val/labels.jsonl:1: expected {"filename": ..., "text": ...}, found'),
        (
            "labels.jsonl",
            '{"filename": "\\ud800.png", "text": "a"}',
            "val/labels.jsonl:1: no name that a file",
        ),
        ("labels.tsv", "a\0.png\ta\n", "val/labels.tsv:1: no name that a file may have: 'a\\x00.png'"),
        ("labels.json", "[]", "val/labels.json: expected MMOCR's"),
        ("labels.json", '{"data_list": [{}]}', "val/labels.json: entry 1 of data_list has no img_path"),
    ],
)
def test_bad_lists_are_named(tmp_path, name, text, message):
    _folder(tmp_path / "val", name, text)
    assert _error(tmp_path).startswith(message)


def test_a_list_that_is_no_text(tmp_path):
    _folder(tmp_path / "val", "labels.tsv", "x")
    (tmp_path / "val/labels.tsv").write_bytes(b"a b.png\tok\n\xff\xfe\n")
    assert _error(tmp_path) == "val/labels.tsv:2: not a text in UTF-8 (byte 0xff)"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.tsv", "a b.png\nü.png\tbye\n"),
        ("labels.jsonl", '{"filename": "a b.png", "text": "\\ud800"}\n{"filename": "ü.png", "text": "bye"}'),
        ("labels.json", '{"data_list": [{"img_path": "x"}, {"img_path": "ü.png", "instances": [{"text": "bye"}]}]}'),
    ],
)
def test_rows_without_a_label_are_counted(tmp_path, name, text):
    _folder(tmp_path / "val", name, text)
    data = _ready(tmp_path)
    assert data.splits["val"].sources[0].dropped == {"missing label": 1}
    assert _texts(data.val_dataloader()) == ["bye"]


# ---------------------------------------------------------------------------------------------------- trees, sets
def test_trees_and_several_sources_are_joined_in_order(tmp_path):
    _lmdb(tmp_path / "synth/MJ/train", ["mj"])
    _lmdb(tmp_path / "synth/ST", ["st"])
    _folder(tmp_path / "own")
    data = _ready(tmp_path, val=["own", "synth"])
    assert _texts(data.val_dataloader()) == ["helloworld", "bye", "mj", "st"]


def test_each_lmdb_of_the_test_tree_is_a_set(tmp_path):
    for name in ("SVT", "IIIT5k", "u14m/curve", "u14m/SVT"):
        _lmdb(tmp_path / "test" / name, [name[:3].replace("/", ""), "x"])
    _folder(tmp_path / "test/own")
    data = _ready(tmp_path, "test")
    assert data.test_sets == ["IIIT5k", "test/SVT", "own", "u14m/SVT", "curve"]
    assert [_texts(loader)[0] for loader in data.test_dataloader()] == ["iii", "svt", "helloworld", "u14", "u14"]
    named = {"common": ["test/SVT", "test/IIIT5k"], "union": "test/u14m"}
    data = _ready(tmp_path, "test", test=named)
    assert data.test_sets == ["common", "union"]
    assert [len(_texts(loader)) for loader in data.test_dataloader()] == [4, 4]
    data = _ready(tmp_path, "predict", test=named)
    assert len(_texts(data.predict_dataloader())) == 8


def test_a_stage_reads_what_it_needs(tmp_path):
    _lmdb(tmp_path / "test/SVT", ["a"])
    data = _ready(tmp_path, "test")
    assert data.test_sets == ["SVT"]
    with pytest.raises(InputError, match=r"data.train: no such folder or list"):
        data.setup("fit")


def test_pictures_without_labels_are_predicted(tmp_path):
    folder = _folder(tmp_path / "val")
    (folder / "labels.tsv").unlink()
    expected = [str(folder / "a b.png"), str(folder / "ü.png")]
    for source in ("val", "val/*.png", ["val/a b.png", "val/ü.png"]):
        batch = next(iter(_ready(tmp_path, "predict", predict=source).predict_dataloader()))
        assert batch["path"] == expected
        assert batch["text"] == ["", ""]


def test_an_lmdb_may_be_reached_by_two_names(tmp_path):
    _lmdb(tmp_path / "val", ["a", "b"])
    (tmp_path / "link").symlink_to("val")
    data = _ready(tmp_path, val=["val", "link"])
    assert _texts(data.val_dataloader()) == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"charset": ""}, "charset '' has no characters"),
        ({"charset": "abca"}, "charset 'abca': 'a' is there twice"),
        ({"max_label_length": 0}, "max_label_length must be at least 1, got 0"),
        ({"augment": "much"}, "augment must be none, randaugment or hard, got much"),
        ({"rotate_90": 2}, "rotate_90 must be in [0, 1], got 2"),
        ({"rotation": float("nan")}, "rotation must be a number of degrees, got nan"),
        ({"crop_pct": 0.9}, "crop_pct: words are never cropped; leave it out"),
        ({"val": []}, "data.val: expected a source at least, found none"),
    ],
)
def test_arguments_are_checked(tmp_path, options, message):
    assert _error(tmp_path, **options) == message
