"""``vision infer vivit``: the actions in videos over time, or on a stream as they happen."""

from __future__ import annotations

import csv
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from datamodules.decoding import UnreadableFileError
from datamodules.video_decoding import DECODERS, iterate_frames, read_frames
from datamodules.video_sampling import uniform_clip
from datamodules.video_transforms import EvalViews
from scripts.arguments import Parser
from scripts.devices import usable_device
from scripts.infer.inputs import output_folder, video_files
from scripts.infer.video_pictures import annotated, timeline, write_video
from vision.errors import InputError
from vision.labels import LabelSchema
from vision.pictures import render
from vision.vivit.checkpoint import VideoRecord, load_network
from vision.vivit.streaming import StreamingRecogniser, Window

BEST = 5
SAVED_EVERY = 30.0  # seconds between the writings of what is known so far
TOGETHER = 16  # frames that are encoded at once where they are all there


class Answer(NamedTuple):
    """What a window of a video shows: its seconds, and of each label set the probabilities of all classes."""

    start: float
    end: float
    scores: dict[str, list[float]]


class Recognised(NamedTuple):
    """A video: its frames a second (as decoded), its windows, and the scores of the whole."""

    rate: float
    windows: list[Answer]
    whole: dict[str, list[float]]


def _parser() -> Parser:
    parser = Parser(
        prog="vision infer vivit",
        description="The actions in videos over time: writes predictions.csv and predictions.json with the windows of "
        "every video, and for each video its frames with the answers (.webm) and the answers over time (.png). A "
        "stream (rtsp://..., http://...) or a camera's number is answered as it comes, at constant cost.",
    )
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="I", help="video files, folders, globs; or one stream or camera"
    )
    parser.add_argument("--checkpoint", required=True, metavar="C", help="of 'vision fit', or official flax weights")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--spatial", metavar="FILE", help="the frozen part, of a checkpoint that was written without")
    parser.add_argument("--hop", type=int, metavar="N", help="tubelets between windows (default: half a window)")
    parser.add_argument(
        "--stride", type=int, metavar="N", help="frames between those of a window (default: as trained)"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="of a stream; by default until it ends")
    parser.add_argument("--no-video", action="store_true", help="leave out the annotated videos")
    parser.add_argument("--decoder", choices=DECODERS, default="opencv", help="default opencv")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    return parser


