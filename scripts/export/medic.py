"""``vision export medic``: a network for several tasks as ONNX, one output a task."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch import nn

from scripts.arguments import Parser
from scripts.export.graph import export_network, inference_form
from scripts.export.session import OnnxNetwork
from scripts.infer.inputs import output_folder
from vision.errors import InputError
from vision.medic.checkpoint import RECORD, MultitaskRecord, load_network, to_official
from vision.medic.model import MultitaskNetwork, outputs_of


class OnnxMultitask(OnnxNetwork):
    """A file of ``vision export medic``: images to the logits of each task; the arguments are those of the base class.

    Attributes:
        record: tasks, classes and preprocessing, from the file's metadata.

    Raises:
        InputError: the file is not one that ``vision export medic`` wrote.
    """

    def __init__(self, file: str | Path, device: str | None = None, threads: int | None = None) -> None:
        super().__init__(file, device, threads)
        try:
            self.record = MultitaskRecord.from_dict(json.loads(self.metadata[RECORD]))
        except (LookupError, RecursionError, json.JSONDecodeError) as error:
            raise InputError(
                f"{file}: not a network of 'vision export medic' (its metadata lacks the tasks)"
            ) from error
        except InputError as error:
            raise InputError(f"{file}: its metadata is unusable: {error}") from error
        outputs = outputs_of(self.record.schema, self.record.ordinal)
        self.check(self.record.preprocessing.size, outputs, f"the outputs {outputs}")


def _form(model: nn.Module) -> nn.Module:
    """The network with the trunk in the form that exports best."""
    exported = copy.deepcopy(model)
    assert isinstance(exported, MultitaskNetwork)
    exported.trunk = inference_form(exported.trunk)
    return exported


def export_multitask(network: MultitaskNetwork, record: MultitaskRecord, file: Path) -> float:
    """Writes the network; returns the largest difference of a logit from PyTorch's, as a share of the largest.

    Raises:
        InputError: as in :func:`scripts.export.graph.export_network`.
    """
    metadata = {RECORD: record.as_dict()}
    return export_network(network, _form, record.backbone, record.preprocessing.size, metadata, file).difference


def main(arguments: list[str]) -> None:
    """Writes the files.

    Raises:
        InputError: for whatever a user can put right.
    """
    parser = Parser(
        prog="vision export medic",
        description="Write a network as an ONNX file with one output of logits a task, named after it, checked against "
        "PyTorch; it takes batches of any size, and 'vision infer medic' runs it.",
    )
    parser.add_argument("--checkpoint", required=True, metavar="C", help="of 'vision fit', or of the official code")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the files")
    parser.add_argument("--backbone", help="the network of an official file, e.g. resnet18; our checkpoints say it")
    parser.add_argument(
        "--official", action="store_true", help="also write the weights as a checkpoint of the official code's layout"
    )
    options = parser.parse_args(arguments)
    network, record = load_network(options.checkpoint, options.backbone)
    content = to_official(network, record.backbone) if options.official else None
    folder = output_folder(options.out)
    name = record.backbone.replace(":", "-").replace("/", "-")
    file = folder / f"{name}.onnx"
    difference = export_multitask(network, record, file)
    outputs = ", ".join(f"{task} ({size})" for task, size in network.sizes.items())
    print(
        f"vision: {file}: {file.stat().st_size / 1e6:.1f} MB, outputs {outputs}, logits within {difference:.0e} of "
        "PyTorch's (of the largest)"
    )
    if content is not None:
        target = folder / f"{name}.official.pth"
        temporary = target.with_name(f".{target.name}.part")
        try:
            torch.save(content, temporary)
            temporary.replace(target)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise InputError(f"{target}: cannot be written ({error})") from error
        print(f"vision: {target}: the official layout, the rows of all tasks in one layer")
