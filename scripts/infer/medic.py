"""``vision infer medic``: every task's answer for images, and which of them a person should look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.decoding import read_image
from scripts.arguments import Parser
from scripts.devices import usable_device
from scripts.export.medic import OnnxMultitask
from scripts.infer.inputs import image_files, output_folder, readable_batches
from scripts.infer.outputs import add_arguments, require_some, say_what_was_done, write_results
from vision.errors import InputError
from vision.labels import LabelSchema
from vision.medic.answers import Answer, answers, review_ranks, severity
from vision.medic.checkpoint import MultitaskRecord, load_network
from vision.pictures import BAD, INK, MUTED, Picture, contact_sheet

MOST_PICTURES = 60


class Answered(NamedTuple):
    """An image, its answers by task, and its place among those to be reviewed."""

    path: str
    answers: Mapping[str, Answer]
    rank: int


def _parser() -> Parser:
    parser = Parser(
        prog="vision infer medic",
        description="Answer every task for each image: writes predictions.csv and predictions.json, with each answer's "
        "probability and entropy and a rank for review (1: the least sure), and contact_sheet.png, the most severe "
        "first.",
    )
    add_arguments(
        parser,
        checkpoint="of 'vision fit', 'vision export' (.onnx), or the official code",
        backbone="the network of an official file, e.g. resnet18; our checkpoints say it",
    )
    return parser


def _network(
    checkpoint: str, backbone: str | None, device: str | None
) -> tuple[Callable[[Tensor], dict[str, Tensor]], MultitaskRecord]:
    if checkpoint.endswith(".onnx"):
        if backbone is not None:
            raise InputError(f"{checkpoint}: an exported file says which network it is; leave out --backbone")
        exported = OnnxMultitask(checkpoint, device)
        return exported.run, exported.record
    place = usable_device(device, ("cpu", "cuda", "mps"))
    network, record = load_network(checkpoint, backbone)
    network = network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda images: network(images.to(place, memory_format=torch.channels_last)), record


def answer(
    files: list[str], checkpoint: str, backbone: str | None, batch_size: int, num_workers: int, device: str | None
) -> tuple[list[Answered], dict[str, str], LabelSchema]:
    """The answers for each readable image, the reason for every unreadable one, and the tasks.

    Raises:
        InputError: the checkpoint or an argument is unusable.
    """
    network, record = _network(checkpoint, backbone, device)
    paths: list[str] = []
    found: list[dict[str, Answer]] = []
    unreadable: dict[str, str] = {}
    with torch.inference_mode():
        for batch in readable_batches(files, record.preprocessing, batch_size, num_workers, unreadable):
            paths += batch["path"]
            found += answers(record.schema, record.cumulative, network(batch["image"]))
    ranked = zip(paths, found, review_ranks(found), strict=True)
    return [Answered(*entry) for entry in ranked], unreadable, record.schema


def sheet(found: list[Answered], schema: LabelSchema) -> Picture:
    """The images with their answers: the most severe first, then (or without an ordered task) the least sure."""
    chosen = sorted(found, key=lambda image: (-severity(schema, image.answers), image.rank))[:MOST_PICTURES]
    captions = []
    for image in chosen:
        doubt = max(image.answers.values(), key=lambda of: of["entropy"])
        lines = [
            (f"{of['label']} {of['probability']:.0%}", BAD if of is doubt and image.rank <= len(found) // 10 else INK)
            for of in image.answers.values()
        ]
        captions.append([(f"{image.rank}. {Path(image.path).name}", MUTED), *lines])
    return contact_sheet([np.asarray(read_image(image.path)) for image in chosen], captions)


def _json(image: Answered) -> dict[str, Any]:
    tasks = {
        name: {
            "class": of["label"],
            "probability": round(of["probability"], 6),
            "entropy": round(of["entropy"], 6),
            "probabilities": {label: round(share, 6) for label, share in of["probabilities"].items()},
        }
        for name, of in image.answers.items()
    }
    return {"path": image.path, "review_rank": image.rank, "tasks": tasks}


def main(arguments: list[str]) -> None:
    """Answers for the images and writes the results.

    Raises:
        InputError: for whatever a user can put right; no image could be read.
    """
    options = _parser().parse_args(arguments)
    files = image_files(options.input)
    folder = output_folder(options.out)
    found, unreadable, schema = answer(
        files, options.checkpoint, options.backbone, options.batch_size, options.num_workers, options.device
    )
    require_some(len(found), files, unreadable)
    names = schema.names
    header = ["path", "status", "review_rank"]
    header += [column for name in names for column in (name, f"{name}_probability", f"{name}_entropy")]
    rows: list[list[Any]] = []
    for image in found:
        cells = [(of["label"], f"{of['probability']:.4f}", f"{of['entropy']:.4f}") for of in image.answers.values()]
        rows.append([image.path, "ok", image.rank, *[cell for of in cells for cell in of]])
    rows += [[path, reason, "", *[""] * 3 * len(names)] for path, reason in unreadable.items()]
    content = {
        "tasks": schema.as_dict(),
        "images": [_json(image) for image in found],
        "unreadable": [{"path": path, "reason": reason} for path, reason in unreadable.items()],
    }
    write_results(folder, content, header, rows, sheet(found, schema))
    print("the least sure, to be looked at first:")
    for image in sorted(found, key=lambda image: image.rank)[:10]:
        told = ", ".join(f"{of['label']} {of['probability']:.0%}" for of in image.answers.values())
        print(f"{image.rank:3d}. {image.path}: {told}")
    say_what_was_done(len(found), files, unreadable, folder)
