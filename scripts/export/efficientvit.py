"""``vision export efficientvit``: a classifier as ONNX, in float and in int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts.arguments import Parser
from scripts.export.graph import export_classifier
from scripts.export.quantize import compare_decisions, draw, quantize
from scripts.export.session import OnnxClassifier, require
from scripts.infer.inputs import image_batches, image_files, output_folder
from vision.classifiers import load_classifier
from vision.errors import InputError

CALIBRATION, FEWEST = 128, 32  # images to calibrate on, at most and at least


def _parser() -> Parser:
    parser = Parser(
        prog="vision export efficientvit",
        description="Write a classifier as an ONNX file that takes batches of any size, checked against PyTorch; with "
        "--int8 an eight-bit one too, and what it loses. 'vision infer' runs both. Any of our checkpoints of a "
        "classifier can be exported, timm's networks too.",
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="C", help="of 'vision fit', the official release, or timm"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the files")
    parser.add_argument(
        "--backbone", help="the network of an official or timm file, e.g. efficientvit_m4; our checkpoints say it"
    )
    parser.add_argument(
        "--image-size", type=int, nargs="+", metavar="S", help="side, or height and width (default: as trained)"
    )
    parser.add_argument(
        "--int8",
        nargs="+",
        metavar="I",
        help=f"also write an int8 network, calibrated on {CALIBRATION} of these images (files, folders, globs; like "
        "those that it will see)",
    )
    parser.add_argument(
        "--evaluate",
        nargs="+",
        metavar="I",
        help="images to compare int8 with float on (default: those of --int8 that it was not calibrated on); where "
        "they lie in folders named after the classes, the accuracies are compared too",
    )
    return parser


def _size(given: list[int] | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if len(given) > 2 or min(given) < 1:
        raise InputError(f"--image-size takes a side, or height and width, in pixels; got {' '.join(map(str, given))}")
    return given[0], given[-1]


def _distinct(files: list[str]) -> list[str]:
    """Each file once, under whatever names it was given."""
    return list({Path(file).resolve(): file for file in files}.values())


def _images(int8: list[str], evaluate: list[str] | None) -> tuple[list[str], list[str]]:
    """The images to calibrate on, and those to compare on."""
    offered = _distinct(image_files(int8, "--int8"))
    needed = FEWEST if evaluate else 2 * FEWEST
    if len(offered) < needed:
        use = f"{FEWEST} to calibrate on" + ("" if evaluate else f" and {FEWEST} to compare on")
        raise InputError(f"--int8: {', '.join(int8)} has {len(offered)} images, at least {needed} are needed ({use})")
    if not evaluate:
        return draw(offered, min(CALIBRATION, len(offered) // 2))
    calibration, _ = draw(offered, CALIBRATION)
    known = {Path(file).resolve() for file in calibration}
    unseen = [file for file in _distinct(image_files(evaluate, "--evaluate")) if Path(file).resolve() not in known]
    if not unseen:
        raise InputError(f"--evaluate: every image of {', '.join(evaluate)} was calibrated on; give others")
    return calibration, unseen


def _write_int8(file: Path, target: Path, calibration: list[str], evaluation: list[str]) -> dict[str, Any]:
    exported = OnnxClassifier(file, "cpu")
    read = [batch["image"] for batch in image_batches(calibration, exported.record.preprocessing, 16) if batch["path"]]
    readable = sum(len(images) for images in read)
    if readable < FEWEST:
        raise InputError(
            f"--int8: only {readable} of {len(calibration)} images could be read, at least {FEWEST} are needed"
        )
    pending = target.with_name(f".{target.name}")
    try:
        quantize(file, pending, read)
        result = compare_decisions(exported, OnnxClassifier(pending, "cpu"), evaluation)
        pending.replace(target)
    finally:
        pending.unlink(missing_ok=True)
    return {"file": target.name, "bytes": target.stat().st_size, "calibrated_on": readable, **result}


def _write_result(folder: Path, result: dict[str, Any]) -> None:
    try:
        (folder / "export.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be written ({error.strerror})") from error


def main(arguments: list[str]) -> None:
    """Writes the files and ``export.json``, which says what was checked.

    Raises:
        InputError: for whatever a user can put right.
    """
    options = _parser().parse_args(arguments)
    for package in ("onnx", "onnxruntime"):
        require(package)
    if options.evaluate and not options.int8:
        raise InputError("--evaluate compares int8 with float: it needs --int8")
    images = _images(options.int8, options.evaluate) if options.int8 else None
    model, record = load_classifier(options.checkpoint, options.backbone, _size(options.image_size))
    folder = output_folder(options.out)
    file = folder / f"{record.backbone.replace(':', '-').replace('/', '-')}.onnx"
    target = file.with_suffix(".int8.onnx")
    agreement = export_classifier(model, record, file)
    result: dict[str, Any] = {
        "float": {
            "file": file.name,
            "bytes": file.stat().st_size,
            "largest_relative_difference": agreement.difference,
            "relative_rounding_of_pytorch": agreement.rounding,
        }
    }
    _write_result(folder, result)
    print(
        f"vision: {file}: {file.stat().st_size / 1e6:.1f} MB, logits within {agreement.difference:.0e} of PyTorch's "
        f"(of the largest; PyTorch's own rounding: {agreement.rounding:.0e})"
    )
    if images is None:
        if target.exists():
            print(f"vision: {target} is of an earlier export")
        return
    int8 = _write_int8(file, target, *images)
    _write_result(folder, {**result, "int8": int8})
    print(
        f"vision: {target}: {int8['bytes'] / 1e6:.1f} MB, calibrated on {int8['calibrated_on']} images; of "
        f"{int8['images']} others it decides {int8['flipped']} differently"
    )
    if "labelled" in int8:
        print(f"vision: top-1 on {int8['labelled']} of them: {int8['top1_int8']:.1%} (float {int8['top1_float']:.1%})")
