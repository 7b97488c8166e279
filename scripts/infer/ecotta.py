"""``vision infer ecotta``: a network that goes on learning while it answers for images or frames of a video."""

from __future__ import annotations

import math
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datamodules.transforms import eval_transform
from datamodules.video_decoding import VIDEO_SUFFIXES, iterate_frames
from scripts.arguments import Parser
from scripts.devices import usable_device
from scripts.infer.adaptation_pictures import BEST, LabelPictures, sheet, stream_figure, write_picture
from scripts.infer.inputs import image_files, output_folder, readable_batches
from scripts.infer.outputs import require_some, say_what_was_done, write_results
from vision.checkpoints import read_checkpoint
from vision.ecotta import EcoTTA, Online, load_adapter
from vision.ecotta.frozen import Memory
from vision.ecotta.guard import marginal_entropy
from vision.ecotta.losses import confident, entropy, flat_logits
from vision.ecotta.source import RECORD, TORCHVISION, AdapterRecord, SourceRecord
from vision.errors import InputError
from vision.pictures import render
from vision.preprocessing import Preprocessing

OPTIMIZER = "ecotta_optimizer"  # the key under which a saved state keeps its momentum


class Shown(NamedTuple):
    """What the network is shown at once.

    Attributes:
        images: ``(B, 3, H, W)``, as the network takes them.
        names: of each its ``path``; or its ``frame``, counted from 0, and ``seconds``.
    """

    images: Tensor
    names: list[dict[str, Any]]


