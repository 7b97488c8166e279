"""``vision infer efficientvit``: the classes of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.decoding import read_image
from scripts.arguments import Parser
from scripts.devices import usable_device
from scripts.export.session import OnnxClassifier
from scripts.infer.inputs import image_files, output_folder, readable_batches
from scripts.infer.outputs import add_arguments, require_some, say_what_was_done, write_results
from vision.classifiers import ClassifierRecord, load_classifier
from vision.efficientvit import EfficientViT, deploy
from vision.errors import InputError
from vision.pictures import INK, MUTED, Picture, contact_sheet

MOST_PICTURES = 60


def _parser() -> Parser:
    parser = Parser(
        prog="vision infer efficientvit",
        description="Classify images: writes predictions.json, predictions.csv and contact_sheet.png.",
    )
    add_arguments(
        parser,
        checkpoint="of 'vision fit', 'vision export' (.onnx), the official release, or timm",
        backbone="the network of an official or timm file, e.g. efficientvit_m4; our checkpoints say it",
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="classes an image (default 5)")
    return parser


def _network(
    checkpoint: str, backbone: str | None, device: str | None
) -> tuple[Callable[[Tensor], Tensor], ClassifierRecord]:
    if checkpoint.endswith(".onnx"):
        if backbone is not None:
            raise InputError(f"{checkpoint}: an exported file says which network it is; leave out --backbone")
        exported = OnnxClassifier(checkpoint, device)
        return exported, exported.record
    place = usable_device(device, ("cpu", "cuda", "mps"))
    model, record = load_classifier(checkpoint, backbone)
    if isinstance(model, EfficientViT):
        model = deploy(model)
    model = model.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda image: model(image.to(place, memory_format=torch.channels_last)), record


def classify(
    files: list[str],
    checkpoint: str,
    backbone: str | None,
    top_k: int,
    batch_size: int,
    num_workers: int,
    device: str | None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The most likely classes of each image.

    Returns:
        For every readable image ``{"path", "predictions": [{"class", "probability"}, ...]}``, the most likely class
        first; and the reason for every unreadable one.

    Raises:
        InputError: the checkpoint or an argument is unusable.
    """
    if top_k < 1:
        raise InputError(f"--top-k must be at least 1, got {top_k}")
    network, record = _network(checkpoint, backbone, device)
    results: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    with torch.inference_mode():
        for batch in readable_batches(files, record.preprocessing, batch_size, num_workers, unreadable):
            top = network(batch["image"]).float().softmax(dim=1).topk(min(top_k, len(record.class_names)), dim=1)
            for path, indices, shares in zip(batch["path"], top.indices.tolist(), top.values.tolist(), strict=True):
                named = [
                    {"class": record.class_names[i], "probability": round(share, 6)}
                    for i, share in zip(indices, shares, strict=True)
                ]
                results.append({"path": path, "predictions": named})
    return results, unreadable


def sheet(results: list[dict[str, Any]]) -> Picture:
    """The first images with their two most likely classes; the least sure ones first."""
    chosen = sorted(results, key=lambda r: r["predictions"][0]["probability"])[:MOST_PICTURES]
    captions = []
    for result in chosen:
        lines = [f"{p['class']} {p['probability']:.0%}" for p in result["predictions"][:2]]
        captions.append([(Path(result["path"]).name, MUTED), *zip(lines, (INK, MUTED), strict=False)])
    return contact_sheet([np.asarray(read_image(r["path"])) for r in chosen], captions)


def main(arguments: list[str]) -> None:
    """Classifies the images and writes the results.

    Raises:
        InputError: for whatever a user can put right; no image could be read.
    """
    options = _parser().parse_args(arguments)
    files = image_files(options.input)
    folder = output_folder(options.out)
    results, unreadable = classify(
        files,
        options.checkpoint,
        options.backbone,
        options.top_k,
        options.batch_size,
        options.num_workers,
        options.device,
    )
    require_some(len(results), files, unreadable)
    content = {"images": results, "unreadable": [{"path": p, "reason": r} for p, r in unreadable.items()]}
    places = range(1, len(results[0]["predictions"]) + 1)
    rows = []
    for result in results:
        cells = [cell for p in result["predictions"] for cell in (p["class"], f"{p['probability']:.4f}")]
        rows.append([result["path"], *cells, ""])
    rows += [[path, *[""] * 2 * len(places), reason] for path, reason in unreadable.items()]
    header = ["path", *[f"{what}_{i}" for i in places for what in ("class", "probability")], "error"]
    write_results(folder, content, header, rows, sheet(results))
    for result in results[:10]:
        best = result["predictions"][0]
        print(f"{best['probability']:6.1%}  {best['class']:<20} {result['path']}")
    if len(results) > 10:
        print(f"... and {len(results) - 10} more")
    say_what_was_done(len(results), files, unreadable, folder)