class Recogniser:
    """A network with its preprocessing.

    Args:
        checkpoint: see :func:`vision.vivit.checkpoint.load_network`.
        spatial: the same.
        device: of ``--device``.
        stride: frames between a window's frames; None as trained.
        hop: tubelets between windows; None for half a window.
    """

    def __init__(
        self, checkpoint: str, spatial: str | None, device: str | None, stride: int | None, hop: int | None
    ) -> None:
        self.device = usable_device(device, ("cpu", "cuda", "mps"))
        network, self.record = load_network(checkpoint, spatial)
        self.network = network.to(self.device)
        self.stride = self.record.stride if stride is None else stride
        self.hop = max(1, network.config.tubelets // 2) if hop is None else hop
        self.views = EvalViews(self.record.preprocessing, crops=1)

    def stream(self) -> StreamingRecogniser:
        """A new stream.

        Raises:
            InputError: the network was trained on clips that are spread over their video.
        """
        if self.stride is None:
            raise InputError("this network was trained on clips spread over whole videos: for a stream, give --stride")
        return StreamingRecogniser(self.network, self.stride, self.hop)

    def prepared(self, frames: Sequence[NDArray[Any]]) -> Tensor:
        """Frames as they were decoded to ``(n, 3, H, W)`` uint8 on the device."""
        cut = [torch.from_numpy(self.views(frame[None])[0, 0]).permute(2, 0, 1) for frame in frames]
        return torch.stack(cut).to(self.device)

    def scores(self, logits: Tensor) -> dict[str, list[float]]:
        """Each label set's probabilities of one video."""
        sizes = [len(of) for of in self.record.schema.tasks.values()]
        parts = zip(self.record.schema.names, logits.split(sizes), strict=True)
        return {name: part.softmax(dim=0).tolist() for name, part in parts}

    @torch.no_grad()
    def _whole(self, path: str, decoder: str) -> Recognised:
        """A video by one clip that is spread over it."""
        count = 0

        def choose(frames: int) -> NDArray[np.intp]:
            nonlocal count
            count = frames
            return uniform_clip(frames, self.record.config.frames)

        clip = self.prepared(list(read_frames(path, choose, decoder=decoder)))
        scores = self.scores(self.network(clip[None])[0])
        end = 0.0
        for seconds, _ in iterate_frames(path, decoder):
            end = seconds
        return Recognised((count - 1) / end if end else 25.0, [Answer(0.0, end, scores)], scores)

    def recognise(self, path: str, decoder: str) -> Recognised:
        """The windows of a video; one that is shorter than a window is repeated.

        Raises:
            UnreadableFileError: it cannot be decoded.
        """
        if self.stride is None:
            return self._whole(path, decoder)
        stream = self.stream()
        seconds: list[float] = []
        found: list[Window] = []
        short: list[Tensor] = []
        frames = iterate_frames(path, decoder)
        while several := list(islice(frames, TOGETHER)):
            seconds += [at for at, _ in several]
            prepared = self.prepared([frame for _, frame in several])
            if not found:
                short.append(prepared)
            found += stream.extend(prepared)
            if found:
                short = []
        while not found:
            found = stream.extend(torch.cat(short))[:1]
        last = len(seconds) - 1
        windows = [
            Answer(seconds[min(of.first, last)], seconds[min(of.last, last)], self.scores(of.logits)) for of in found
        ]
        rate = last / seconds[-1] if seconds[-1] > 0 else 25.0
        return Recognised(rate, windows, self.scores(torch.stack([of.logits for of in found]).mean(dim=0)))


def _best(schema: LabelSchema, name: str, scores: Sequence[float], number: int = BEST) -> list[tuple[str, float]]:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[:number]
    return [(schema.tasks[name].classes[i], scores[i]) for i in order]


def _said(schema: LabelSchema, scores: dict[str, list[float]], number: int) -> str:
    best = [_best(schema, name, of, number) for name, of in scores.items()]
    return "; ".join(", ".join(f"{label} {share:.0%}" for label, share in of) for of in best)


def _as_json(schema: LabelSchema, scores: dict[str, list[float]]) -> dict[str, Any]:
    return {
        name: [{"class": label, "probability": round(share, 6)} for label, share in _best(schema, name, of)]
        for name, of in scores.items()
    }


def _frames(path: str, found: Recognised, schema: LabelSchema, decoder: str) -> Iterator[NDArray[Any]]:
    """The frames of a video, each with the mean of the windows that it is in (of the last one, behind them all)."""
    coming, windows = deque(found.windows[1:]), deque(found.windows[:1])
    for seconds, frame in iterate_frames(path, decoder):
        while coming and coming[0].start <= seconds:
            windows.append(coming.popleft())
        while len(windows) > 1 and windows[0].end < seconds:
            windows.popleft()
        shown = []
        for name in schema.names:
            mean = [sum(values) / len(windows) for values in zip(*(of.scores[name] for of in windows), strict=True)]
            shown += _best(schema, name, mean, 3 if len(schema.names) == 1 else 1)
        yield annotated(frame, seconds, shown)


def _write_pictures(folder: Path, name: str, path: str, found: Recognised, schema: LabelSchema, decoder: str) -> None:
    middles = [(of.start + of.end) / 2 for of in found.windows]
    first = schema.names[0]
    of = [dict(zip(schema.tasks[first].classes, window.scores[first], strict=True)) for window in found.windows]
    Image.fromarray(render(timeline(middles, of))).save(folder / f"{name}.png")
    write_video(folder / f"{name}.webm", _frames(path, found, schema, decoder), found.rate)


def _live(recogniser: Recogniser, source: str | int, folder: Path, seconds: float | None) -> None:
    """Answers a stream line by line, on the terminal and in ``live.jsonl``."""
    schema, stream, windows = recogniser.record.schema, recogniser.stream(), 0
    times: dict[int, float] = {}
    with (folder / "live.jsonl").open("w", encoding="utf-8") as out:
        try:
            for number, (at, frame) in enumerate(iterate_frames(source)):
                times[number] = at
                started = time.perf_counter()
                window = stream.push(recogniser.prepared([frame])[0])
                if window is not None:
                    windows += 1
                    scores = recogniser.scores(window.logits)
                    spent = 1e3 * (time.perf_counter() - started)
                    print(f"{at:8.1f} s  {_said(schema, scores, 2)}", flush=True)
                    content = {
                        "start": round(times[window.first], 3),
                        "end": round(at, 3),
                        "milliseconds": round(spent, 2),
                    }
                    out.write(json.dumps({**content, **_as_json(schema, scores)}) + "\n")
                    out.flush()
                    times = {key: value for key, value in times.items() if key > window.first}
                if seconds is not None and at >= seconds:
                    break
        except KeyboardInterrupt:
            pass
    print(f"vision: {windows} windows, results in {folder / 'live.jsonl'}")


def _stream(inputs: Sequence[str]) -> str | int | None:
    """The stream or camera that is meant, if one is."""
    streams = [given for given in inputs if "://" in given or (given.isdecimal() and not Path(given).exists())]
    if not streams:
        return None
    if len(inputs) > 1:
        raise InputError(f"--input: one stream at a time, and no files beside it; got {', '.join(inputs)}")
    return int(streams[0]) if streams[0].isdecimal() else streams[0]


def main(arguments: list[str]) -> None:
    """Recognises the actions and writes the results.

    Raises:
        InputError: for whatever a user can put right; no video could be read.
    """
    options = _parser().parse_args(arguments)
    source = _stream(options.input)
    files = video_files(options.input) if source is None else []
    folder = output_folder(options.out)
    recogniser = Recogniser(options.checkpoint, options.spatial, options.device, options.stride, options.hop)
    if source is not None:
        _live(recogniser, source, folder, options.seconds)
        return
    schema, record = recogniser.record.schema, recogniser.record
    found: dict[str, Recognised] = {}
    unreadable: dict[str, str] = {}
    names, written = _names(files), time.monotonic()
    for path in files:
        try:
            found[path] = recogniser.recognise(path, options.decoder)
        except UnreadableFileError as error:
            unreadable[path] = error.reason
            print(f"vision: unreadable, left out: {path}: {error.reason}")
            continue
        print(f"{path}: {_said(schema, found[path].whole, 3)}", flush=True)
        if not options.no_video:
            _write_pictures(folder, names[path], path, found[path], schema, options.decoder)
        if time.monotonic() > written + SAVED_EVERY:
            _write(folder, schema, record, found, unreadable)
            written = time.monotonic()
    if not found:
        path, reason = next(iter(unreadable.items()))
        raise InputError(f"none of {len(files)} videos could be read; {path}: {reason}")
    _write(folder, schema, record, found, unreadable)
    print(f"vision: {len(found)} of {len(files)} videos, results in {folder}")


def _names(files: Sequence[str]) -> dict[str, str]:
    """A name for the pictures of each video: its own, with a number where another has the same."""
    names: dict[str, str] = {}
    for path in files:
        name, number = Path(path).stem, 2
        while name in names.values():
            name, number = f"{Path(path).stem}-{number}", number + 1
        names[path] = name
    return names


def _write(
    folder: Path,
    schema: LabelSchema,
    record: VideoRecord,
    found: dict[str, Recognised],
    unreadable: dict[str, str],
) -> None:
    """Writes what is known so far, so that nothing is lost by what comes later."""
    videos = [
        {
            "path": path,
            **_as_json(schema, of.whole),
            "windows": [
                {"start": round(w.start, 3), "end": round(w.end, 3), **_as_json(schema, w.scores)} for w in of.windows
            ],
        }
        for path, of in found.items()
    ]
    content = {
        "label_sets": schema.as_dict(),
        "frames": record.config.frames,
        "videos": videos,
        "unreadable": [{"path": path, "reason": reason} for path, reason in unreadable.items()],
    }
    header = ["path", "status", "start", "end"]
    header += [column for name in schema.names for column in (name, f"{name}_probability")]
    rows: list[list[Any]] = []
    for path, of in found.items():
        for window in of.windows:
            best = []
            for name, scores in window.scores.items():
                ((label, share),) = _best(schema, name, scores, 1)
                best += [label, f"{share:.4f}"]
            rows.append([path, "ok", f"{window.start:.3f}", f"{window.end:.3f}", *best])
    rows += [[path, reason, "", "", *[""] * 2 * len(schema.names)] for path, reason in unreadable.items()]
    try:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / "predictions.json").write_text(text, encoding="utf-8", errors="backslashreplace")
        with (folder / "predictions.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
            csv.writer(stream).writerows([header, *rows])
    except OSError as error:
        raise InputError(f"--out: {folder} cannot be written ({error.strerror})") from error
