"""The ``vision`` command as a user meets it: help, typos, broken data and checkpoints, each in one line."""

from __future__ import annotations

import csv
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.command import ROOT, error_line, vision, vision_process, write_config
from tests.datamodules.test_decoding import broken_files
from tests.images import COLOURS, write_images
from vision.classifiers import create_classifier


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data, a configuration and the finished run of a small training."""
    folder = tmp_path_factory.mktemp("trained")
    write_images(folder / "data" / "train", 12)
    write_images(folder / "data" / "test", 4, seed=1)
    config = write_config(folder / "config.yaml", folder / "data", max_epochs=1)
    finished = vision_process("fit", "--config", config)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "best checkpoint" in finished.stdout
    return folder


@pytest.fixture(scope="module")
def best(trained) -> Path:
    (file,) = trained.rglob("best.ckpt")
    return file


def test_help_names_every_verb_and_imports_nothing_heavy():
    shown = "import sys, scripts.cli as c; c.main(['--help']); print({'torch', 'timm', 'cv2'} & sys.modules.keys())"
    finished = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True, cwd=ROOT)
    assert finished.stdout.endswith("set()\n")
    for verb in ("fit", "validate", "test", "predict", "infer", "export", "bench", "list"):
        assert f"  {verb} " in finished.stdout


def test_list_shows_configurations_that_exist():
    finished = vision("list")
    assert finished.returncode == 0
    files = [word for word in finished.stdout.split() if word.endswith(".yaml")]
    assert any(file.endswith("efficientvit/m0_imagenet.yaml") for file in files)
    assert all(Path(file).is_file() for file in files)


@pytest.mark.parametrize("name", ["demo", "demo_digits", "m0_imagenet", "finetune"])
def test_configurations_are_valid(name):
    finished = vision("fit", "--config", f"configs/efficientvit/{name}.yaml", "--print_config")
    assert finished.returncode == 0, finished.stderr
    assert "class_path: tasks.ImageClassifier" in finished.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trainer.max_epoks=3"], "--trainer.max_epoks (did you mean '--trainer.max_epochs'?)"),
        (["--data.rot=x"], "ImageFolder has no argument 'rot' (did you mean 'root'?)"),
        (["--model=ImageClasifier"], "no class 'ImageClasifier' (did you mean 'ImageClassifier'?)"),
        (["--model.optimizer.lrr=3"], "AdamW has no argument 'lrr' (did you mean 'lr'?)"),
        (["--data.batch_size=abc"], "batch_size: expected int, got abc"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--model.backbone=efficientvit_m9"], "no network called 'efficientvit_m9' (did you mean 'efficientvit_m"),
        (["--data.root=nowhere"], "no such folder: nowhere"),
        (["--model.num_classes=7"], "the network has 7 classes, the data has 3"),
        (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt: no such checkpoint file"),
    ],
)
def test_wrong_flags(trained, flags, words):
    assert words in error_line("fit", "--config", trained / "config.yaml", *flags)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("batch_size", "batch_sise"), "ImageFolder has no argument 'batch_sise' (did you mean 'batch_size'?)"),
        (("max_epochs", "max_epoch"), "no key 'trainer.max_epoch' (did you mean 'trainer.max_epochs'?)"),
        (("trainer:", "traner:"), "no key 'traner' (did you mean 'trainer'?)"),
    ],
)
def test_a_typo_in_the_yaml(trained, tmp_path, change, words):
    file = tmp_path / "typo.yaml"
    file.write_text((trained / "config.yaml").read_text().replace(*change))
    assert words in error_line("fit", "--config", file)


def test_wrong_verbs():
    assert "no verb 'fitt' (did you mean 'fit'?)" in error_line("fitt")
    assert "no system 'efficientvitt' (did you mean 'efficientvit'?)" in error_line("infer", "efficientvitt")
    assert "required: --input, --checkpoint, --out" in error_line("infer", "efficientvit")


def test_debug_shows_the_traceback():
    finished = vision_process("--debug", "fit", "--config", "nowhere.yaml")
    assert "Traceback" in finished.stderr
    assert finished.returncode == 1


# --------------------------------------------------------------------------------------------------- broken data
def test_an_empty_class(trained, tmp_path):
    write_images(tmp_path / "data", 4)
    (tmp_path / "data" / "yellow").mkdir()
    line = error_line("fit", "--config", trained / "config.yaml", "--data.root", tmp_path / "data")
    assert "yellow: the class folder has no images" in line


@pytest.mark.parametrize("name", ["truncated.jpg", "truncated.png", "empty.jpg", "text.jpg", "bomb.png"])
def test_broken_images_stop_a_training_that_has_too_many(trained, tmp_path, name):
    root = write_images(tmp_path / "data", 4)
    words = broken_files(tmp_path, Image.fromarray(np.zeros((40, 60, 3), np.uint8)))
    (tmp_path / name).rename(root / "red" / name)
    line = error_line("fit", "--config", trained / "config.yaml", "--data.root", root)
    assert name in line
    assert words[name] in line
    assert "1 of 13 images cannot be read" in line


# ---------------------------------------------------------------------------------------------- broken checkpoints
class _Bomb:
    """Unpickling it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self):
        return (open, (self.file, "w"))


