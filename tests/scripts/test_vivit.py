"""``vision`` with videos: fit from another configuration and from a cache, test, infer on files and on a stream."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.video_decoding import iterate_frames, read_frames
from scripts.bench.pages import ROOT
from scripts.bench.vivit_runs import pairs
from scripts.bench.vivit_tables import tables
from scripts.systems import CONFIGS, config_files
from tests.command import error_line, vision
from tests.images import write_images
from tests.videos import numbered_frames, write_video
from vision.vivit.checkpoint import load_network

CLASSES = ("falling", "rising")
TINY = {"backbone": "test_vit", "backbone_options": {"patch_size": 8, "depth": 1}}
DATA = {"image_size": 32, "crop_pct": 1.0, "batch_size": 4, "num_workers": 0}


def _config(file: Path, model: dict, data: dict, epochs: int = 1) -> Path:
    content = {
        "model": {"class_path": "VideoClassifier", "init_args": {**TINY, "temporal": {"layers": 1}, **model}},
        "data": {"class_path": "VideoFolder", "init_args": {**DATA, "frames": 4, "stride": 2, **data}},
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "default_root_dir": str(file.parent.parent / "runs"),
        },
    }
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, two configurations of which the second begins with the first, and a training by it: ``best.ckpt``."""
    folder = tmp_path_factory.mktemp("vivit")
    for split, number in (("train", 4), ("val", 2)):
        for i, name in enumerate(CLASSES):
            (folder / "videos" / split / name).mkdir(parents=True)
            for j in range(number):
                frames = numbered_frames(20 + i + j, 32, 32)
                write_video(folder / "videos" / split / name / f"{j}.mp4", frames[:: 1 - 2 * i])
    (folder / "configs").mkdir()
    data = {"root": str(folder / "videos")}
    start = {"spatial": "random"}
    _config(folder / "configs" / "stage1.yaml", {"freeze": "none", "start": start}, {**data, "frames": 2, "stride": 4})
    start = {"spatial": "stage1.yaml", "temporal": "stage1.yaml"}
    second = _config(folder / "configs" / "stage2.yaml", {"start": start}, {**data, "cache": str(folder / "cache")}, 2)
    finished = vision("fit", "--config", second)
    assert finished.returncode == 0, finished.stderr
    (folder / "fit.txt").write_text(finished.stdout)
    (best,) = (folder / "runs" / "configs" / "stage2").rglob("best.ckpt")
    shutil.copy(best, folder / "best.ckpt")
    return folder


def test_the_configuration_before_is_trained_first_and_once(folder):
    said = (folder / "fit.txt").read_text()
    assert "configs/stage1 is trained first, for model.start.spatial" in said
    assert "trained first, for model.start.temporal" not in said
    assert len(list((folder / "runs" / "configs" / "stage1").glob("version_*"))) == 1
    assert "temporal part and head:" in said
    assert "not taken" in said
    first, _ = load_network(next((folder / "runs" / "configs" / "stage1").rglob("best.ckpt")))
    second, record = load_network(folder / "best.ckpt")
    for name, value in first.spatial.state_dict().items():
        assert torch.equal(value, second.spatial.state_dict()[name]), name
    assert record.config.frames == 4


def test_a_second_training_takes_what_is_there(folder):
    finished = vision("fit", "--config", folder / "configs" / "stage2.yaml", "--trainer.max_epochs", "1")
    assert finished.returncode == 0, finished.stderr
    assert "trained first" not in finished.stdout
    assert "the cache takes" not in finished.stdout


def test_another_first_stage_is_trained_anew_and_told_where_the_data_is(folder, tmp_path):
    """A run of the same name is taken only where it was asked for the same."""
    shutil.copytree(folder / "videos", tmp_path / "videos")
    command = ["fit", "--config", folder / "configs" / "stage2.yaml", "--data.root", tmp_path / "videos"]
    command += ["--data.cache", "null", "--trainer.default_root_dir", tmp_path / "runs", "--trainer.max_epochs", "1"]
    for trained in (True, False):
        finished = vision(*command)
        assert finished.returncode == 0, finished.stderr
        assert ("configs/stage1 is trained first" in finished.stdout) == trained
    (asked,) = (tmp_path / "runs" / "configs" / "stage1").glob("version_*/config.yaml")
    assert yaml.safe_load(asked.read_text())["data"]["init_args"]["root"] == str(tmp_path / "videos")
    (note,) = (tmp_path / "runs" / "configs" / "stage1").glob("version_*/finished.json")
    note.write_text(note.read_text().replace("data.root", "data.other"))
    assert "configs/stage1 is trained first" in vision(*command).stdout


