"""``vision export``: files that agree with PyTorch, int8 with what it loses, one line for bad input."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

from scripts.bench.forms import vary
from scripts.export.graph import export_classifier
from scripts.export.session import OnnxClassifier
from tests.command import error_line, vision
from tests.images import COLOURS, write_images
from tests.vision.efficientvit.weights import lively
from vision.classifiers import RECORD, ClassifierRecord, create_classifier, load_classifier
from vision.errors import InputError
from vision.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images, a checkpoint that tells red from green from blue, and its exported files."""
    folder = tmp_path_factory.mktemp("export")
    write_images(folder / "train", 22)
    write_images(folder / "test", 4, seed=1)
    torch.manual_seed(0)
    model = create_classifier("efficientvit_m0", 3, (32, 32))
    model.load_state_dict(lively(model))
    record = ClassifierRecord("efficientvit_m0", sorted(COLOURS), Preprocessing((32, 32)))
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, RECORD: record.as_dict()}, folder / "best.ckpt")
    finished = vision(
        *["export", "efficientvit", "--checkpoint", folder / "best.ckpt", "--out", folder / "out"],
        *["--int8", folder / "train", "--evaluate", folder / "test"],
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return folder


def command(folder: Path, out: Path, *flags: str | Path) -> list[str | Path]:
    return ["export", "efficientvit", "--checkpoint", folder / "best.ckpt", "--out", out, *flags]


def test_any_batch_gives_pytorchs_logits(folder):
    exported = OnnxClassifier(folder / "out" / "efficientvit_m0.onnx")
    model, record = load_classifier(folder / "best.ckpt")
    assert exported.record == record
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            expected = model(images)
        assert (exported(images) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.filterwarnings("ignore:EfficientViT at")
@pytest.mark.parametrize(("size", "absent"), [((224, 224), {"Pad"}), ((136, 200), set())])
def test_windows_are_constants_of_a_graph_without_normalisation(tmp_path, size, absent):
    """At 224 pixels the first stage is cut into windows, at 136 x 200 padded as well; nothing asks for a shape."""
    torch.manual_seed(0)
    model = create_classifier("efficientvit_m1", 3, size).eval()
    vary(model)
    record = ClassifierRecord("efficientvit_m1", ["a", "b", "c"], Preprocessing(size))
    export_classifier(model, record, tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert not {node.op_type for node in graph.node} & {"BatchNormalization", "Shape", *absent}
    assert [graph.input[0].name, graph.output[0].name] == ["images", "logits"]
    images = torch.randn(5, 3, *size)
    with torch.no_grad():
        expected = model(images)
    found = OnnxClassifier(tmp_path / "net.onnx")(images)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_metadata_can_be_read_without_this_package(folder):
    for name in ("efficientvit_m0.onnx", "efficientvit_m0.int8.onnx"):
        metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(folder / "out" / name).metadata_props}
        assert metadata["class_names"] == ["blue", "green", "red"]
        assert metadata["preprocessing"]["size"] == [32, 32]
        assert metadata["preprocessing"]["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_int8_weights_are_eight_bits_and_their_loss_is_told(folder):
    file = folder / "out" / "efficientvit_m0.int8.onnx"
    weights = [tensor for tensor in onnx.load(file).graph.initializer if len(tensor.dims) == 4]
    assert len(weights) > 100
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    assert file.stat().st_size < 0.45 * file.with_name("efficientvit_m0.onnx").stat().st_size
    told = json.loads((folder / "out" / "export.json").read_text())["int8"]
    assert told["calibrated_on"] == 66
    assert told["images"] == told["labelled"] == 12
    assert told["top1_drop_points"] == pytest.approx(100 * (told["top1_float"] - told["top1_int8"]))
    assert 0 < told["rms_relative_logit_error"] < 1


def test_inference_runs_the_exported_files(folder, tmp_path):
    answers = {}
    for file in ("best.ckpt", "out/efficientvit_m0.onnx", "out/efficientvit_m0.int8.onnx"):
        finished = vision(
            *["infer", "efficientvit", "--checkpoint", folder / file, "--out", tmp_path, "--input", folder / "test"]
        )
        assert finished.returncode == 0, finished.stderr
        images = json.loads((tmp_path / "predictions.json").read_text())["images"]
        answers[file] = {image["path"]: image["predictions"][0] for image in images}
    float_answers, onnx_answers = answers["best.ckpt"], answers["out/efficientvit_m0.onnx"]
    assert {path: top["class"] for path, top in float_answers.items()} == {
        p: t["class"] for p, t in onnx_answers.items()
    }
    for path, top in float_answers.items():
        assert onnx_answers[path]["probability"] == pytest.approx(top["probability"], abs=1e-3)
    assert len(answers["out/efficientvit_m0.int8.onnx"]) == 12


def test_flips_are_counted_on_images_of_unknown_class_too(folder, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, file in enumerate(sorted((folder / "train").rglob("*.png"))[:-2]):
        shutil.copy(file, pictures / f"{i}.png")
    finished = vision(*command(folder, tmp_path / "out", "--int8", pictures))
    assert finished.returncode == 0, finished.stderr
    told = json.loads((tmp_path / "out" / "export.json").read_text())["int8"]
    assert (told["calibrated_on"], told["images"]) == (32, 32)  # halves
    assert "top1_int8" not in told
    assert "decides" in finished.stdout


@pytest.mark.filterwarnings("ignore:EfficientViT at")
def test_images_given_twice_are_not_both_calibrated_and_compared_on(folder, tmp_path):
    twice = [folder / "train", folder / "test" / ".." / "train"]
    finished = vision(*command(folder, tmp_path, "--int8", *twice))
    assert finished.returncode == 0, finished.stderr
    told = json.loads((tmp_path / "export.json").read_text())["int8"]
    assert told["calibrated_on"] + told["images"] == 66


def test_another_image_size_and_a_warning_of_padded_windows(folder, tmp_path):
    finished = vision(*command(folder, tmp_path, "--image-size", 136))
    assert finished.returncode == 0, finished.stderr
    images = onnx.load(tmp_path / "efficientvit_m0.onnx").graph.input[0]
    assert [size.dim_value for size in images.type.tensor_type.shape.dim][1:] == [3, 136, 136]
    with pytest.warns(UserWarning, match="nearest sizes without padding: 112 or 224"):
        load_classifier(folder / "best.ckpt", image_size=(136, 136))


def test_a_network_of_timms_and_two_heads(folder, tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("mobilenetv3_small_050", num_classes=3).state_dict(), tmp_path / "timm.pth")
    torch.save(create_classifier("efficientvit_m0", 4, distillation=True).state_dict(), tmp_path / "heads.pth")
    for file, backbone in (("timm.pth", "mobilenetv3_small_050"), ("heads.pth", "efficientvit_m0")):
        finished = vision(
            *["export", "efficientvit", "--checkpoint", tmp_path / file, "--backbone", backbone, "--out", tmp_path],
        )
        assert finished.returncode == 0, finished.stderr
        assert (tmp_path / f"{backbone}.onnx").is_file()


# ---------------------------------------------------------------------------------------------------- bad input
def test_unknown_variant(folder, tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    line = error_line(
        *["export", "efficientvit", "--checkpoint", tmp_path / "w.pth", "--backbone", "efficientvit_m9"],
        *["--out", tmp_path],
    )
    assert "no network called 'efficientvit_m9' (did you mean 'efficientvit_m" in line


def test_too_few_images_to_calibrate_on(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "--int8: no images in" in error_line(*command(folder, tmp_path / "out", "--int8", tmp_path / "empty"))
    line = error_line(*command(folder, tmp_path / "out", "--int8", folder / "test"))
    assert "has 12 images, at least 64 are needed (32 to calibrate on and 32 to compare on)" in line
    line = error_line(*command(folder, tmp_path / "out", "--int8", folder / "test", "--evaluate", folder / "train"))
    assert "has 12 images, at least 32 are needed (32 to calibrate on)" in line
    line = error_line(*command(folder, tmp_path / "out", "--int8", folder / "train", "--evaluate", folder / "train"))
    assert "--evaluate: every image of" in line
    assert "it needs --int8" in error_line(*command(folder, tmp_path / "out", "--evaluate", folder / "test"))
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_read_are_not_calibrated_on(folder, tmp_path):
    for i in range(70):
        (tmp_path / f"{i}.jpg").write_text("no image")
    line = error_line(*command(folder, tmp_path / "out", "--int8", tmp_path))
    assert "--int8: only 0 of 35 images could be read, at least 32 are needed" in line


def test_a_failing_comparison_leaves_the_older_int8_file_and_says_nothing_of_it(folder, tmp_path):
    out, unreadable = tmp_path / "out", tmp_path / "x.jpg"
    shutil.copytree(folder / "out", out)
    unreadable.write_text("no image")
    before = (out / "efficientvit_m0.int8.onnx").read_bytes()
    line = error_line(*command(folder, out, "--int8", folder / "train", "--evaluate", unreadable))
    assert "none of the 1 images to compare on could be read" in line
    assert (out / "efficientvit_m0.int8.onnx").read_bytes() == before
    assert set(json.loads((out / "export.json").read_text())) == {"float"}
    assert len(list(out.iterdir())) == 3
    assert "is of an earlier export" in vision(*command(folder, out)).stdout


def test_a_size_that_the_network_does_not_run_at(tmp_path):
    torch.save(timm.create_model("convnext_atto", num_classes=3).state_dict(), tmp_path / "net.pth")
    line = error_line(
        *["export", "efficientvit", "--checkpoint", tmp_path / "net.pth", "--backbone", "convnext_atto"],
        *["--out", tmp_path, "--image-size", 8],
    )
    assert "'convnext_atto' does not take 8x8 pixels" in line


def test_class_names_that_are_no_unicode(folder, tmp_path):
    names = ["caf\udce9", "green", "red"]  # what Python makes of a folder named in Latin-1
    content = torch.load(folder / "best.ckpt", weights_only=True)
    content[RECORD]["class_names"] = names
    torch.save(content, tmp_path / "best.ckpt")
    assert vision(*command(tmp_path, tmp_path)).returncode == 0
    for file in ("best.ckpt", "efficientvit_m0.onnx"):
        flags = ["--checkpoint", tmp_path / file, "--out", tmp_path / "out", "--input", folder / "test"]
        finished = vision("infer", "efficientvit", *flags)
        assert finished.returncode == 0, finished.stderr
        (first, *_) = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
        assert sorted(top["class"] for top in first["predictions"]) == names


def test_sizes_that_are_none(folder, tmp_path):
    for size in (["0"], ["1", "2", "3"]):
        assert "--image-size takes a side, or height and width" in error_line(
            *command(folder, tmp_path, "--image-size", *size)
        )


def _foreign(file: Path) -> None:
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "foreign", [info], [out])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), file)


def _relabel(source: Path, target: Path, name: str, value: str) -> None:
    """A copy with one entry of its metadata, or of the preprocessing in it, replaced."""
    content = onnx.load(source)
    new = eval(value)
    for entry in content.metadata_props:
        if entry.key == name:
            entry.value = json.dumps(new)
        elif entry.key == "preprocessing" and name != "class_names":
            entry.value = json.dumps({**json.loads(entry.value), name: new})
    onnx.save(content, target)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("empty", "not a network that ONNX Runtime can load"),
        ("truncated", "not a network that ONNX Runtime can load"),
        ("text", "not a network that ONNX Runtime can load"),
        ("foreign", "not a classifier of 'vision export' (its metadata lacks class names or preprocessing)"),
        ("class_names=['a', 'b']", "tells of float images (batch, 3, 32, 32) and 2 classes, its graph takes"),
        ("class_names='abc'", "its metadata is unusable: class_names must be a list of texts"),
        ("class_names=[['a'], 2, None]", "its metadata is unusable: class_names must be a list of texts"),
        ("mean=[0.5]", "its metadata is unusable: mean must be three numbers, one a channel, got (0.5,)"),
        ("mean=None", "its metadata is unusable: mean must be three numbers, one a channel, got None"),
        ("std=[float('nan')] * 3", "its metadata is unusable: std must be three numbers"),
        ("interpolation='magic'", "its metadata is unusable: interpolation must be one of"),
        ("crop_pct=1e-9", "its metadata is unusable: crop_pct must be in [0.01, 1], got 1e-09"),
        ("fixed batch", "its graph takes [1, 3, 32, 32]"),
        ("nan", "gives NaN or infinite logits"),
    ],
)
def test_onnx_files_of_something_else(folder, tmp_path, kind, words):
    file, good = tmp_path / "net.onnx", folder / "out" / "efficientvit_m0.onnx"
    if kind == "foreign":
        _foreign(file)
    elif "=" in kind:
        _relabel(good, file, *kind.split("=", 1))
    elif kind == "fixed batch":
        content = onnx.load(good)
        content.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        onnx.save(content, file)
    elif kind == "nan":
        content = onnx.load(good)
        weight = next(tensor for tensor in content.graph.initializer if len(tensor.dims) == 4)
        values = np.full(list(weight.dims), np.nan, np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(content, file)
    elif kind != "missing":
        text = {"empty": b"", "truncated": good.read_bytes()[:5000], "text": b"hello"}[kind]
        file.write_bytes(text)
    line = error_line("infer", "efficientvit", "--checkpoint", file, "--out", tmp_path, "--input", folder / "test")
    assert str(file) in line
    assert words in line


def test_flags_that_an_exported_file_does_not_take(folder, tmp_path):
    file = folder / "out" / "efficientvit_m0.onnx"
    line = error_line(
        *["infer", "efficientvit", "--checkpoint", file, "--out", tmp_path, "--input", folder / "test"],
        *["--backbone", "efficientvit_m0"],
    )
    assert "an exported file says which network it is; leave out --backbone" in line


def test_missing_package_is_named_with_its_extra(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = error_line(*command(folder, tmp_path / "out"))
    assert "needs onnxruntime, which is not installed: pip install 'frugal-vision[onnx]'" in line


class Otherwise(nn.Module):
    """A network that an exporter does not see as it is."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x.mean(dim=(2, 3)) * (self.factor if torch.jit.is_tracing() else 1)


@pytest.mark.parametrize(("factor", "difference"), [(2.0, r"1.0e\+00"), (float("nan"), "inf")])
def test_file_that_disagrees_with_pytorch_is_not_kept_and_the_older_one_is(folder, tmp_path, factor, difference):
    file = tmp_path / "net.onnx"
    shutil.copy(folder / "out" / "efficientvit_m0.onnx", file)
    before = file.read_bytes()
    record = ClassifierRecord("otherwise", ["a", "b", "c"], Preprocessing((32, 32)))
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Otherwise(factor)).eval()
    with pytest.raises(InputError, match=rf"differs from PyTorch's by {difference}|gives NaN"):
        export_classifier(network, record, file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_images_of_the_wrong_size_are_named(folder):
    exported = OnnxClassifier(folder / "out" / "efficientvit_m0.onnx")
    with pytest.raises(InputError, match=r"takes images \(batch, 3, 32, 32\), got \(1, 3, 64, 64\)"):
        exported(torch.zeros(1, 3, 64, 64))