def _broken_checkpoint(kind: str, best: Path, folder: Path) -> Path:
    file = folder / f"{kind}.ckpt"
    content = torch.load(best, weights_only=True)
    if kind == "nan":
        content["state_dict"]["model.head.l.weight"][0, 0] = float("nan")
        torch.save(content, file)
    elif kind == "pickled":
        torch.save({**content, "extra": _Bomb(folder / "executed")}, file)
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(_Bomb(folder / "executed")))
    elif kind == "truncated":
        file.write_bytes(best.read_bytes()[:5000])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "missing":
        del content["state_dict"]["model.head.l.bias"]
        torch.save(content, file)
    return file


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "NaN or infinite values in model.head.l.weight"),
        ("pickled", "holds a pickled object, which is never executed"),
        ("pickle", "checkpoint"),
        ("truncated", "not a readable PyTorch checkpoint"),
        ("empty", "the checkpoint file is empty"),
    ],
)
def test_broken_checkpoints(trained, best, tmp_path, kind, words):
    file = _broken_checkpoint(kind, best, tmp_path)
    assert words in error_line("test", "--config", trained / "config.yaml", "--ckpt_path", file)
    pictures = trained / "data" / "test"
    assert words.removeprefix("NaN").removesuffix("model.head.l.weight") in error_line(
        "infer", "efficientvit", "--input", pictures, "--checkpoint", file, "--out", tmp_path / "out"
    )
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_with_a_missing_key(trained, best, tmp_path):
    file = _broken_checkpoint("missing", best, tmp_path)
    line = error_line(
        "infer", "efficientvit", "--input", trained / "data", "--checkpoint", file, "--out", tmp_path / "out"
    )
    assert "missing head.l.bias" in line


def test_a_checkpoint_of_other_classes(trained, best, tmp_path):
    root = write_images(tmp_path / "data", 4)
    (root / "red").rename(root / "yellow")
    line = error_line("test", "--config", trained / "config.yaml", "--ckpt_path", best, "--data.root", root)
    assert "the checkpoint knows 3 classes (blue, green, red" in line
    assert "yellow" in line
    (root / "yellow" / "deep").mkdir()
    for name in ("pink", "white"):
        (root / name).mkdir()
        (root / "blue" / f"{'000' if name == 'pink' else '001'}.png").rename(root / name / "0.png")
        Image.new("RGB", (8, 8)).save(root / name / "1.png")
    line = error_line("test", "--config", trained / "config.yaml", "--ckpt_path", best, "--data.root", root)
    assert "3 classes" in line
    assert "5" in line


def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(trained, best, tmp_path):
    """A limit on the size of files stands for the full disk: writing fails in the middle of the file."""
    config = trained / "config.yaml"
    runs = tmp_path / "runs"
    assert vision("fit", "--config", config, "--trainer.default_root_dir", runs).returncode == 0
    (last,) = runs.rglob("last.ckpt")
    before = last.read_bytes()
    callback = {"class_path": "pytorch_lightning.callbacks.ModelCheckpoint"}
    callback["init_args"] = {"dirpath": str(last.parent), "filename": "last", "enable_version_counter": False}
    limited = vision_process(
        *["fit", "--config", config, "--trainer.max_epochs", "2", "--ckpt_path", last],
        f"--trainer.callbacks+={json.dumps(callback)}",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2,) * 2),
    )
    assert limited.returncode == 2, limited.stderr
    (line,) = limited.stderr.strip().splitlines()
    assert "last.ckpt: the checkpoint cannot be written" in line
    assert "unharmed" in line
    assert last.read_bytes() == before
    assert sorted(os.listdir(last.parent)) == ["best.ckpt", "last.ckpt"]
    assert vision("test", "--config", config, "--ckpt_path", last).returncode == 0