def test_a_configuration_that_is_not_there(folder):
    line = error_line(*("fit", "--config", folder / "configs" / "stage2.yaml", "--model.start.spatial", "nowhere.yaml"))
    assert "no such configuration" in line
    assert "nowhere.yaml" in line


def test_a_cache_of_other_weights_is_refused_by_name(folder):
    line = error_line("fit", "--config", folder / "configs" / "stage2.yaml", "--model.start.spatial", "random")
    assert "weights" in line
    assert "data.cache" in line


def test_test_and_predict_need_the_checkpoint_alone(folder):
    command = ["--config", folder / "configs" / "stage2.yaml", "--ckpt_path", folder / "best.ckpt"]
    command += ["--trainer.default_root_dir", folder / "tested"]
    finished = vision("test", *command)
    assert finished.returncode == 0, finished.stderr
    assert "test_top1" in finished.stdout
    finished = vision("predict", *command)
    assert finished.returncode == 0, finished.stderr
    (file,) = (folder / "tested").rglob("predictions.csv")
    rows = list(csv.DictReader(file.open(newline="")))
    assert len(rows) == 4
    assert {row["action_1"] for row in rows} <= set(CLASSES)


def test_training_from_the_cache_equals_training_from_the_videos(folder, tmp_path):
    weights = {}
    for name, cache in (("cached", str(tmp_path / "cache")), ("videos", "null")):
        command = ["fit", "--config", folder / "configs" / "stage2.yaml", "--model.frozen_pass.kept", "float32"]
        command += ["--data.augment", "false", "--data.cache", cache, "--trainer.max_epochs", "3"]
        finished = vision(*command, "--trainer.default_root_dir", tmp_path / name, "--model.start.spatial", "random")
        assert finished.returncode == 0, finished.stderr
        weights[name] = load_network(next((tmp_path / name).rglob("last.ckpt")))[0].state_dict()
    for name, value in weights["videos"].items():
        assert torch.allclose(weights["cached"][name], value, atol=1e-5), name


@pytest.fixture(scope="module")
def inputs(folder):
    place = folder / "inputs"
    place.mkdir()
    write_video(place / "long.mp4", numbered_frames(40, 48, 72))
    write_video(place / "short.mp4", numbered_frames(3, 48, 72))
    (place / "empty.mp4").touch()
    (place / "text.mp4").write_text("no video")
    frames = place / "frames"
    frames.mkdir()
    for number, frame in enumerate(numbered_frames(12, 48, 72), start=1):
        Image.fromarray(frame).save(frames / f"frame_{number:010d}.jpg")
    return place


@pytest.fixture(scope="module")
def recognised(folder, inputs):
    out = folder / "out"
    given = [*sorted(inputs.glob("*.mp4")), inputs / "frames"]
    finished = vision("infer", "vivit", "--input", *given, "--checkpoint", folder / "best.ckpt", "--out", out)
    assert finished.returncode == 0, finished.stderr
    return out, finished.stdout