def _parser() -> Parser:
    parser = Parser(
        prog="vision infer ecotta",
        description="Adapt a network on images, or on the frames of a video, in their order; each is answered for "
        "before it is learned from. Writes predictions.csv, predictions.json, contact_sheet.png (the least certain "
        "first) and stream.png (how certain it was along the stream); of networks that label pixels, pictures in "
        "labels.",
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="I", help="image files, folders or globs; or one video")
    add("--checkpoint", required=True, metavar="C", help="of 'vision fit', --save, RobustBench, EcoTTA's or timm")
    add("--out", required=True, metavar="DIR", help="folder for the results")
    add("--backbone", help="the network of a file that does not say it, e.g. timm:resnet18")
    add("--batch-size", type=int, metavar="B", help="images a step (default 64; of networks that label pixels 2)")
    add("--num-workers", type=int, default=0, metavar="N", help="processes that decode images (default 0)")
    add("--device", default=None, help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    add("--lr", type=float, metavar="R", help="learning rate (default: the checkpoint's; 0.005)")
    add("--lr-batch", type=int, metavar="N", help="scale the rate with the batch: --lr is that of N images")
    add(
        "--prior",
        type=float,
        metavar="N",
        help="images that the source's statistics count for (default 0; 16 for small batches)",
    )
    add("--memory", choices=get_args(Memory), help="what is kept for the step (default: the checkpoint's; memsave)")
    add("--every-frame", type=int, metavar="N", help="of a video, every N-th frame (default 1)")
    add("--no-updates", action="store_true", help="learn nothing, to compare")
    add("--no-guard", action="store_true", help="do not go back where the adaptation fails")
    add("--save", metavar="FILE", help="write what was learned; --checkpoint takes it, and the stream goes on")
    add("--trust-pickle", action="store_true", help="unpickle objects in C, which may run any code of its author's")
    return parser


def _options(arguments: list[str]) -> Namespace:
    """The flags.

    Raises:
        InputError: one is out of its range, or contradicts another.
    """
    options = _parser().parse_args(arguments)
    for name in ("batch_size", "lr_batch", "every_frame"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if options.lr is not None and not 0 <= options.lr < math.inf:
        raise InputError(f"--lr must be at least 0 and finite, got {options.lr}")
    if options.prior is not None and not options.prior >= 0:
        raise InputError(f"--prior must be at least 0, got {options.prior}")
    if options.save is not None and options.no_updates:
        raise InputError("--save: with --no-updates nothing is learned that could be saved")
    return options


# ------------------------------------------------------------------------------------------------------ the network
def _load(options: Namespace) -> tuple[EcoTTA, SourceRecord, Online]:
    """The network on its device, and how it is to be adapted: by the flags, else the checkpoint, else the paper.

    Raises:
        InputError: the file is unreadable or does not fit, or is of another network than ``--backbone``.
    """
    device = usable_device(options.device, ("cpu", "cuda", "mps"))
    file = options.checkpoint
    content = read_checkpoint(file, options.trust_pickle)
    online = Online()
    if isinstance(content.get(RECORD), Mapping):
        try:
            online = AdapterRecord.from_dict(content[RECORD]).online
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: what it says of its network is unusable ({error!r})") from error
    given = {name: getattr(options, name) for name in ("lr", "lr_batch", "prior", "memory")}
    online = replace(online, **{name: value for name, value in given.items() if value is not None})
    if options.no_guard:
        online = replace(online, guard=False)
    # Meta networks without a warm-up begin at random: let every run of a command give the same answers.
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        adapter, source = load_adapter(file, options.backbone, online, options.trust_pickle)
    if options.backbone not in (None, source.backbone):
        own = f"of '{source.backbone}'" if source.backbone else "of a network that needs no name"
        raise InputError(f"--backbone: {file} is {own}, not of '{options.backbone}'")
    adapter.to(device)
    if isinstance(content.get(OPTIMIZER), Mapping):
        adapter.rollback(replace(adapter.snapshot(), optimizer=content[OPTIMIZER]))
    return adapter, source, online


def _saved_to(file: Path) -> Path:
    """The place of a file to be, its folder made; tried before anything is computed for it.

    Raises:
        InputError: it cannot be written.
    """
    if file.is_dir() or file.suffix == ".safetensors":
        raise InputError(f"--save: {file} is a folder or a safetensors file; expected the name of a .ckpt file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise InputError(f"--save: {file} cannot be written ({error.strerror})") from error
    return file


def _save(file: Path, adapter: EcoTTA, source: SourceRecord, online: Online) -> None:
    """Writes the adapted network with its counters and the optimizer's momentum.

    What the guard compares with is not kept: the first batches of the next stream are its reference.

    Raises:
        InputError: the disk is full.
    """
    # Not needed without --save, and slow to import.
    from tasks.checkpointing import SafeCheckpointIO

    groups = [list(names) for names in adapter.groups]
    content = {
        "state_dict": {f"adapter.{key}": value.cpu() for key, value in adapter.state_dict().items()},
        RECORD: AdapterRecord(source, groups, adapter.form, adapter.kernel, online).as_dict(),
        OPTIMIZER: adapter.snapshot().optimizer,
    }
    SafeCheckpointIO().save_checkpoint(content, file)


# ------------------------------------------------------------------------------------------------------- the stream
def _video(files: Sequence[str], every_frame: int | None) -> str | None:
    """The video that is meant, if one is.

    Raises:
        InputError: there is something beside it, or frames were asked for and there is none.
    """
    videos = [file for file in files if file.lower().endswith(VIDEO_SUFFIXES)]
    if videos and len(files) > 1:
        raise InputError(f"--input: one video at a time, and no images beside it; got {len(files)} files")
    if not videos and every_frame is not None:
        raise InputError(f"--every-frame is of a video ({', '.join(VIDEO_SUFFIXES)}), and --input names images")
    return videos[0] if videos else None


def _frames(path: str, preprocessing: Preprocessing, batch_size: int, every: int) -> Iterator[Shown]:
    """Every ``every``-th frame of a video in batches, one of which is in memory.

    Raises:
        UnreadableVideoError: it cannot be opened, or has no frame.
    """
    transform = eval_transform(preprocessing)
    chosen = islice(enumerate(iterate_frames(path)), 0, None, every)
    prepared = (
        ({"frame": number, "seconds": round(seconds, 3)}, transform(image=frame)["image"])
        for number, (seconds, frame) in chosen
    )
    # disable=None: no bar where the output is not a terminal.
    with tqdm(unit="frame", disable=None) as progress:
        while several := list(islice(prepared, batch_size)):
            progress.update(len(several))
            yield Shown(torch.stack([image for _, image in several]), [name for name, _ in several])


class Stream:
    """What a network answers along a stream, and how it fares.

    Args:
        adapter: the network.
        source: what it is of.
        learn: take the steps.
        folder: that pictures of labelled pixels go to.

    Attributes:
        rows: of each image its name, answer, entropy as a share of ``ln C``, batch (from 1), and whether that led to
            an update.
        batches: of each batch what :func:`~scripts.infer.adaptation_pictures.stream_figure` draws, and more.
        labels: writes the pictures; None of networks that give one class an image, or before the first batch.
    """

    def __init__(self, adapter: EcoTTA, source: SourceRecord, learn: bool, folder: Path) -> None:
        self.adapter, self.source, self.learn, self.folder = adapter, source, learn, folder
        self.rows: list[dict[str, Any]] = []
        self.batches: list[dict[str, Any]] = []
        self.labels: LabelPictures | None = None
        self._warned = False

    def show(self, shown: Shown) -> None:
        """Answers for a batch, and learns from it.

        Raises:
            InputError: the network fails, or what it gives is not finite or not of the classes that it names.
        """
        logits = self._logits(shown.images.to(next(self.adapter.parameters()).device))
        rows = flat_logits(logits)
        entropies, classes = entropy(rows), rows.shape[1]
        each = (entropies.view(len(logits), -1).mean(dim=1) / math.log(classes)).tolist()
        number, last = len(self.batches) + 1, self.adapter.last
        batch = {
            "batch": number,
            "images": len(each),
            "until": shown.names[-1].get("seconds", len(self.rows) + len(each)),
            "entropy": round(math.fsum(each) / len(each), 6),
            "kept": round(float(confident(entropies, classes, self.adapter.margin).float().mean()), 6),
            "spread": round(marginal_entropy(rows.softmax(dim=1).mean(dim=0)), 6),
            # What the guard took back is no update.
            "updated": last.updated and last.event is None,
            "event": last.event,
        }
        self.batches.append(batch)
        answers = self._answers(logits) if logits.dim() == 2 else self._pixel_answers(logits, shown)
        for name, answer, share in zip(shown.names, answers, each, strict=True):
            own = {"entropy": round(share, 6), "batch": number, "updated": batch["updated"]}
            self.rows.append({**name, **answer, **own})

    @property
    def rollbacks(self) -> int:
        """How often the guard went back."""
        return sum(batch["event"] is not None for batch in self.batches)

    def _logits(self, images: Tensor) -> Tensor:
        """The answer to a batch, from before the step."""
        adapter, size = self.adapter, "x".join(map(str, images.shape[2:]))
        try:
            with warnings.catch_warnings(record=True) as heard:
                warnings.filterwarnings("always", message="batches of")
                if not self.learn and adapter.needs_calibration:
                    adapter.calibrate(images)
                logits = adapter.adapt(images) if self.learn else adapter.predict(images)
                if not bool(torch.isfinite(logits).all()):
                    # The guard has gone back to parameters that may do better.
                    logits = adapter.predict(images)
        except RuntimeError as error:
            reason = str(error).split("\n", 1)[0]
            raise InputError(f"the network fails on {len(images)} images of {size} at once ({reason})") from error
        self._pass_on(heard, logits)
        if not bool(torch.isfinite(logits).all()):
            cure = "; lower --lr, and keep the guard" if self.learn else ""
            raise InputError(f"the network's predictions are NaN or infinite in batch {len(self.batches) + 1}{cure}")
        named = len(self.source.class_names)
        if logits.shape[1] != named or named < 2:
            raise InputError(f"--checkpoint: the network has {logits.shape[1]} outputs and names {named} classes")
        return logits

    def _pass_on(self, heard: Sequence[warnings.WarningMessage], logits: Tensor) -> None:
        """Prints warnings; that of small batches once, and never where images are labelled pixel by pixel."""
        for warning in heard:
            text = str(warning.message)
            if "prior=" not in text:
                warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
            elif not self._warned and logits.dim() == 2:
                self._warned = True
                print(f"vision: {text.replace('prior=', '--prior ')}", flush=True)

    def _answers(self, logits: Tensor) -> list[dict[str, Any]]:
        best = logits.softmax(dim=1).max(dim=1)
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"class": self.source.class_names[i], "probability": round(share, 6)} for i, share in found]

    def _pixel_answers(self, logits: Tensor, shown: Shown) -> list[dict[str, Any]]:
        if self.labels is None:
            self.labels = LabelPictures(self.folder, self.source.class_names, self.source.preprocessing)
        files = [Path(of["path"]).stem if "path" in of else f"frame_{of['frame']:06d}" for of in shown.names]
        return [self.labels.write(*of) for of in zip(logits, shown.images, files, strict=True)]


# ------------------------------------------------------------------------------------------------------ the results
def _table(stream: Stream, unreadable: Mapping[str, str], video: str | None) -> tuple[list[str], list[list[Any]]]:
    """The header and the rows of ``predictions.csv``."""
    header = ["path", "status"] if video is None else ["frame", "seconds"]
    if stream.labels is None:
        header += ["class", "probability"]
    else:
        header += [cell for i in range(1, BEST + 1) for cell in (f"class_{i}", f"share_{i}")]
    header += ["entropy", "batch", "updated"]
    rows: list[list[Any]] = []
    for row in stream.rows:
        cells = [row["path"], "ok"] if video is None else [row["frame"], f"{row['seconds']:.3f}"]
        if stream.labels is None:
            cells += [row["class"], f"{row['probability']:.4f}"]
        else:
            found = [cell for of in row["classes"] for cell in (of["class"], f"{of['share']:.4f}")]
            cells += found + [""] * (2 * BEST - len(found))
        rows.append([*cells, f"{row['entropy']:.4f}", row["batch"], "yes" if row["updated"] else "no"])
    rows += [[path, reason, *[""] * (len(header) - 2)] for path, reason in unreadable.items()]
    return header, rows


def _write(stream: Stream, online: Online, unreadable: Mapping[str, str], video: str | None) -> None:
    content: dict[str, Any] = {
        "classes": stream.source.class_names,
        "online": asdict(online),
        "updates": stream.learn,
        "batches": stream.batches,
    }
    if video is None:
        content |= {"images": stream.rows, "unreadable": [{"path": p, "reason": r} for p, r in unreadable.items()]}
    else:
        content |= {"video": video, "frames": stream.rows}
    if stream.labels is not None:
        content["colours"] = {name: stream.labels.colour(name) for name in stream.source.class_names}
    write_results(
        stream.folder,
        content,
        *_table(stream, unreadable, video),
        sheet(stream.rows, stream.folder, video, stream.labels),
    )
    figure = stream_figure(stream.batches, "images" if video is None else "seconds")
    write_picture(Image.fromarray(render(figure)), stream.folder / "stream.png")


def _say(stream: Stream) -> None:
    """How the stream went."""
    for batch in stream.batches:
        if batch["event"] is not None:
            print(f"vision: batch {batch['batch']}: {batch['event']}")
    sums = [math.fsum(of[key] * of["images"] for of in stream.batches) for key in ("entropy", "kept")]
    entropies, kept = (total / len(stream.rows) for total in sums)
    updates = _counted(sum(of["updated"] for of in stream.batches), "update") if stream.learn else "no updates"
    rollbacks = _counted(stream.rollbacks, "rollback")
    print(
        f"vision: {_counted(len(stream.batches), 'batch', 'es')}, {updates}, {rollbacks}; mean entropy {entropies:.2f} "
        f"of ln C, {kept:.1%} of the predictions sure enough to learn from"
    )


def _counted(number: int, word: str, ending: str = "s") -> str:
    return f"{number} {word}{ending if number != 1 else ''}"


def main(arguments: list[str]) -> None:
    """Adapts along the stream and writes the results.

    Raises:
        InputError: for whatever a user can put right; nothing could be read.
    """
    options = _options(arguments)
    files = image_files(options.input)
    video = _video(files, options.every_frame)
    folder = output_folder(options.out)
    save = None if options.save is None else _saved_to(Path(options.save))
    adapter, source, online = _load(options)
    if int(adapter.images):
        seen, steps = int(adapter.images), _counted(int(adapter.steps), "batch", "es")
        print(f"vision: {options.checkpoint} has learned from {seen} images in {steps} so far", flush=True)
    pixels = (source.backbone or "").startswith(TORCHVISION)
    batch_size = options.batch_size or (2 if pixels else 64)
    stream = Stream(adapter, source, not options.no_updates, folder)
    unreadable: dict[str, str] = {}
    try:
        if video is not None:
            for shown in _frames(video, source.preprocessing, batch_size, options.every_frame or 1):
                stream.show(shown)
        else:
            for batch in readable_batches(files, source.preprocessing, batch_size, options.num_workers, unreadable):
                stream.show(Shown(batch["image"], [{"path": path} for path in batch["path"]]))
            require_some(len(stream.rows), files, unreadable)
    finally:
        if stream.rows:  # what was answered before a batch that cannot be
            _write(stream, online, unreadable, video)
    if save is not None:
        # The guard's halvings stay: a rate that was too high will be so tomorrow.
        _save(save, adapter, source, replace(online, lr=online.lr / 2**stream.rollbacks))
    _say(stream)
    if save is not None:
        print(f"vision: the state is in {save}; --checkpoint {save} goes on from there")
    if video is None:
        say_what_was_done(len(stream.rows), files, unreadable, folder)
    else:
        print(f"vision: {len(stream.rows)} frames, results in {folder}")