# ------------------------------------------------------------------------------------------------------ inference
def test_inference_on_files_folders_and_patterns(trained, best, tmp_path):
    pictures = trained / "data" / "test"
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    finished = vision(
        *["infer", "efficientvit", "--checkpoint", best, "--out", tmp_path / "out", "--top-k", 2],
        *["--input", pictures / "red", str(pictures / "b*" / "*.png"), pictures / "green" / "000.png", broken],
    )
    assert finished.returncode == 0, finished.stderr
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(content["images"]) == 9
    assert [entry["path"] for entry in content["unreadable"]] == [str(broken)]
    for image in content["images"]:
        first, second = image["predictions"]
        assert {first["class"], second["class"]} < set(COLOURS)
        assert 1 >= first["probability"] >= second["probability"]
    with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 10
    assert rows[0]["class_1"] == content["images"][0]["predictions"][0]["class"]
    assert "not an image" in rows[-1]["error"]
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 300


def test_inference_agrees_with_the_network(trained, best, tmp_path):
    """The probabilities in the JSON are those of the trained weights on the file, preprocessed by hand."""
    from vision.classifiers import load_classifier

    file = trained / "data" / "test" / "red" / "000.png"
    assert vision("infer", "efficientvit", "--checkpoint", best, "--out", tmp_path, "--input", file).returncode == 0
    (image,) = json.loads((tmp_path / "predictions.json").read_text())["images"]
    model, record = load_classifier(best)
    assert record.class_names == sorted(COLOURS)
    assert record.preprocessing.size == (32, 32)
    # crop_pct 0.875: resized to 36 pixels, of which the middle 32 are taken.
    import cv2

    pixels = cv2.resize(np.asarray(Image.open(file)), (36, 36), interpolation=cv2.INTER_CUBIC)[2:34, 2:34]
    normalised = (pixels / 255 - record.preprocessing.mean) / record.preprocessing.std
    with torch.no_grad():
        shares = model(torch.tensor(normalised).permute(2, 0, 1)[None].float()).softmax(dim=1)[0]
    for entry in image["predictions"]:
        expected = float(shares[record.class_names.index(entry["class"])])
        assert entry["probability"] == pytest.approx(expected, abs=1e-4)


def test_an_official_file_needs_its_network_named(tmp_path, trained):
    torch.manual_seed(0)
    file = tmp_path / "m0.pth"
    torch.save({"model": create_classifier("efficientvit_m0", 4).state_dict()}, file)
    command = [
        "infer",
        "efficientvit",
        "--checkpoint",
        file,
        "--out",
        tmp_path,
        "--input",
        trained / "data" / "test" / "red",
    ]
    assert "name it with --backbone" in error_line(*command)
    assert vision(*command, "--backbone", "efficientvit_m0").returncode == 0
    (first, *_) = json.loads((tmp_path / "predictions.json").read_text())["images"]
    assert {entry["class"] for entry in first["predictions"]} == {"0", "1", "2", "3"}


def test_inference_without_anything_to_read(best, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    command = ["infer", "efficientvit", "--checkpoint", best, "--out", tmp_path / "out"]
    assert "no images in" in error_line(*command, "--input", empty)
    assert "no such file, folder or pattern: nowhere*" in error_line(*command, "--input", "nowhere*")
    (empty / "zero.jpg").write_bytes(b"")
    line = error_line(*command, "--input", empty)
    assert "none of 1 images could be read" in line
    assert "zero.jpg: empty file" in line


def test_predict_writes_a_table(trained, best):
    finished = vision("predict", "--config", trained / "config.yaml", "--ckpt_path", best)
    assert finished.returncode == 0, finished.stderr
    (table,) = trained.rglob("predictions.csv")
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    assert {row["class_1"] for row in rows} <= set(COLOURS)
