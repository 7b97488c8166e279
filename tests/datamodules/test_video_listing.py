"""Lists of videos in the layouts of the data sets, with the quirks of each; the videos are empty files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules.video_decoding import Span, read_frames
from datamodules.video_listing import LAYOUTS, VideoListing, flip_table, read_split, split_off
from vision.errors import InputError
from vision.labels import LabelSchema, TaskLabels


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def frames_in(folder: Path) -> None:
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "frame_0000000001.jpg"), np.zeros((4, 4, 3), np.uint8))


def names(listing: VideoListing) -> list[str]:
    """The classes of a listing with one label set, by name."""
    classes = listing.schema.tasks["action"].classes
    return [classes[label] if label >= 0 else "?" for label in listing.labels[:, 0]]


def below(root: Path, listing: VideoListing) -> list[str]:
    return [Path(path).relative_to(root / "videos").as_posix() for path in listing.paths]


# ----------------------------------------------------------------------------------------------------- class folders
def test_class_folders(root):
    touch(root, "train/wave/b.mp4", "train/wave/deep/a.WEBM", "train/jump/c.avi", "train/jump/notes.txt")
    touch(root, "train/jump/.hidden.mp4", "val/wave/d.mkv")
    frames_in(root / "videos/train/jump/frames of e")
    train = read_split("folders", root, ".", "videos/train", "train")
    assert train.schema.tasks["action"].classes == ("jump", "wave")
    assert below(root, train) == [
        "train/jump/c.avi",
        "train/jump/frames of e",
        "train/wave/b.mp4",
        "train/wave/deep/a.WEBM",
    ]
    assert names(train) == ["jump", "jump", "wave", "wave"]
    assert train.labels.shape == (4, 1)
    assert train.labels.dtype == np.int64
    assert train.spans == [None] * 4
    assert train.origins == [""] * 4
    assert [row.tolist() for row in train.targets] == [[0], [0], [1], [1]]
    val = read_split("folders", root, ".", "videos/val", "val", train.schema)
    assert names(val) == ["wave"]


def test_what_is_wrong_with_class_folders(root):
    with pytest.raises(InputError, match="no such folder of videos"):
        read_split("folders", root, ".", "train", "train")
    with pytest.raises(InputError, match="expected one folder a class, found no folders"):
        read_split("folders", root, ".", "videos", "train")
    touch(root, "wave/a.mp4")
    with pytest.raises(InputError, match="expected two actions or more, found wave"):
        read_split("folders", root, ".", "videos", "train")
    touch(root, "jump/a.txt")
    with pytest.raises(InputError, match=r"jump: the class folder has no videos \(\.mp4, \.avi"):
        read_split("folders", root, ".", "videos", "train")
    schema = LabelSchema({"action": TaskLabels(("wave", "fall"))})
    with pytest.raises(InputError, match="class folders that the training videos do not have: jump"):
        read_split("folders", root, ".", "videos", "val", schema)


# ---------------------------------------------------------------------------------------------------------- kinetics
KINETICS = """label,youtube_id,time_start,time_end,split
testifying,---QUuC4vJs,84,94,train
eating spaghetti,--3ouPhoy2A,20,30,train
"dancing, slowly",-0aBcDeFgHi,1,11,train
testifying,gone0000000,5,15,train
"""


def test_kinetics(root):
    (root / "train.csv").write_text(KINETICS)
    touch(
        root,
        "---QUuC4vJs_000084_000094.mp4",
        "eating_spaghetti/--3ouPhoy2A_000020_000030.mkv",
        "train/dancing, slowly/-0aBcDeFgHi_000001_000011.mp4",
    )
    train = read_split("kinetics", root, "videos", "train.csv", "train")
    assert train.schema.tasks["action"].classes == ("dancing, slowly", "eating spaghetti", "testifying")
    assert names(train) == ["testifying", "eating spaghetti", "dancing, slowly"]
    assert [Path(path).suffix for path in train.paths] == [".mp4", ".mkv", ".mp4"]
    assert train.origins == ["train.csv:2", "train.csv:3", "train.csv:4"]
    assert list(train.missing.values()) == ["not there; listed in train.csv:5"]
    assert "gone0000000_000005_000015" in next(iter(train.missing))


def test_kinetics_tests_have_no_labels(root):
    touch(root, "abc_000001_000011.mp4")
    (root / "test.csv").write_text("youtube_id,time_start,time_end,split\nabc,1,11,test\n")
    schema = LabelSchema({"action": TaskLabels(("sit", "stand"))})
    assert read_split("kinetics", root, "videos", "test.csv", "test", schema).labels.tolist() == [[-1]]
    with pytest.raises(InputError, match=r"test\.csv:1: not a list of the layout kinetics: no column 'label'"):
        read_split("kinetics", root, "videos", "test.csv", "val", schema)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("testifying,abc,1,11,train,0", "train.csv:6: expected 5 columns, found 6"),
        ("testifying,abc,1", "train.csv:6: expected 5 columns, found 3"),
        ("testifying,abc,one,11,train", "train.csv:6: time_start must be an integer, found 'one'"),
        (",abc,1,11,train", "train.csv:6: the label is missing"),
    ],
)
def test_bad_rows_of_kinetics_are_named(root, row, message):
    (root / "train.csv").write_text(KINETICS + row + "\n")
    with pytest.raises(InputError, match=message):
        read_split("kinetics", root, "videos", "train.csv", "train")


def test_a_class_that_training_does_not_know(root):
    (root / "val.csv").write_text(KINETICS)
    schema = LabelSchema({"action": TaskLabels(("testify", "eating spaghetti"))})
    with pytest.raises(InputError, match=r"val\.csv:2: no class 'testifying' \(did you mean 'testify'\?\)"):
        read_split("kinetics", root, "videos", "val.csv", "val", schema)


def test_lists_of_which_nothing_is_there(root):
    (root / "train.csv").write_text(KINETICS)
    with pytest.raises(InputError, match=r"none of its 4 videos is below .*; the first should be testifying/---QUu"):
        read_split("kinetics", root, "videos", "train.csv", "train")
    with pytest.raises(InputError, match="elsewhere: no such folder of videos"):
        read_split("kinetics", root, "elsewhere", "train.csv", "train")


# -------------------------------------------------------------------------------------------------------------- ssv2
SSV2 = [
    {"id": "74225", "label": "pushing cup", "template": "Pushing [something] from left to right", "placeholders": []},
    {"id": 157059, "template": "Showing that [something] is empty"},
]


def test_ssv2(root):
    touch(root, "74225.webm", "157059.webm", "3.webm")
    (root / "train.json").write_text("[" + ",\n".join(map(json.dumps, SSV2)) + "]")
    classes = {"Showing that something is empty": "1", "Pushing something from left to right": "2", "Other": "0"}
    (root / "labels.json").write_text(json.dumps(classes))
    train = read_split("ssv2", root, "videos", "train.json", "train")
    assert train.schema.tasks["action"].classes[1:] == tuple(classes)[:2]
    assert train.labels.tolist() == [[2], [1]]
    assert below(root, train) == ["74225.webm", "157059.webm"]
    assert train.origins == ["train.json:1", "train.json:2"]
    (root / "test.json").write_text('[\n {"id": "3"}\n]')
    test = read_split("ssv2", root, "videos", "test.json", "test", train.schema)
    assert test.labels.tolist() == [[-1]]
    assert test.origins == ["test.json:2"]
    with pytest.raises(InputError, match=r"test\.json:2: the label is missing"):
        read_split("ssv2", root, "videos", "test.json", "val", train.schema)
    (root / "labels.json").unlink()
    alone = read_split("ssv2", root, "videos", "train.json", "train")
    assert names(alone) == ["Pushing something from left to right", "Showing that something is empty"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KINETICS, "train.json:1: not a list of the layout ssv2: not JSON"),
        ('{"Pushing something": "0"}', "expected a JSON list of entries"),
        ('[{"id": "1", "template": "a"},\n{"id" "2"}]', "train.json:2: not a list of the layout ssv2: not JSON"),
        ('[{"id": "1", "template": "a"},\n{"template": "a"}]', "train.json:2: expected an entry with an id"),
        ('[{"id": "1", "template": "a"}', "train.json:1: not a list of the layout ssv2: not JSON"),
        ("[]", "train.json: the list has no rows"),
    ],
)
def test_bad_json_is_named(root, text, message):
    (root / "train.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_split("ssv2", root, "videos", "train.json", "train")


def test_bad_class_files_of_ssv2(root):
    (root / "train.json").write_text(json.dumps(SSV2))
    (root / "labels.json").write_text('{"a": "1", "b": "2"}')
    with pytest.raises(InputError, match=r"labels\.json: expected the indices 0 to 1, each once"):
        read_split("ssv2", root, "videos", "train.json", "train")
    (root / "labels.json").write_text('["a", "b"]')
    with pytest.raises(InputError, match="expected a JSON object of class names"):
        read_split("ssv2", root, "videos", "train.json", "train")


# ----------------------------------------------------------------------------------------------------------- ucf101
def ucf101(root: Path, text: str, end: str = "\n") -> Path:
    (root / "classInd.txt").write_bytes(end.join(["1 Archery", "2 ApplyLipstick", "3 Basketball", ""]).encode())
    file = root / "trainlist01.txt"
    file.write_bytes(text.replace("\n", end).encode())
    return file


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ucf101(root, end):
    touch(root, "Archery/v_Archery_g01_c01.avi", "v_Basketball_g02_c01.mp4")
    ucf101(root, "Archery/v_Archery_g01_c01.avi 1\nBasketball/v_Basketball_g02_c01.avi 3\n", end)
    train = read_split("ucf101", root, "videos", "trainlist01.txt", "train")
    assert train.schema.tasks["action"].classes == ("Archery", "ApplyLipstick", "Basketball")
    assert names(train) == ["Archery", "Basketball"]
    (root / "testlist01.txt").write_text("Basketball/v_Basketball_g02_c01.avi\n")
    test = read_split("ucf101", root, "videos", "testlist01.txt", "test", train.schema)
    assert names(test) == ["Basketball"]
    assert test.origins == ["testlist01.txt:1"]


def test_ucf101_without_a_class_index(root):
    touch(root, "Archery/a.avi", "Basketball/b.avi")
    (root / "list.txt").write_text("Basketball/b.avi 2\nArchery/a.avi 1\n")
    assert names(read_split("ucf101", root, "videos", "list.txt", "train")) == ["Basketball", "Archery"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Archery/a.avi 0", "trainlist01.txt:2: the label 0 is not in 1 to 3"),
        ("Archery/a.avi 4", "trainlist01.txt:2: the label 4 is not in 1 to 3"),
        ("Archery/a.avi one", "trainlist01.txt:2: the label must be an integer, found 'one'"),
        ("Archery/a.avi 2", "the label 2 is 'ApplyLipstick' in classInd.txt, the folder is 'Archery'"),
        ("Archerie/a.avi 1", r"no class 'Archerie' in classInd.txt \(did you mean 'Archery'\?\)"),
        ("a.avi 1", "expected 'Class/video.avi' and a number, found 'a.avi 1'"),
    ],
)
def test_bad_rows_of_ucf101_are_named(root, row, message):
    ucf101(root, f"Basketball/b.avi 3\n{row}\n")
    with pytest.raises(InputError, match=message):
        read_split("ucf101", root, "videos", "trainlist01.txt", "train")


def test_a_class_index_that_skips_a_number(root):
    ucf101(root, "Archery/a.avi 1\n")
    (root / "classInd.txt").write_text("1 Archery\n3 Basketball\n")
    with pytest.raises(InputError, match=r"classInd\.txt:2: expected '2 ClassName', found '3 Basketball'"):
        read_split("ucf101", root, "videos", "trainlist01.txt", "train")


# ----------------------------------------------------------------------------------------------------------- hmdb51
def test_hmdb51(root):
    (root / "splits").mkdir()
    odd = "#20_(Rhythm_clap)_[x]_u_&_clap.avi"
    (root / "splits/clap_test_split1.txt").write_text(f"{odd} 1 \nb.avi 2 \nc.avi 0 \n")
    (root / "splits/brush_hair_test_split1.txt").write_text("d.avi 1 \ne.avi 2 \n")
    (root / "splits/clap_test_split2.txt").write_text("b.avi 1\n")
    (root / "splits/brush_hair_test_split2.txt").write_text("e.avi 1\n")
    touch(root, f"clap/{odd}", "clap/b.avi", "clap/c.avi", "d.avi", "brush_hair/e.avi")
    train = read_split("hmdb51", root, "videos", "splits", "train")
    assert train.schema.tasks["action"].classes == ("brush_hair", "clap")
    assert below(root, train) == ["d.avi", f"clap/{odd}"]
    assert train.origins == ["brush_hair_test_split1.txt:1", "clap_test_split1.txt:1"]
    for split in ("val", "test"):
        other = read_split("hmdb51", root, "videos", "splits", split, train.schema)
        assert below(root, other) == ["brush_hair/e.avi", "clap/b.avi"]
    second = read_split("hmdb51", root, "videos", "splits/*_test_split2.txt", "train")
    assert below(root, second) == ["brush_hair/e.avi", "clap/b.avi"]


def test_what_is_wrong_with_lists_of_hmdb51(root):
    with pytest.raises(InputError, match="no lists of the layout hmdb51"):
        read_split("hmdb51", root, "videos", "splits/*_test_split3.txt", "train")
    (root / "wave_test_split1.txt").write_text("a.avi 1\nb.avi 3\n")
    with pytest.raises(InputError, match=r"wave_test_split1\.txt:2: expected 'video\.avi' and 0, 1 or 2, found 'b\.av"):
        read_split("hmdb51", root, "videos", "*_test_split1.txt", "train")


# ------------------------------------------------------------------------------------------------------------- epic
EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    'P01_01_1,P01,P01_01,00:00:02.629,01:02:04.37,01:02:06.17,262,370,"turn on, light",turn-on,6,light,114,'
    "\"['light', 'lamp']\",\"[114, 7]\"\n"
    "P02_101_0,P02,P02_101,00:00:01.089,00:00:00.14,00:00:03.37,8,202,open door,open,3,door,3,['door'],[3]\n"
    "P03_04_0,P03,P03_04,00:00:01.089,00:00:00.14,00:00:03.37,1,202,open door,open,3,door,3,['door'],[3]\n"
    "P09_09_0,P09,P09_09,00:00:01.089,00:00:00.14,00:00:03.37,1,202,open door,open,3,door,3,['door'],[3]\n"
)


def test_epic(root):
    (root / "EPIC_100_train.csv").write_text(EPIC)
    touch(root, "P01_01.MP4", "P02/videos/P02_101.MP4")
    frames_in(root / "videos/P03/rgb_frames/P03_04")
    train = read_split("epic", root, "videos", "EPIC_100_train.csv", "train")
    assert train.schema.names == ["noun", "verb"]
    assert [len(labels) for labels in train.schema.tasks.values()] == [300, 97]
    assert train.labels.tolist() == [[3, 3], [114, 6], [3, 3], [3, 3]]
    assert below(root, train) == ["P01_01.MP4", "P01_01.MP4", "P02/videos/P02_101.MP4", "P03/rgb_frames/P03_04"]
    assert train.spans[1] == Span(3724.37, 3726.17, "seconds")
    # From frame_0000000001.jpg, number 0, to frame_0000000202.jpg.
    assert train.spans[3] == Span(0, 202, "frames")
    assert train.origins[1] == "EPIC_100_train.csv:3"
    assert len(train.missing) == 1


def test_epic_rows_have_their_last_frame(root):
    folder = root / "videos/P03/rgb_frames/P03_04"
    folder.mkdir(parents=True)
    for number in range(1, 8):
        cv2.imwrite(str(folder / f"frame_{number:010d}.png"), np.full((4, 4, 3), number, np.uint8))
    header, row = EPIC.splitlines()[0], EPIC.splitlines()[4]
    rows = [row.replace(",1,202,", f",{start},{stop},") for start, stop in ((1, 3), (5, 7), (4, 4))]
    (root / "train.csv").write_text("\n".join([header, *rows]))
    train = read_split("epic", root, "videos", "train.csv", "train")
    found = [read_frames(train.paths[i], np.arange, train.spans[i])[:, 0, 0, 0].tolist() for i in range(3)]
    assert found == [[1, 2, 3], [5, 6, 7], [4]]


def test_epic_names_its_classes_where_it_says_them(root):
    touch(root, "P01_01.MP4", "P02_101.MP4", "P03_04.MP4", "P09_09.MP4")
    (root / "EPIC_100_train.csv").write_text(EPIC)
    (root / "EPIC_100_verb_classes.csv").write_text(
        "id,key,instances,category\n0,take,\"['take', 'grab']\",x\n1,put,x,x\n"
    )
    with pytest.raises(InputError, match=r"EPIC_100_train\.csv:2: the label 3 is not in 0 to 1"):
        read_split("epic", root, "videos", "EPIC_100_train.csv", "train")
    (root / "EPIC_100_train.csv").write_text(EPIC.replace("open,3,", "open,1,").replace("turn-on,6,", "turn-on,0,"))
    train = read_split("epic", root, "videos", "EPIC_100_train.csv", "train")
    assert train.schema.tasks["verb"].classes == ("take", "put")
    assert train.schema.tasks["noun"].classes[7] == "noun 7"


def test_epic_tests_have_no_labels(root):
    touch(root, "P01_11.MP4")
    (root / "test.csv").write_text(
        "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,start_frame,stop_frame\n"
        "P01_11_0,P01,P01_11,00:00:00.00,00:00:01.89,1,113\n"
    )
    test = read_split("epic", root, "videos", "test.csv", "test")
    assert test.labels.tolist() == [[-1, -1]]
    assert test.spans == [Span(0.0, 1.89, "seconds")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",open,3,", ",open,,", "train.csv:2: the label is missing"),
        (",open,3,", ",open,97,", "train.csv:2: the label 97 is not in 0 to 96"),
        (",open,3,", ",open,-1,", "train.csv:2: verb_class must be the index of a class, 0 or more, found -1"),
        (",door,3,", ",door,x,", "train.csv:2: noun_class must be an integer, found 'x'"),
        ("00:00:00.14", "0.14", "train.csv:2: expected a time as HH:MM:SS.ss, found '0.14'"),
        (",8,202,", ",8,,", "train.csv:2: stop_frame must be an integer, found ''"),
    ],
)
def test_bad_rows_of_epic_are_named(root, old, new, message):
    (root / "train.csv").write_text(EPIC.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        read_split("epic", root, "videos", "train.csv", "train")


def test_lists_of_another_layout(root):
    (root / "train.csv").write_text(KINETICS)
    with pytest.raises(
        InputError, match=r"train\.csv:1: not a list of the layout epic: no column 'video_id'; it has la"
    ):
        read_split("epic", root, "videos", "train.csv", "train")
    with pytest.raises(
        InputError, match=r"train\.csv:1: expected 'path label' or 'path label start end', found 'label,y"
    ):
        read_split("list", root, "videos", "train.csv", "train")
    with pytest.raises(InputError, match=r"train\.csv:1: expected 'Class/video\.avi' and a number"):
        read_split("ucf101", root, "videos", "train.csv", "train")


# ------------------------------------------------------------------------------------------------------------- list
@pytest.mark.parametrize("separator", [" ", "\t", ","])
def test_plain_lists(root, separator):
    touch(root, "a.mp4", "deep/b.webm")
    frames_in(root / "videos/c")
    rows = [("a.mp4", "0"), ("deep/b.webm", "2", "1.5", "4"), ("c", "1", "10", "20")]
    (root / "train.txt").write_text("\n".join(map(separator.join, rows)) + "\n\n")
    train = read_split("list", root, "videos", "train.txt", "train")
    assert below(root, train) == ["a.mp4", "deep/b.webm", "c"]
    assert train.schema.tasks["action"].classes == ("class 0", "class 1", "class 2")
    assert train.labels.tolist() == [[0], [2], [1]]
    assert train.spans == [None, Span(1.5, 4.0, "seconds"), Span(10, 20, "frames")]


def test_plain_lists_with_names_spaces_and_whole_paths(root):
    touch(root, "my holiday.mp4", "b.mp4")
    (root / "train.csv").write_text(f'"my holiday.mp4",sea and sun\n{root}/videos/b.mp4,rain\n')
    train = read_split("list", root, "videos", "train.csv", "train")
    assert names(train) == ["sea and sun", "rain"]
    assert train.schema.tasks["action"].classes == ("rain", "sea and sun")
    assert below(root, train) == ["my holiday.mp4", "b.mp4"]


def test_plain_lists_with_the_names_beside_them(root):
    touch(root, "a.mp4", "b.mp4")
    (root / "classes.txt").write_text("jump\nwave\nfall\n")
    (root / "train.txt").write_text("a.mp4 1\nb.mp4 0\n")
    train = read_split("list", root, "videos", "train.txt", "train")
    assert train.schema.tasks["action"].classes == ("jump", "wave", "fall")
    assert names(train) == ["wave", "jump"]
    (root / "test.txt").write_text("b.mp4\n")
    assert names(read_split("list", root, "videos", "test.txt", "test", train.schema)) == ["?"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4 wave\n", "train.txt:2: the label must be an integer, found 'wave'"),
        ("a.mp4 0\nb.mp4 -1\n", "train.txt:2: the label must be the index of a class, 0 or more, found -1"),
        ("a.mp4 0\nb.mp4\n", r"train.txt:2: expected 'path label' or .*, found 'b.mp4' \(a path with spaces needs"),
        ("a.mp4,0\nb.mp4,\n", "train.txt:2: the label is missing"),
        ("a.mp4 0\nb.mp4 1 5\n", "train.txt:2: expected 'path label' or 'path label start end'"),
        ("a.mp4 0 5 x\n", "train.txt:1: start and end must be numbers, found '5 x'"),
        ("a.mp4 0 5 5\n", "train.txt:1: start must be at least 0 and end behind it, found 5 and 5"),
        ("a.mp4 0\n", "train.txt: expected two actions or more, found class 0"),
        ("\n \n", "train.txt: the list has no rows"),
    ],
)
def test_bad_plain_lists_are_named(root, text, message):
    touch(root, "a.mp4", "b.mp4")
    (root / "train.txt").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_split("list", root, "videos", "train.txt", "train")
    assert "\n" not in str(caught.value)


def test_a_label_that_training_does_not_have(root):
    touch(root, "a.mp4")
    (root / "val.txt").write_text("a.mp4 2\n")
    schema = LabelSchema({"action": TaskLabels(("jump", "wave"))})
    with pytest.raises(InputError, match=r"val\.txt:1: the label 2 is not in 0 to 1"):
        read_split("list", root, "videos", "val.txt", "val", schema)
    two = LabelSchema({"noun": TaskLabels(("cup", "pan")), "verb": TaskLabels(("take", "put"))})
    with pytest.raises(InputError, match=r"val\.txt: its labels are action, those of the training noun and verb"):
        read_split("list", root, "videos", "val.txt", "val", two)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout not in ("folders", "hmdb51")])
def test_lists_that_cannot_be_read(root, layout):
    with pytest.raises(InputError, match=r"gone\.csv: the list cannot be read \(No such file or directory\)"):
        read_split(layout, root, "videos", "gone.csv", "train")
    (root / "noise.csv").write_bytes(b"\xff\xfe\x00\x81" * 10)
    with pytest.raises(InputError, match=r"noise\.csv: not a text in UTF-8"):
        read_split(layout, root, "videos", "noise.csv", "train")
    (root / "empty.csv").write_text("")
    with pytest.raises(InputError, match=r"empty\.csv(:\d)?: (the list has no rows|not a list of the layout)"):
        read_split(layout, root, "videos", "empty.csv", "train")


def test_layouts_that_there_are_not(root):
    with pytest.raises(InputError, match=r"no layout 'kinetic' \(did you mean 'kinetics'\?\); there are folders, kin"):
        read_split("kinetic", root, "videos", "train.csv", "train")


# ------------------------------------------------------------------------------------------------- parts, and mirrors
def test_videos_split_off_for_validation(root):
    touch(root, *(f"{name}/{number}.mp4" for name, count in (("a", 20), ("b", 2)) for number in range(count)))
    listing = read_split("folders", root, ".", "videos", "train")
    train, val = split_off(listing, 0.1, seed=3)
    assert names(val) == ["a", "a", "b"]
    assert sorted(train.paths + val.paths) == sorted(listing.paths)
    assert split_off(listing, 0.1, seed=3)[1].paths == val.paths
    assert any(split_off(listing, 0.1, seed=seed)[1].paths != val.paths for seed in range(4, 8))
    touch(root, "c/only.mp4")
    with pytest.raises(InputError, match="class 'c' has one video: two are needed to split off validation videos"):
        split_off(read_split("folders", root, ".", "videos", "train"), 0.1, seed=3)


def test_clips_with_two_label_sets_need_a_list_for_validation(root):
    touch(root, "P01_01.MP4")
    (root / "train.csv").write_text(EPIC)
    with pytest.raises(InputError, match="clips with noun and verb are not split by class: name a list for val"):
        split_off(read_split("epic", root, "videos", "train.csv", "train"), 0.1, seed=0)


def flips(*classes: str) -> list[int]:
    (table,) = flip_table(LabelSchema({"action": TaskLabels(classes)}))
    assert table.dtype == np.int64
    return table.tolist()


def test_classes_are_swapped_with_their_mirror_images():
    assert flips(
        "Pushing something from left to right",
        "Covering something with something",
        "Pushing something from right to left",
        "Pulling something from left to right",
    ) == [2, 1, 0, -1]
    assert flips("Turning Hand Clockwise", "Stop Sign", "Turning Hand Counterclockwise") == [2, 1, 0]
    assert flips("turn clockwise", "turn anti-clockwise") == [1, 0]
    assert flips("SwipeLeft", "SwipeRight", "swipe_up") == [1, 0, 2]
    assert flips("cleft chin", "bright light", "look leftwards") == [0, 1, -1]


def test_each_label_set_has_its_own_mirror_images():
    schema = LabelSchema({"noun": TaskLabels(("left glove", "cup")), "verb": TaskLabels(("turn-left", "turn-right"))})
    assert [table.tolist() for table in flip_table(schema)] == [[-1, 1], [1, 0]]
