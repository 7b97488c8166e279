"""``vision`` with several tasks: fit, test, infer, export, bench."""

from __future__ import annotations

import csv
import json
import statistics

import numpy as np
import onnx
import pytest
import torch
import torchvision
import yaml
from PIL import Image

from datamodules.builtin.scenes import TASKS as SCENES
from datamodules.transforms import eval_transform
from scripts.bench.medic_runs import partial_tables
from scripts.bench.medic_tables import tables
from scripts.bench.pages import ROOT
from scripts.bench.results import mean_and_error
from scripts.export.medic import OnnxMultitask
from scripts.systems import CONFIGS
from tests.command import error_line, vision
from tests.tasks.multitask import TASKS, write_tables
from vision.labels import LabelSchema
from vision.medic import load_network
from vision.medic.checkpoint import OFFICIAL_TASKS

COMMITTED = json.loads((ROOT / "benchmarks" / "medic.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables, a configuration over them, and a training by it: ``best.ckpt``, with what the commands printed."""
    folder = write_tables(tmp_path_factory.mktemp("medic"), rows=48)
    content = {
        "model": {
            "class_path": "MultitaskClassifier",
            "init_args": {
                "backbone": "timm:test_resnet",
                "ordinal": True,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "MultitaskImages",
            "init_args": {"root": str(folder), "tasks": TASKS, "image_size": 32, "batch_size": 8, "num_workers": 0},
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": str(folder / "runs")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    finished = vision("fit", "--config", folder / "config.yaml")
    assert finished.returncode == 0, finished.stderr
    (folder / "fit.txt").write_text(finished.stdout)
    (best,) = folder.rglob("best.ckpt")
    best.rename(folder / "best.ckpt")
    return folder


def test_fit_says_little_and_test_prints_the_table(folder):
    said = (folder / "fit.txt").read_text()
    assert "at the end: val_loss" in said
    assert len(said.splitlines()) < 6
    finished = vision("test", "--config", folder / "config.yaml", "--ckpt_path", folder / "best.ckpt")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    header = next(line for line in lines if line.startswith("task "))
    assert header.split()[:7] == ["task", "images", "acc", "P", "R", "F1", "macro"]
    for task in TASKS:
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{task} "))
        assert lines[place + 1].strip().startswith("always '")
    assert "test_colour_accuracy" not in finished.stdout  # not a second time in Lightning's own table


def test_predict_writes_a_table(folder):
    finished = vision("predict", "--config", folder / "config.yaml", "--ckpt_path", folder / "best.ckpt")
    assert finished.returncode == 0, finished.stderr
    (file,) = folder.rglob("predictions.csv")
    rows = list(csv.DictReader(file.open(newline="")))
    assert len(rows) == 9
    assert set(rows[0]) == {"path", *TASKS, *(f"{task}_probability" for task in TASKS)}


@pytest.fixture(scope="module")
def exported(folder):
    finished = vision("export", "medic", "--checkpoint", folder / "best.ckpt", "--out", folder / "onnx")
    assert finished.returncode == 0, finished.stderr
    assert "outputs colour (3), level (2), side (2)" in finished.stdout
    return folder / "onnx" / "timm-test_resnet.onnx"


def test_exported_network_has_an_output_a_task_and_gives_pytorchs(folder, exported):
    network, record = load_network(folder / "best.ckpt")
    again = OnnxMultitask(exported)
    assert again.record == record
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
    found = again.run(images)
    assert list(found) == list(TASKS)
    for task in TASKS:
        torch.testing.assert_close(found[task], expected[task], rtol=0, atol=1e-4 * float(expected[task].abs().max()))


@pytest.mark.parametrize("kind", ["ckpt", "onnx"])
def test_infer_answers_ranks_and_tells_of_what_it_could_not_read(folder, exported, tmp_path, kind):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(6):
        Image.open(folder / "data" / f"test{i}.png").save(pictures / f"{i}.png")
    (pictures / "broken.png").write_bytes(b"")
    checkpoint = folder / "best.ckpt" if kind == "ckpt" else exported
    finished = vision("infer", "medic", "--input", pictures, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    assert "6 of 7 images" in finished.stdout
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open(newline="")))
    read = [row for row in rows if row["status"] == "ok"]
    (bad,) = [row for row in rows if row["status"] != "ok"]
    assert (bad["path"], bad["status"]) == (str(pictures / "broken.png"), "empty file (0 bytes)")
    assert sorted(int(row["review_rank"]) for row in read) == [1, 2, 3, 4, 5, 6]
    doubt = {int(row["review_rank"]): max(float(row[f"{task}_entropy"]) for task in TASKS) for row in read}
    assert [doubt[rank] for rank in sorted(doubt)] == sorted(doubt.values(), reverse=True)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["unreadable"] == [{"path": str(pictures / "broken.png"), "reason": "empty file (0 bytes)"}]
    for image in content["images"]:
        for task in TASKS:
            assert sum(image["tasks"][task]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    # What stands there is what the network says.
    network, record = load_network(folder / "best.ckpt")
    pixels = np.asarray(Image.open(pictures / "0.png").convert("RGB"))
    with torch.no_grad():
        logits = network(eval_transform(record.preprocessing)(image=pixels)["image"][None])
    sides = logits["side"].softmax(dim=1)[0]
    shown = content["images"][0]["tasks"]["side"]["probabilities"]
    assert list(shown.values()) == pytest.approx(sides.tolist(), abs=1e-4)
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width > 300


def test_official_layout_of_a_trained_network(folder, tmp_path):
    line = error_line("export", "medic", "--checkpoint", folder / "best.ckpt", "--out", tmp_path, "--official")
    assert "the official layout has no ordinal heads, level has one" in line
    assert not list(tmp_path.iterdir())


def test_official_checkpoint_through_infer_and_export(folder, tmp_path):
    names = [list(of["classes"] if isinstance(of, dict) else of) for of in OFFICIAL_TASKS.values()]
    network = torchvision.models.resnet18(weights=None, num_classes=16)
    torch.save({"state_dict": network.state_dict(), "class_names": names}, tmp_path / "best.pth")
    flags = ["--checkpoint", tmp_path / "best.pth"]
    assert "name it with --backbone" in error_line("export", "medic", *flags, "--out", tmp_path / "out")
    finished = vision("export", "medic", *flags, "--backbone", "resnet18", "--out", tmp_path / "out", "--official")
    assert finished.returncode == 0, finished.stderr
    again = torch.load(tmp_path / "out" / "resnet18.official.pth", weights_only=True)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in again["state_dict"].items())
    found = vision(
        *["infer", "medic", "--input", folder / "data" / "test0.png", "--out", tmp_path / "found"],
        *["--checkpoint", tmp_path / "out" / "resnet18.onnx"],
    )
    assert found.returncode == 0, found.stderr
    (row,) = csv.DictReader((tmp_path / "found" / "predictions.csv").open(newline=""))
    assert row["damage_severity"] in names[0]


def test_files_that_are_something_else(folder, exported, tmp_path):
    common = ["--input", folder / "data", "--out", tmp_path]
    assert "no such checkpoint file" in error_line("infer", "medic", "--checkpoint", tmp_path / "no.ckpt", *common)
    content = onnx.load(exported)
    del content.metadata_props[:]
    onnx.save(content, tmp_path / "bare.onnx")
    line = error_line("infer", "medic", "--checkpoint", tmp_path / "bare.onnx", *common)
    assert "not a network of 'vision export medic' (its metadata lacks the tasks)" in line
    entry = content.metadata_props.add()
    record = {"backbone": "x", "ordinal": False, "schema": {"a": ["x", "y"]}, "preprocessing": {"size": [32, 32]}}
    entry.key, entry.value = "multitask", json.dumps(record)
    onnx.save(content, tmp_path / "other.onnx")
    line = error_line("infer", "medic", "--checkpoint", tmp_path / "other.onnx", *common)
    assert "its metadata tells of float images (batch, 3, 32, 32) and the outputs {'a': 2}" in line
    line = error_line("infer", "medic", "--checkpoint", exported, "--backbone", "resnet18", *common)
    assert "leave out --backbone" in line
    flags = ["--checkpoint", folder / "best.ckpt", *common]
    assert "is of 'timm:test_resnet', not of 'resnet50'" in error_line(
        "infer", "medic", *flags, "--backbone", "resnet50"
    )
    assert "holds another kind of network; 'vision infer medic' uses it" in error_line("infer", "efficientvit", *flags)
    content = torch.load(folder / "best.ckpt", weights_only=True)
    torch.save({**content, "multitask": {"backbone": "x"}}, tmp_path / "half.ckpt")
    line = error_line("infer", "medic", "--checkpoint", tmp_path / "half.ckpt", *common)
    assert "half.ckpt: what it says of its tasks is unusable (KeyError('schema'))" in line
    torch.save({"classifier": {}, "state_dict": content["state_dict"]}, tmp_path / "one.ckpt")
    line = error_line("infer", "medic", "--checkpoint", tmp_path / "one.ckpt", *common)
    assert "holds another kind of network; 'vision infer efficientvit' uses it" in line
    line = error_line("infer", "efficientvit", "--checkpoint", exported, *common)
    assert "not a classifier of 'vision export'" in line


@pytest.mark.parametrize("name", ["finetune", "paper"])
def test_configurations_have_the_releases_tasks(name):
    content = yaml.safe_load((CONFIGS / "medic" / f"{name}.yaml").read_text())
    assert LabelSchema.parse(content["data"]["init_args"]["tasks"]) == LabelSchema.parse(OFFICIAL_TASKS)


def test_a_bad_row_is_one_line_with_its_number(folder):
    header, *rows = (folder / "train.tsv").read_text().splitlines()
    rows[4] = rows[4].split("\t")[0] + "\tdata/train4.png\tblu\tdark\tleft"
    (folder / "bad.tsv").write_text("\n".join([header, *rows]) + "\n")
    line = error_line("fit", "--config", folder / "config.yaml", "--data.train", "bad.tsv")
    assert "bad.tsv:6: " in line
    assert "did you mean 'blue'?" in line


def test_misspelt_weighting(folder):
    line = error_line("fit", "--config", folder / "config.yaml", "--model.weighting", "Gradnorm")
    assert "no class 'Gradnorm' (did you mean 'GradNorm'?); there are EqualWeights, FixedWeights" in line


def test_a_network_is_tested_whatever_weighting_it_was_trained_with(folder, tmp_path):
    """And a training goes on with the same one only."""
    runs = ["--trainer.default_root_dir", tmp_path]
    config = ["--config", folder / "config.yaml", *runs]
    finished = vision("fit", *config, "--model.weighting", "FAMO", "--trainer.max_epochs", "1")
    assert finished.returncode == 0, finished.stderr
    (last,) = tmp_path.rglob("last.ckpt")
    tested = vision("test", *config, "--ckpt_path", last)
    assert tested.returncode == 0, tested.stderr
    line = error_line("fit", *config, "--ckpt_path", last, "--model.weighting", "DWA")
    assert "the checkpoint was trained with model.weighting FAMO, the configuration has DWA" in line
    line = error_line("test", *config, "--ckpt_path", last, "--model.ordinal", "false")
    assert "the checkpoint has model.ordinal True, the configuration False" in line


def test_half_of_the_labels_hidden_and_rows_with_a_gap_dropped(tmp_path):
    found = partial_tables(tmp_path, seed=0)
    hidden, dropped = (list(csv.DictReader(found[name][0].open(), delimiter="\t")) for name in ("hidden", "dropped"))
    assert [len(hidden), len(dropped)] == [found[name][1] for name in ("hidden", "dropped")]
    blank = statistics.fmean(not row[task] for row in hidden for task in SCENES)
    assert blank == pytest.approx(0.5, abs=0.02)
    assert dropped == [row for row in hidden if all(row[task] for task in SCENES)]


def test_mean_and_standard_error_by_hand():
    spread = mean_and_error([1.0, 2.0, 6.0])
    error = (((4 + 1 + 9) / 2) ** 0.5) / 3**0.5
    assert spread == pytest.approx((3.0, 3.0 - error, 3.0 + error))


def test_reading_names_a_weighting_only_where_it_is_better_beyond_chance():
    """PCGrad gains two points with hardly any spread, DWA one on average with a large one."""

    def row(contender: str, seed: int, f1: float) -> dict:
        metrics = {f"{task}_f1_weighted": f1 for task in SCENES}
        metrics |= {f"{task}_majority_f1_weighted": 0.3 for task in SCENES} | {}
        return {"name": "", "group": "trained", "contender": contender, "seed": seed, "metrics": metrics}

    rows = [row(f"only_{task}", seed, 0.9) for task in SCENES for seed in range(3)]
    rows += [row(name, seed, 0.9) for name in ("Equal", "together", "hidden", "dropped") for seed in range(3)]
    rows += [row("PCGrad", seed, 0.9 + gain) for seed, gain in enumerate((0.02, 0.021, 0.019))]
    rows += [row("DWA", seed, 0.9 + gain) for seed, gain in enumerate((0.05, -0.04, 0.01))]
    rest = {key: COMMITTED[key] for key in ("environment", "setting", "left_out", "claims")}
    costs = [row for row in COMMITTED["rows"] if row["group"] != "trained"]
    reading = tables({**rest, "rows": [*costs, *rows]})["reading"]
    assert reading.startswith("Better than equal weights beyond chance (paired t-tests over 3 seeds, 5% for the 2 ")
    assert reading.endswith(": PCGrad.")
    without = [row for row in rows if row["contender"] != "PCGrad"]
    assert tables({**rest, "rows": [*costs, *without]})["reading"].startswith(
        "No weighting is better than equal weights"
    )


def test_committed_result_has_every_table():
    assert all(tables(COMMITTED).values())
    assert len({entry["id"] for entry in COMMITTED["claims"]}) == len(COMMITTED["claims"])
