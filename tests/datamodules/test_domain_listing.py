"""Two domains from whatever folders and lists there are: the same pictures with the same numbers, or one line that
says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import Domains
from datamodules.domain_classes import published
from vision.errors import InputError

CLASSES = ("back_pack", "bike", "bike_helmet", "pen")
OFFICE = published()["orders"]["office31"]
PIXEL = Image.new("RGB", (2, 2))


def _write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        PIXEL.save(folder / path, format="PNG")


def _list(file: Path, rows) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{' '.join(map(str, row))}\n" for row in rows))


def _ready(root: Path, **options) -> Domains:
    data = Domains(str(root), **{"num_workers": 0, **options})
    data.setup()
    return data


def _rows(data: Domains, split: str) -> list[tuple[str, str]]:
    """(class/file, class) of a split; files in order."""
    listing = data.splits[split]
    names = [data.target_names[number] for number in listing.targets]
    return sorted(("/".join(Path(path).parts[-2:]), name) for path, name in zip(listing.paths, names, strict=True))


def _refusal(root: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        _ready(root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{root}/", "")


@pytest.fixture
def office(tmp_path) -> Path:
    """Two domains with the classes 0, 1, 10 and 20 of Office-31, two pictures each."""
    for domain in ("amazon", "dslr"):
        _write(tmp_path, *(f"{domain}/{name}/frame_{i}.jpg" for name in CLASSES for i in range(2)))
    return tmp_path


# ----------------------------------------------------------------------------------------------------------- layouts
@pytest.mark.parametrize("listed", ["domain_adaptation_images/{}/images", "{}/images", "{}", "Office/{}"])
@pytest.mark.parametrize("on_disk", ["domain_adaptation_images/{}/images", "{}/images", "{}", "{}/"])
def test_every_prefix_of_office31_finds_the_same_files(tmp_path, listed, on_disk):
    for domain, number in (("amazon", 2), ("dslr", 3)):
        shown = domain.title() if on_disk.endswith("/") else domain
        _write(tmp_path, *(f"{on_disk.format(shown)}/{c}/frame_{i}.jpg" for c in CLASSES for i in range(number)))
        prefix = listed.format(domain.title() if listed.startswith("Office") else domain)
        rows = [(f"{prefix}/{c}/frame_{i}.jpg", OFFICE.index(c)) for c in CLASSES for i in range(number)]
        _list(tmp_path / f"lists/{domain}.txt", rows)
    data = _ready(tmp_path, source="lists/amazon.txt", target="lists/dslr.txt", class_order="office31")
    assert data.class_names == list(CLASSES)
    assert _rows(data, "train") == [(f"{c}/frame_{i}.jpg", c) for c in CLASSES for i in range(2)]
    assert _rows(data, "test") == [(f"{c}/frame_{i}.jpg", c) for c in CLASSES for i in range(3)]
    assert all(Path(path).is_file() for split in data.splits.values() for path in split.paths)


@pytest.mark.parametrize("below", ["", "images/"])
def test_folders_and_tables_have_the_numbers_of_the_lists(tmp_path, below):
    for domain in ("amazon", "dslr"):
        _write(tmp_path, *(f"{domain}/{below}{c}/frame.jpg" for c in CLASSES))
    folders = _ready(tmp_path, source="amazon", target="dslr", class_order="office31")
    (tmp_path / "a.csv").write_text("path,label\n" + "".join(f"amazon/{c}/frame.jpg,{c}\n" for c in CLASSES))
    (tmp_path / "d.tsv").write_text(
        "label\tpath\n" + "".join(f"{OFFICE.index(c)}\tdslr/{c}/frame.jpg\n" for c in CLASSES)
    )
    tables = _ready(tmp_path, source="a.csv", target="d.tsv", class_order="office31")
    assert folders.class_names == tables.class_names == list(CLASSES)
    for split in ("train", "test"):
        assert _rows(folders, split) == _rows(tables, split) == [(f"{c}/frame.jpg", c) for c in CLASSES]


@pytest.mark.parametrize("folder", ["RealWorld", "Real World"])
def test_a_path_with_blanks_and_the_two_spellings_of_the_real_world(tmp_path, folder):
    _write(tmp_path, f"{folder}/Alarm_Clock/a b.jpg", "Art/Alarm_Clock/a.jpg", "Art/Alarm_Clock/b.jpg")
    for listed in ("RealWorld", "Real World"):
        _list(tmp_path / "real.txt", [(f"{listed}/Alarm_Clock/a b.jpg", 0)])
        for target in ("real.txt", "RealWorld", "Real World"):
            data = _ready(tmp_path, source="Art", target=target, class_order="officehome_dcc")
            assert data.splits["test"].paths == [f"{tmp_path}/{folder}/Alarm_Clock/a b.jpg"]


def test_lists_of_visda_without_the_domain(tmp_path):
    _write(tmp_path, "train/train/src_1.png", "train/bus/src_2.png", "validation/train/1.jpg", "validation/bus/2.jpg")
    _list(tmp_path / "lists/visda_train_list.txt", [("train/src_1.png", 10), ("bus/src_2.png", 2)])
    _list(tmp_path / "lists/validation.txt", [("train/1.jpg", 10), ("bus/2.jpg", 2)])
    data = _ready(tmp_path, source="lists/visda_train_list.txt", target="lists/validation.txt", class_order="visda")
    assert data.splits["train"].paths == [f"{tmp_path}/train/train/src_1.png", f"{tmp_path}/train/bus/src_2.png"]
    assert data.splits["test"].paths == [f"{tmp_path}/validation/train/1.jpg", f"{tmp_path}/validation/bus/2.jpg"]
    assert data.class_names == ["bus", "train"]


def test_a_list_without_the_domain_that_several_domains_have(office):
    rows = [(f"{c}/frame_0.jpg", OFFICE.index(c)) for c in CLASSES]
    _list(office / "lists/dslr_list.txt", rows)
    _list(office / "lists/other.txt", rows)
    data = _ready(office, source="amazon", target="lists/dslr_list.txt", class_order="office31")
    assert {Path(path).parts[-3] for path in data.splits["test"].paths} == {"dslr"}
    message = _refusal(office, source="amazon", target="lists/other.txt", class_order="office31")
    assert message.startswith("lists/other.txt:1: 'back_pack/frame_0.jpg' is in several folders of ")
    assert "amazon, dslr" in message


def test_classes_of_folders_are_sorted_without_regard_to_case(tmp_path):
    _write(tmp_path, *(f"source/{c}/a.png" for c in ("TV", "Table", "Webcam", "bed")))
    _write(tmp_path, *(f"target/{c}/a.png" for c in ("toys", "TV")))
    data = _ready(tmp_path)
    assert data.class_names == ["bed", "Table", "TV", "Webcam"]
    assert data.target_names == ["bed", "Table", "TV", "Webcam", "toys"]
    assert [target for _, target in _rows(data, "test")] == ["TV", "toys"]
    assert sorted(data.splits["test"].targets) == [2, 4]


def test_numbers_of_lists_are_called_after_the_folders(office):
    for domain in ("amazon", "dslr"):
        _list(office / f"{domain}.txt", [(f"{domain}/{c}/frame_0.jpg", i) for i, c in enumerate(reversed(CLASSES))])
    data = _ready(office, source="amazon.txt", target="dslr.txt")
    assert data.class_names == ["pen", "bike_helmet", "bike", "back_pack"]
    message = _refusal(office, source="amazon.txt", target="dslr")
    assert message.startswith("amazon.txt: its labels are numbers, and those of dslr are names: data.class_order")


def test_numbers_of_lists_are_not_those_of_folders_called_by_numbers(tmp_path):
    for domain in ("source", "target"):
        _write(tmp_path, *(f"{domain}/{9 - i}/a.png" for i in range(3)))
        _list(tmp_path / f"{domain}.txt", [(f"{domain}/{9 - i}/a.png", i) for i in range(3)])
    data = _ready(tmp_path, source="source.txt", target="target.txt")
    assert data.class_names == ["0", "1", "2"]
    assert data.splits["test"].targets == [0, 1, 2]


def test_targets_without_labels(office):
    _write(office, "plain/1.png", "plain/more/2.png")
    _list(office / "bare.txt", [("dslr/pen/frame_0.jpg",), ("dslr/bike/frame_1.jpg",)])
    (office / "bare.csv").write_text("path\ndslr/pen/frame_0.jpg\n")
    for target, names in (("plain", ["1.png", "2.png"]), ("bare.txt", ["frame_0.jpg", "frame_1.jpg"])):
        data = _ready(office, source="amazon", target=target)
        assert [Path(path).name for path in data.splits["test"].paths] == names
        assert data.splits["test"].targets == [-1, -1]
        assert data.target_names == data.class_names == sorted(CLASSES)
    assert _ready(office, source="amazon", target="bare.csv").splits["test"].targets == [-1]
    labelled = _ready(office, source="amazon", target="bare.txt", target_test="dslr")
    assert len(labelled.splits["target"]) == 2
    assert labelled.splits["test"].targets == [0, 0, 1, 1, 2, 2, 3, 3]
    assert "classes of the target are left out by their labels" in _refusal(
        office, source="amazon", target="plain", split=[2, 1, 1]
    )


# ------------------------------------------------------------------------------------------------------------ splits
def _class_lists() -> list[tuple[str, str, list[str], list[str], list[str]]]:
    """The published splits, from their counts: data set, setting, and the classes of each of the three parts."""
    counts = {
        ("office31", "unida"): (10, 10, 11),
        ("office31", "pda"): (10, 21, 0),
        ("office31", "closed"): (31, 0, 0),
        ("officehome", "unida"): (10, 5, 50),
        ("officehome", "osda"): (25, 0, 40),
        ("officehome", "pda"): (25, 40, 0),
        ("officehome", "closed"): (65, 0, 0),
        ("visda", "unida"): (6, 3, 3),
        ("visda", "osda"): (6, 0, 6),
        ("visda", "pda"): (6, 6, 0),
        ("visda", "closed"): (12, 0, 0),
        ("domainnet", "unida"): (150, 50, 145),
    }
    cases = []
    for (data, setting), (common, source, target) in counts.items():
        order = published()["orders"]["officehome_uniot" if data == "officehome" else data]
        assert len(order) == common + source + target
        ends = common, common + source
        cases.append((data, setting, order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]))
    # The one that is no row of numbers: 10 common classes as ever, and those from number 20 on.
    cases.append(("office31", "osda", OFFICE[:10], [], OFFICE[20:]))
    return cases


@pytest.mark.parametrize(("name", "setting", "common", "source", "target"), _class_lists())
def test_published_splits(tmp_path, name, setting, common, source, target):
    order = published()["orders"]["officehome_dcc" if name == "officehome" else name]
    for domain in ("source", "target"):
        rows = [(f"{domain}/{i}.png", i) for i in range(len(order))]
        _write(tmp_path, *(row[0] for row in rows[:5]))
        _list(tmp_path / f"{domain}.txt", rows)
    data = _ready(tmp_path, source="source.txt", target="target.txt", split=name, setting=setting)
    assert set(data.class_names[: len(common)]) == set(common)
    assert set(data.class_names[len(common) :]) == set(source)
    assert set(data.target_names[len(data.class_names) :]) == set(target)
    assert {data.class_names[number] for number in data.splits["train"].targets} == {*common, *source}
    assert {data.target_names[number] for number in data.splits["test"].targets} == {*common, *target}
    assert data.rejects == (setting in ("unida", "osda"))
    assert data.sizes == {"source": len(common) + len(source), "target": len(common) + len(target)}


def test_the_two_orders_of_office_home_cannot_be_mixed_up(tmp_path):
    numbers = {}
    for author in ("dcc", "uniot"):
        order = published()["orders"][f"officehome_{author}"]
        numbers[author] = {name: order.index(name) for name in ("Bed", "TV", "Table")}
        for domain in ("Art", "Product"):
            _write(tmp_path, *(f"{domain}/{name}/1.jpg" for name in numbers[author]))
            rows = [(f"{domain}/{name}/1.jpg", number) for name, number in numbers[author].items()]
            _list(tmp_path / f"{author}/{domain}.txt", rows)
    assert numbers["dcc"] == {"Bed": 3, "TV": 58, "Table": 59}
    assert numbers["uniot"] == {"Bed": 3, "TV": 63, "Table": 58}
    for author in ("dcc", "uniot"):
        options = {"target": f"{author}/Product.txt", "class_order": f"officehome_{author}"}
        lists = _ready(tmp_path, source=f"{author}/Art.txt", **options)
        assert _rows(lists, "test") == [("Bed/1.jpg", "Bed"), ("TV/1.jpg", "TV"), ("Table/1.jpg", "Table")]
        assert _rows(_ready(tmp_path, source="Art", **options), "test") == _rows(lists, "test")
    mixed = {"source": "dcc/Art.txt", "target": "uniot/Product.txt"}
    assert _refusal(tmp_path, **mixed, class_order="officehome_dcc") == (
        "uniot/Product.txt:2: label 63 is 'Trash_Can' in data.class_order, but the picture lies in 'TV': "
        "the list has another order (data.class_order: officehome_uniot would fit)"
    )
    message = _refusal(tmp_path, **mixed)
    assert message.startswith("uniot/Product.txt:2: the pictures in 'TV' have the label 63, but 58 in dcc/Art.txt:2")


def test_splits_by_number_and_drawn_orders(tmp_path):
    for domain in ("source", "target"):
        _write(tmp_path, *(f"{domain}/{i}/a.png" for i in range(12)))
    data = _ready(tmp_path, split=[2, 1, 3])
    assert data.class_names == ["0", "1", "2"]
    assert data.target_names == ["0", "1", "2", "3", "4", "5"]
    assert data.splits["test"].targets == [0, 1, 3, 4, 5]
    drawn = [_ready(tmp_path, split=[2, 1, 3], shuffle_classes=seed) for seed in (0, 0, 1)]
    assert drawn[0].target_names == drawn[1].target_names != drawn[2].target_names
    for one in drawn:
        for split in ("train", "test"):
            assert all(path.split("/")[0] == name for path, name in _rows(one, split))
    (tmp_path / "order.txt").write_text("\n".join(map(str, range(11, -1, -1))))
    assert _ready(tmp_path, split=[2, 1, 3], class_order="order.txt").class_names == ["11", "10", "9"]


# ------------------------------------------------------------------------------------------------------ what is wrong
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "amazn"}, "data.source: no folder or list (.txt, .csv, .tsv) 'amazn' in "),
        ({"source": "amazn"}, "(did you mean 'amazon'?); it has amazon, dslr"),
        ({"target": "webcam.txt"}, "data.target: no folder or list (.txt, .csv, .tsv) 'webcam.txt' in "),
        ({"split": "office"}, "split: no published split of 'office' (did you mean 'office31'?); there are"),
        ({"split": "domainnet", "setting": "pda"}, "split: that of domainnet is published for unida, not for pda"),
        ({"split": [2, 2, 1]}, "split: 2 + 2 + 1 needs 5 classes, and the data has 4"),
        ({"split": "visda"}, "the folder 'back_pack' is no class of data.class_order"),
        ({"split": "office31"}, "split: the source has no pictures of calculator, headphones, keyboard"),
        ({"split": [1, 1, 2], "setting": "pda"}, "with setting pda the target has no classes of its own, got 2"),
        ({"split": [1, 1, 0], "setting": "osda"}, "with setting osda the source has no classes of its own, got 1"),
        ({"split": [1, 0, 1], "setting": "closed"}, "with setting closed the target has no classes of its own, got 1"),
        ({"split": [0, 2, 1]}, "[common, source-private, target-private], the first 1 or more, got [0, 2, 1]"),
        ({"setting": "open"}, "setting must be one of unida, osda, pda, closed, got open"),
        ({"class_order": "ofice31"}, "no published order 'ofice31' (did you mean 'office31'?)"),
        ({"class_order": "twice.txt"}, "twice.txt:3: 'bike' is in line 1 already"),
        ({"source": "plain"}, "plain has no labels, which the source needs"),
        ({"shuffle_classes": -1}, "shuffle_classes must be at least 0, got -1"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(office, options, message):
    _write(office / "plain", "a.png") if options.get("source") == "plain" else None
    if "class_order" in options:
        (office / "twice.txt").write_text("bike\npen\nbike\n")
    assert message in _refusal(office, **{"source": "amazon", "target": "dslr", **options})


def test_labels_that_contradict_the_setting(office):
    _write(office, "dslr/stapler/a.png")
    for setting in ("pda", "closed"):
        message = _refusal(office, source="amazon", target="dslr", setting=setting)
        assert message == f"setting: with {setting} the target has no classes of its own, but its labels have stapler"
    assert _ready(office, source="amazon", target="dslr", setting="osda").target_names[4:] == ["stapler"]


FIRST = "amazon/bike/frame_0.jpg 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{FIRST}amazon/pen/frame_0.jpg 31\n", "bad.txt:2: label 31 is not in 0 to 30"),
        (f"{FIRST}amazon/pen/frame_0.jpg -1\n", "bad.txt:2: label -1 is not in 0 to 30"),
        (f"{FIRST}\namazon/pen/frame_0.jpg 2x\n", "bad.txt:3: label '2x' is no class and no number"),
        (f"{FIRST}amazon/pen/frame_0.jpg pem\n", "bad.txt:2: label 'pem' is no class (did you mean 'pen'?) and no"),
        (f"{FIRST}amazon/pen/frame_0.jpg\n", "bad.txt:2: expected a path and a label, found 'amazon/pen/frame_0.jpg'"),
        (f"{FIRST}amazon\n", "bad.txt:2: expected a path and a label, found 'amazon'"),
        (f"{FIRST}amazon/pen/frame_7.jpg 20\n", "bad.txt:2: no file 'amazon/pen/frame_7.jpg' below "),
        ("amzon/bike/frame_0.jpg 1\n", "bad.txt:1: no file 'amzon/bike/frame_0.jpg' below "),
        ("amzon/bike/frame_0.jpg 1\n", "beside the list (did you mean 'amazon'?); the folders there are amazon, dslr"),
        ("", "bad.txt: the list has no pictures"),
        (b"\xef\xbb\xbfamazon/bike/frame_0.jpg 1\namazon/\xff 2\n", "bad.txt:2: not a text in UTF-8 (byte 0xff)"),
    ],
)  # fmt: skip
def test_bad_lists_are_named(office, text, message):
    (office / "bad.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in _refusal(office, source="bad.txt", target="dslr", class_order="office31")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lable\na,b\n", "bad.csv:1: no column 'label' (did you mean 'lable'?); it has path, lable"),
        ("file,label\na,b\n", "bad.csv:1: no column 'path'; it has file, label"),
        ("path,label\namazon/bike/frame_0.jpg,bike\nx.jpg,\n", "bad.csv:3: expected a path and a label, found 'x.jpg'"),
        ("path,label\n", "bad.csv: the list has no pictures"),
    ],
)
def test_bad_tables_are_named(office, text, message):
    (office / "bad.csv").write_text(text)
    assert message in _refusal(office, source="bad.csv", target="dslr")


def test_rows_that_are_listed_twice_count_twice(office):
    (office / "twice.txt").write_text(f"{FIRST}{FIRST}")
    data = _ready(office, source="twice.txt", target="dslr", class_order="office31")
    assert data.sizes["source"] == 2


def test_only_the_first_files_of_a_long_list_are_looked_for(office):
    number = 100_000
    rows = [
        (f"domain_adaptation_images/amazon/images/bike/frame_{i % 2 if i < 5 else i}.jpg", 1) for i in range(number)
    ]
    _list(office / "long.txt", rows)
    data = _ready(office, source="long.txt", target="dslr", class_order="office31")
    assert data.sizes["source"] == number
    assert data.splits["train"].paths[-1] == f"{office}/amazon/bike/frame_{number - 1}.jpg"
    assert np.unique(data.splits["train"].targets).tolist() == [0]


def test_the_published_orders_have_each_class_once():
    orders = published()["orders"]
    assert {name: len(set(order)) for name, order in orders.items()} == {
        "office31": 31, "officehome_dcc": 65, "officehome_uniot": 65, "visda": 12, "domainnet": 345,
    }  # fmt: skip
    assert all(len(set(order)) == len(order) for order in orders.values())
    assert orders["domainnet"][327] == "t-shirt"