def test_windows_of_videos(folder, inputs, recognised):
    out, _ = recognised
    content = json.loads((out / "predictions.json").read_text())
    videos = {Path(of["path"]).name: of for of in content["videos"]}
    assert set(videos) == {"long.mp4", "short.mp4", "frames"}
    # A window of four frames, two apart, begins at every second tubelet.
    starts = [window["start"] for window in videos["long.mp4"]["windows"]]
    assert starts == pytest.approx([0.4 * i for i in range(len(starts))], abs=1e-3)
    assert videos["long.mp4"]["windows"][0]["end"] == pytest.approx(0.6)
    network, record = load_network(folder / "best.ckpt")
    rows = list(csv.DictReader((out / "predictions.csv").open(newline="")))
    assert sum(row["path"].endswith("long.mp4") for row in rows) == len(starts)
    from datamodules.video_transforms import EvalViews

    clip = read_frames(inputs / "long.mp4", lambda _: np.arange(0, 8, 2))
    view = torch.from_numpy(EvalViews(record.preprocessing, 1)(clip)).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        expected = network(view)[0].softmax(dim=0)
    found = {of["class"]: of["probability"] for of in videos["long.mp4"]["windows"][0]["action"]}
    assert [found[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_video_shorter_than_a_window_is_repeated(recognised):
    out, _ = recognised
    content = json.loads((out / "predictions.json").read_text())
    (short,) = [of for of in content["videos"] if of["path"].endswith("short.mp4")]
    assert len(short["windows"]) == 1


def test_what_cannot_be_read_is_named_and_the_rest_is_done(recognised):
    out, said = recognised
    assert "3 of 5 videos" in said
    content = json.loads((out / "predictions.json").read_text())
    reasons = {Path(of["path"]).name: of["reason"] for of in content["unreadable"]}
    assert set(reasons) == {"empty.mp4", "text.mp4"}
    assert "0 bytes" in reasons["empty.mp4"]
    rows = list(csv.DictReader((out / "predictions.csv").open(newline="")))
    assert {row["status"] for row in rows if row["path"].endswith("text.mp4")} == {reasons["text.mp4"]}


def test_the_annotated_video_has_every_frame(recognised):
    out, _ = recognised
    frames = [frame for _, frame in iterate_frames(out / "long.webm")]
    assert len(frames) == 40
    assert frames[0].shape[1] >= 320
    assert frames[0][-60:].mean() > 200  # words on paper below the picture
    assert Image.open(out / "long.png").size[0] > 400


def test_a_stream_is_answered_as_the_file(folder, inputs, recognised):
    out = folder / "live"
    given = (inputs / "long.mp4").as_uri()
    finished = vision("infer", "vivit", "--input", given, "--checkpoint", folder / "best.ckpt", "--out", out)
    assert finished.returncode == 0, finished.stderr
    lines = [json.loads(line) for line in (out / "live.jsonl").read_text().splitlines()]
    content = json.loads((recognised[0] / "predictions.json").read_text())
    (video,) = [of for of in content["videos"] if of["path"].endswith("long.mp4")]
    assert [line["start"] for line in lines] == [window["start"] for window in video["windows"]]
    for line, window in zip(lines, video["windows"], strict=True):
        found, expected = ({of["class"]: of["probability"] for of in place["action"]} for place in (line, window))
        assert found == pytest.approx(expected, abs=1e-5)
    assert f"{len(lines)} windows" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "nowhere"), "no such file"),
        (("--input", "file:///nowhere.mp4"), "nowhere.mp4"),
        (("--input", "0", "file:///nowhere.mp4"), "one stream at a time"),
        (("--input", "{empty}"), "none of 1 videos could be read"),
        (("--input", "{long}", "--hop", "0"), "hop must be at least 1"),
        (("--input", "{long}", "--checkpoint", "{text}"), "text.mp4"),
    ],
)
def test_bad_input_for_infer(folder, inputs, arguments, message):
    places = {name: str(inputs / f"{name}.mp4") for name in ("empty", "long", "text")}
    given = [argument.format(**places) for argument in arguments]
    if "--checkpoint" not in given:
        given += ["--checkpoint", str(folder / "best.ckpt")]
    assert message in error_line("infer", "vivit", *given, "--out", folder / "bad")


def test_a_checkpoint_of_another_kind_of_network(folder, tmp_path):
    write_images(tmp_path / "train", 4)
    write_images(tmp_path / "val", 2)
    from tests.command import write_config

    assert vision("fit", "--config", write_config(tmp_path / "c.yaml", tmp_path, max_epochs=1)).returncode == 0
    (best,) = tmp_path.rglob("best.ckpt")
    line = error_line("infer", "vivit", "--input", folder, "--checkpoint", best, "--out", tmp_path / "out")
    assert "'vision infer efficientvit' uses it" in line


@pytest.mark.parametrize("name", [file.stem for file, _ in config_files("vivit")])
def test_configurations(name):
    finished = vision("fit", "--config", CONFIGS / "vivit" / f"{name}.yaml", "--print_config")
    assert finished.returncode == 0, finished.stderr


def test_pairs_of_classes_are_each_others():
    other = pairs()
    assert torch.equal(other[other], torch.arange(8))
    assert bool((other != torch.arange(8)).all())


COMMITTED = ROOT / "benchmarks" / "vivit.json"


def test_the_benchmarks_tables_say_what_the_rows_say():
    result = json.loads(COMMITTED.read_text(encoding="utf-8"))
    found = tables(result)
    steps = {row["form"]: row["metrics"] for row in result["rows"] if row["group"] == "steps"}
    share = steps["frozen + grid"]["held_bytes"] / steps["end to end"]["held_bytes"]
    assert f"| {share:.3f} |" in found["steps"]
    grid = [row["metrics"]["top1"] for row in result["rows"] if row.get("contender") == "grid"]
    assert ", ".join(f"{100 * value:.1f}" for value in grid) in found["readouts"]
    claims = {entry["id"]: entry for entry in result["claims"]}
    assert claims["grid"]["measured"] == pytest.approx(100 * min(grid), rel=1e-3)
