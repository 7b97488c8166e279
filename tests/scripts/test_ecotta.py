"""``vision infer ecotta``: folders, videos and pixels, a stream that goes on another day, and what can be wrong."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from datamodules.transforms import eval_transform
from datamodules.video_decoding import read_frames
from scripts.infer.adaptation_pictures import stream_figure
from scripts.infer.inputs import image_files
from tests.command import error_line, vision
from tests.images import COLOURS, write_images
from tests.videos import numbered_frames, write_video
from vision.classifiers import ClassifierRecord
from vision.ecotta import EcoTTA, Online, WideResNet, load_adapter
from vision.ecotta.baselines import BatchStatistics
from vision.ecotta.source import AdapterRecord, SourceRecord
from vision.preprocessing import Preprocessing

CLASSES = list(COLOURS)
PLAIN = Preprocessing(size=(16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear", crop_pct=1.0)


def trained() -> WideResNet:
    """A network that tells colours apart, on statistics of a batch as well."""
    torch.manual_seed(0)
    network = WideResNet(16, 1, len(CLASSES)).train()
    descent = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    colours = torch.tensor(list(COLOURS.values())).float()[:, :, None, None] / 255
    for _ in range(15):
        target = torch.arange(36) % len(CLASSES)
        images = (colours[target] + 0.12 * torch.randn(36, 3, 16, 16)).clamp(0, 1)
        descent.zero_grad()
        F.cross_entropy(network(images), target).backward()
        descent.step()
    return network.eval()


def write_checkpoint(file: Path, adapter: EcoTTA, source: SourceRecord, online: Online) -> Path:
    """What ``TestTimeAdaptation`` leaves."""
    record = AdapterRecord(source, [list(names) for names in adapter.groups], adapter.form, adapter.kernel, online)
    state = {f"adapter.{key}": value for key, value in adapter.state_dict().items()}
    torch.save({"state_dict": state, "ecotta": record.as_dict()}, file)
    return file


def write_broken(folder: Path) -> None:
    (folder / "empty.png").touch()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    content = torch.load(folder / "best.ckpt", weights_only=True)
    torch.save({**content, "ecotta": {"form": "conv"}}, folder / "half.ckpt")
    names = {**content["ecotta"], "source": {**content["ecotta"]["source"], "class_names": ["a", "b"]}}
    torch.save({**content, "ecotta": names}, folder / "names.ckpt")
    state = dict(content["state_dict"])
    state["adapter.metas.0.meta_bn.weight"] = state["adapter.metas.0.meta_bn.weight"] * torch.nan
    torch.save({**content, "state_dict": state}, folder / "nan.ckpt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images, and files of one network: ``best.ckpt``, ``robust.pt`` and ``classifier.ckpt``."""
    folder = tmp_path_factory.mktemp("ecotta")
    write_images(folder / "images", 8)
    network = trained()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, folder / "robust.pt")
    classifier = ClassifierRecord("wrn_16_1", CLASSES, PLAIN).as_dict()
    state = {f"model.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "classifier": classifier}, folder / "classifier.ckpt")
    adapter = EcoTTA.attach(network, input_size=PLAIN.size)
    adapter.calibrate(prepared(image_files([str(folder / "images")])))
    write_checkpoint(folder / "best.ckpt", adapter, SourceRecord(None, CLASSES, PLAIN), Online(lr=0.02))
    write_broken(folder)
    return folder


def prepared(files: list[str], preprocessing: Preprocessing = PLAIN) -> torch.Tensor:
    transform = eval_transform(preprocessing)
    return torch.stack([transform(image=np.asarray(Image.open(file)))["image"] for file in files])


def infer(out: Path, *arguments: str | Path) -> tuple[list[dict[str, str]], dict[str, Any], str]:
    """The rows of the table, the JSON file, and what was said."""
    finished = vision("infer", "ecotta", "--out", out, *arguments)
    assert finished.returncode == 0, finished.stderr
    rows = list(csv.DictReader((out / "predictions.csv").open(newline="")))
    return rows, json.loads((out / "predictions.json").read_text()), finished.stdout


def test_a_folder_in_its_order_as_the_method_answers(folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    # All classes in each batch: on the statistics of one colour alone the network is lost.
    files = sorted(image_files([str(folder / "images")]), key=lambda file: Path(file).name)
    given = ["--input", *files, tmp_path / "broken.png", "--checkpoint", folder / "best.ckpt"]
    rows, content, said = infer(tmp_path / "out", *given, "--batch-size", "9")
    read = [row for row in rows if row["status"] == "ok"]
    assert [row["path"] for row in read] == files
    assert [row["class"] for row in read] == [Path(file).parent.name for file in files]
    assert [int(row["batch"]) for row in read] == [1] * 9 + [2] * 9 + [3] * 6
    assert [row["status"] for row in rows[24:]] == ["empty file (0 bytes)"]
    assert content["unreadable"] == [{"path": str(tmp_path / "broken.png"), "reason": "empty file (0 bytes)"}]
    adapter, _ = load_adapter(folder / "best.ckpt")
    for number, start in enumerate(range(0, 24, 9), start=1):
        logits = adapter.adapt(prepared(files[start : start + 9]))
        shares = logits.softmax(dim=1)
        entropies = -(shares * shares.log()).sum(dim=1) / np.log(3)
        shown = content["images"][start : start + 9]
        assert [of["probability"] for of in shown] == pytest.approx(shares.amax(dim=1).tolist(), abs=1e-4)
        assert [of["entropy"] for of in shown] == pytest.approx(entropies.tolist(), abs=1e-4)
        assert {of["updated"] for of in shown} == {adapter.last.updated} == {True}
        assert content["batches"][number - 1]["kept"] == pytest.approx(adapter.last.kept)
    assert "3 batches, 3 updates, 0 rollbacks" in said
    assert said.splitlines()[-1] == f"vision: 24 of 25 images, results in {tmp_path / 'out'}"
    assert Image.open(tmp_path / "out" / "stream.png").width > 600
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width > 600


def test_flags_take_the_place_of_what_the_checkpoint_says(folder, tmp_path):
    given = ["--input", folder / "images", "--checkpoint", folder / "best.ckpt"]
    _, content, _ = infer(tmp_path / "a", *given)
    assert content["online"] == {**Online(lr=0.02).__dict__}
    flags = ["--lr-batch", "32", "--prior", "16", "--memory", "eager", "--no-guard"]
    _, content, _ = infer(tmp_path / "b", *given, *flags)
    assert content["online"] == {**Online(0.02, lr_batch=32, prior=16, memory="eager", guard=False).__dict__}


def test_without_updates_every_batch_is_answered_by_the_same_weights(folder, tmp_path):
    given = ["--checkpoint", folder / "best.ckpt", "--batch-size", "8", "--no-updates", "--lr", "0.5"]
    rows, content, said = infer(tmp_path / "a", "--input", folder / "images", *given)
    last, _, _ = infer(tmp_path / "b", "--input", folder / "images" / "red", *given)
    own = ("path", "class", "probability", "entropy")
    assert [[row[key] for key in own] for row in last] == [[row[key] for key in own] for row in rows[16:]]
    assert {row["updated"] for row in rows} == {"no"}
    assert content["updates"] is False
    assert "no updates" in said
    learned, _, _ = infer(tmp_path / "c", "--input", folder / "images", *given[:4], *given[5:])
    assert [row["probability"] for row in learned[:8]] == [row["probability"] for row in rows[:8]]
    assert [row["probability"] for row in learned[8:]] != [row["probability"] for row in rows[8:]]


@pytest.mark.parametrize("start", ["best.ckpt", "classifier.ckpt", "robust.pt"])
def test_a_saved_stream_goes_on_where_it_ended(folder, tmp_path, start):
    """With momentum and counters: two days are as one long one."""
    blue, green, state = folder / "images" / "blue", folder / "images" / "green", tmp_path / "days" / "state.ckpt"
    flags = ["--batch-size", "8", "--lr", "0.05"]
    whole, _, _ = infer(tmp_path / "whole", "--input", blue, green, "--checkpoint", folder / start, *flags)
    first, _, said = infer(tmp_path / "first", "--input", blue, "--checkpoint", folder / start, *flags, "--save", state)
    assert f"the state is in {state}" in said
    second, content, said = infer(
        tmp_path / "second", "--input", green, "--checkpoint", state, "--batch-size", "8", "--save", state
    )
    assert "has learned from 8 images in 1 batch so far" in said
    assert content["online"]["lr"] == 0.05
    same = ("path", "class", "probability", "entropy", "updated")
    assert [[row[key] for key in same] for row in first + second] == [[row[key] for key in same] for row in whole]
    adapter, source = load_adapter(state)
    assert (int(adapter.images), int(adapter.steps)) == (16, 2)
    assert source.class_names == (["0", "1", "2"] if start == "robust.pt" else CLASSES)
    assert [file.name for file in state.parent.iterdir()] == ["state.ckpt"]


@pytest.mark.parametrize(("file", "size"), [("classifier.ckpt", (16, 16)), ("robust.pt", (32, 32))])
def test_a_network_without_warm_up_is_calibrated_on_the_first_batch(folder, tmp_path, file, size):
    """And agrees with the network on statistics of the batch then, whether it goes on learning or not."""
    given = ["--input", folder / "images", "--checkpoint", folder / file]
    rows, _, _ = infer(tmp_path / "a", *given)
    fixed, _, _ = infer(tmp_path / "b", *given, "--no-updates")
    assert [row["probability"] for row in fixed] == [row["probability"] for row in rows]
    network = WideResNet(16, 1, 3)
    network.load_state_dict(load_adapter(folder / file)[0].model.state_dict())
    images = prepared([row["path"] for row in rows], replace(PLAIN, size=size))
    names = ["0", "1", "2"] if file == "robust.pt" else CLASSES
    expected = [names[i] for i in BatchStatistics(network).predict(images).argmax(dim=1)]
    assert sum(row["class"] == name for row, name in zip(rows, expected, strict=True)) >= 22


def test_the_guard_goes_back_and_says_so(folder, tmp_path):
    given = ["--input", folder / "images", "--checkpoint", folder / "best.ckpt", "--batch-size", "8"]
    state = tmp_path / "state.ckpt"
    rows, content, said = infer(tmp_path / "out", *given, "--lr", "1e30", "--save", state)
    events = [of for of in content["batches"] if of["event"]]
    assert events[0]["batch"] == 2
    assert "not finite; rolled back, learning rate now 5e+29" in events[0]["event"]
    assert f"vision: batch 2: {events[0]['event']}" in said
    assert f"{len(events)} rollback" in said
    assert {row["updated"] for row in rows if row["batch"] == "2"} == {"no"}
    assert all(float(row["entropy"]) <= 1 for row in rows)
    again = torch.load(state, weights_only=True)
    assert again["ecotta"]["online"]["lr"] == pytest.approx(1e30 / 2 ** len(events))
    line = error_line("infer", "ecotta", *given, "--out", tmp_path / "bad", "--lr", "1e30", "--no-guard")
    assert "predictions are NaN or infinite in batch 2; lower --lr" in line


def test_the_figure_marks_where_the_guard_went_back_and_smooths_a_long_stream():
    sure = {"entropy": 0.0, "kept": 1.0, "spread": 0.9}
    batches = [
        {**sure, "entropy": i % 2, "until": 4 * (i + 1), "event": "drift" if i == 70 else None} for i in range(80)
    ]
    axes = stream_figure(batches, "images").axes[0]
    (mark,) = [line for line in axes.lines if line.get_label() == "rolled back"]
    assert list(mark.get_xdata()) == [284, 284]
    (entropies,) = [line for line in axes.lines if line.get_label().startswith("entropy, mean")]
    assert entropies.get_ydata() == pytest.approx([0.5] * 40)
    assert entropies.get_xdata()[:2] == pytest.approx([6, 14])


def test_small_batches_are_warned_of_once(folder, tmp_path):
    given = ["--input", folder / "images", "--checkpoint", folder / "best.ckpt", "--batch-size", "5"]
    _, _, said = infer(tmp_path / "out", *given)
    (line,) = [line for line in said.splitlines() if "noisy" in line]
    assert line == "vision: batches of 5 give noisy statistics: mix in the source's with --prior 16 (AdaptBN)"
    _, _, said = infer(tmp_path / "out", *given, "--prior", "16")
    assert "noisy" not in said


def test_a_video_is_answered_as_its_frames_are(folder, tmp_path):
    video = write_video(tmp_path / "video.mp4", numbered_frames(31, 48, 48), fps=10)
    given = ["--checkpoint", folder / "best.ckpt", "--batch-size", "8"]
    rows, content, said = infer(tmp_path / "out", "--input", video, *given, "--every-frame", "3")
    assert [int(row["frame"]) for row in rows] == list(range(0, 31, 3))
    assert [float(row["seconds"]) for row in rows] == pytest.approx([0.3 * i for i in range(11)], abs=1e-3)
    assert [int(row["batch"]) for row in rows] == [1] * 8 + [2] * 3
    assert content["batches"][-1]["until"] == pytest.approx(3.0)
    assert said.splitlines()[-1] == f"vision: 11 frames, results in {tmp_path / 'out'}"
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(read_frames(video, lambda _: np.arange(0, 31, 3))):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number:02d}.png")
    same, _, _ = infer(tmp_path / "same", "--input", tmp_path / "frames", *given)
    assert [(of["class"], of["probability"]) for of in same] == [(of["class"], of["probability"]) for of in rows]
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png"))
    assert np.ptp(sheet[:160, :160].reshape(-1, 3), axis=0).min() > 100


@pytest.fixture(scope="module")
def pixels(folder) -> Path:
    """A network that labels pixels and gives its logits in a dictionary."""
    torch.manual_seed(0)
    name, size = "lraspp_mobilenet_v3_large", (48, 64)
    network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5)
    adapter = EcoTTA.attach(network, partition=[["backbone.2"], ["backbone.3"]], input_size=size)
    source = SourceRecord(
        f"torchvision:{name}", ["sky", "road", "tree", "car", "sign"], Preprocessing(size, crop_pct=1.0)
    )
    return write_checkpoint(folder / "pixels.ckpt", adapter, source, Online())


def test_pixels_are_written_as_pictures(folder, pixels, tmp_path):
    files = [folder / "images" / name / "000.png" for name in CLASSES]
    rows, content, said = infer(tmp_path / "out", "--input", *files, "--checkpoint", pixels)
    assert [int(row["batch"]) for row in rows] == [1, 1, 2]
    assert "noisy" not in said
    adapter, source = load_adapter(pixels)
    logits = adapter.adapt(prepared([str(file) for file in files[:2]], source.preprocessing))
    for number, (row, entry) in enumerate(zip(rows[:2], content["images"], strict=False)):
        mapped = Image.open(tmp_path / "out" / entry["labels"])
        labels = np.asarray(mapped)
        assert (labels == logits[number].argmax(dim=0).numpy()).mean() > 0.999
        share = (labels == source.class_names.index(row["class_1"])).mean()
        assert float(row["share_1"]) == pytest.approx(share, abs=1e-4)
        assert float(row["share_1"]) >= float(row["share_2"] or 0) >= float(row["share_3"] or 0)
        colour = mapped.convert("RGB").getpixel((0, 0))
        assert "#{:02x}{:02x}{:02x}".format(*colour) == content["colours"][source.class_names[labels[0, 0]]]
        shown = np.asarray(Image.open(tmp_path / "out" / entry["overlay"])).astype(float)
        square = np.asarray(Image.open(files[number]).resize((64, 64)))[8:56].astype(float)
        half = (square + np.asarray(mapped.convert("RGB"))) / 2
        assert np.abs(shown - half).mean() < 8
    # Three files of one name.
    assert [entry["labels"] for entry in content["images"]] == [f"labels/000{n}.png" for n in ("", "-2", "-3")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "-1"], "--lr must be at least 0 and finite, got -1.0"),
        (["--lr", "nan"], "--lr must be at least 0 and finite, got nan"),
        (["--lr-batch", "0"], "--lr-batch must be at least 1, got 0"),
        (["--prior", "-2"], "--prior must be at least 0, got -2.0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--memory", "much"], "argument --memory: invalid choice: 'much'"),
        (["--every-frame", "2"], "--every-frame is of a video"),
        (["--no-updates", "--save", "x.ckpt"], "--save: with --no-updates nothing is learned"),
        (["--save", "{folder}/images"], "images is a folder or a safetensors file; expected the name of a .ckpt file"),
        (["--save", "{folder}/best.ckpt/x.ckpt"], "--save: {folder}/best.ckpt/x.ckpt cannot be written"),
        (["--backbone", "resnet18"], "best.ckpt is of a network that needs no name, not of 'resnet18'"),
        (["--input", "nowhere"], "--input: no such file, folder or pattern: nowhere"),
        (["--input", "{folder}/empty.png"], "none of 1 images could be read; {folder}/empty.png: empty file (0 bytes)"),
        (["--input", "{folder}/empty.mp4"], "empty.mp4: empty file (0 bytes)"),
        (["--input", "{folder}/text.mp4"], "text.mp4: "),
        (["--input", "{folder}/text.mp4", "{folder}/images"], "one video at a time, and no images beside it"),
        (["--checkpoint", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint file"),
        (["--checkpoint", "{folder}/half.ckpt"], "what it says of its network is unusable (KeyError('source'))"),
        (["--checkpoint", "{folder}/nan.ckpt"], "NaN or infinite values in adapter.metas.0.meta_bn.weight"),
        (["--checkpoint", "{folder}/names.ckpt"], "the network has 3 outputs and names 2 classes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, tmp_path, arguments, message):
    given = [argument.format(folder=folder) for argument in arguments]
    for flag, value in (("--input", folder / "images"), ("--checkpoint", folder / "best.ckpt"), ("--out", tmp_path)):
        if flag not in given:
            given += [flag, str(value)]
    assert message.format(folder=folder) in error_line("infer", "ecotta", *given)


def test_a_checkpoint_of_another_kind_of_network(folder, tmp_path):
    torch.save({"multitask": {}, "state_dict": {"x": torch.zeros(1)}}, folder / "medic.ckpt")
    line = error_line(
        *("infer", "ecotta", "--input", folder / "images"), "--checkpoint", folder / "medic.ckpt", "--out", tmp_path
    )
    assert "'vision infer medic' uses it" in line


def test_one_image_of_one_place_has_no_statistics(folder, tmp_path):
    content = torch.load(folder / "best.ckpt", weights_only=True)
    content["ecotta"]["source"]["preprocessing"]["size"] = (2, 2)
    torch.save(content, folder / "tiny.ckpt")
    given = ["--input", folder / "images", "--batch-size", "1", "--checkpoint", folder / "tiny.ckpt"]
    assert "mix in the source's statistics" in error_line("infer", "ecotta", *given, "--out", tmp_path)
    rows, _, _ = infer(tmp_path, *given, "--prior", "16")
    assert len(rows) == 24
