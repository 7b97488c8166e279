"""ViViT's bite of the demo: actions in clips, from an image transformer that stays as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from datamodules.builtin import resolve_root
from datamodules.builtin.motion import CLASSES, FPS
from datamodules.video_decoding import iterate_frames, read_frames
from scripts.bench.vivit_runs import order_measures
from scripts.demo.steps import Steps, column, newest_run, shortened, shown
from scripts.infer.video_pictures import write_video
from scripts.report import Code, Curves, Figures, Picture, Pictures, Section, Table, Text
from scripts.systems import CONFIGS
from vision.pictures import render

EPOCHS = 20  # the configuration's, on clips
QUICK_VIEWS, QUICK_EPOCHS = 2, 8  # of 10 epochs on views, of 20 on clips
MEASURES = ("top1", "kind", "reversed", "shuffled_top1", "shuffled_kind")
NAMES = {"grid": "grid adapter", "cls": "class token alone"}


def _clips(kinds: tuple[str, ...], number: int) -> list[NDArray[np.uint8]]:
    """The frames of test clips, ``number`` of each kind."""
    root = resolve_root("builtin:motion") / "test"
    files = [file for kind in kinds for file in sorted((root / kind).glob("*.mp4"))[:number]]
    return [read_frames(file, np.arange) for file in files]


def _videos(folder: Path) -> Path:
    """Unseen clips of four classes, one behind the other, as one video; and a broken one beside it."""
    target = folder / "videos"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    frames = [cv2.resize(frame, None, fx=2, fy=2) for clip in _clips(CLASSES[::2], 2) for frame in clip]
    write_video(target / "motions.webm", iter([frame.astype(np.uint8) for frame in frames]), FPS)
    (target / "truncated.mp4").write_bytes((target / "motions.webm").read_bytes()[:100])
    return target


def _strips() -> NDArray[np.uint8]:
    """A clip of each class, its frames side by side."""
    figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
    places = figure.subplots(len(CLASSES) // 2, 2).flat
    for axes, kind, clip in zip(places, CLASSES, _clips(CLASSES, 1), strict=True):
        axes.imshow(np.concatenate(list(clip), axis=1))
        axes.set_title(kind, fontsize=9, loc="left", pad=2)
        axes.axis("off")
    return render(figure)


def _answered(file: Path, seconds: tuple[float, ...]) -> list[Picture]:
    """Frames of an annotated video."""
    wanted = list(seconds)
    pictures = []
    for at, frame in iterate_frames(file):
        if wanted and at >= wanted[0]:
            pictures.append(Picture(f"{wanted.pop(0):g} s", frame, "a frame with the most likely actions below it"))
    return pictures


def _steps_table(rows: list[Mapping[str, Any]]) -> Table:
    steps = [(row["form"], row["metrics"]) for row in rows if row["group"] == "steps"]
    whole = steps[0][1]
    cells = [
        [
            form,
            of["trained_parameters"] / 1e6,
            of["held_bytes"] / 1e6,
            f"{of['held_bytes'] / whole['held_bytes']:.3f}x",
            of["ms"],
            f"{of['of_end_to_end']:.3f}x",
        ]
        for form, of in steps
    ]
    return Table(
        "What a training step costs",
        ["", "trained parameters, M", "held for the backward pass, MB", "of end to end", "ms", "of end to end"],
        cells,
        note="vit_tiny on four clips of eight 96-pixel frames, AdamW, one thread, by turns on this machine.",
    )


def run(folder: Path, quick: bool) -> tuple[Section, Mapping[str, Any]]:
    """Pre-trains an image transformer, trains two readouts of it on clips, tries the better one on a video.

    Args:
        folder: of the whole demo; the system's own files go to ``vivit`` in it.
        quick: fewer epochs, and one augmented clip of each video.

    Returns:
        The report's section, and the figures for ``results.json``.
    """
    steps = Steps(folder / "vivit")
    configs = {name: str(shown(CONFIGS / "vivit" / f"{name}.yaml")) for name in ("views", "demo")}
    seconds, best, runs = {}, {}, {}
    views = folder / "runs" / "vivit" / "views"
    fit = ["fit", "--config", configs["views"], "--trainer.default_root_dir", str(folder / "runs")]
    steps.run([*fit, *(shortened(QUICK_VIEWS) if quick else [])], produces=views)
    image = str(newest_run(views) / "checkpoints" / "best.ckpt")
    forms = {"grid": [], "cls": ["--model.adapter.form", "none"]}
    epochs = QUICK_EPOCHS if quick else EPOCHS
    length = ["--trainer.max_epochs", str(epochs), "--data.cache_draws", "1"] if quick else []
    for name, flags in forms.items():
        place = folder / "runs" if name == "grid" else steps.folder / name
        command = ["fit", "--config", configs["demo"], "--model.start.spatial", image, *flags, *length]
        command += ["--data.cache", str(steps.folder / f"cache-{name}"), "--trainer.default_root_dir", str(place)]
        seconds[name] = steps.run(command, produces=place / "vivit" / "demo")
        runs[name] = newest_run(place / "vivit" / "demo")
        best[name] = str(runs[name] / "checkpoints" / "best.ckpt")
    tested, recognised, bench = (steps.folder / part for part in ("test", "infer", "bench"))
    command = ["test", "--config", configs["demo"], "--ckpt_path", best["grid"]]
    command += ["--data.cache", str(steps.folder / "cache-grid"), "--trainer.default_root_dir", str(tested)]
    steps.run(command, produces=tested)
    videos = str(_videos(steps.folder))
    command = [
        "infer",
        "vivit",
        "--input",
        videos,
        "--checkpoint",
        best["grid"],
        "--out",
        str(recognised),
        "--hop",
        "8",
    ]
    steps.run(command, produces=recognised / "motions.webm")
    steps.run(["bench", "vivit", "--quick", "--out", str(bench)], produces=bench / "vivit.json")

    measured = {name: order_measures(file) for name, file in best.items()}
    result: dict[str, Any] = json.loads((bench / "vivit.json").read_text(encoding="utf-8"))
    costs = {row["form"]: row["metrics"] for row in result["rows"] if row["group"] == "steps"}
    held = costs["frozen + grid"]["held_bytes"] / costs["end to end"]["held_bytes"]
    grid = measured["grid"]
    blocks: list[Any] = [
        Figures(
            [
                ("eight motions, unseen photographs", f"{grid['top1']:.1%}", "accuracy, grid adapter"),
                ("the same from the class token", f"{measured['cls']['top1']:.1%}", "naive freezing; chance 12.5 %"),
                ("held in training", f"{held:.3f}x", "of end to end"),
                ("a step from the cache", f"{costs['frozen + grid, cached']['of_end_to_end']:.3f}x", "of end to end"),
                ("training", f"{seconds['grid']:.0f} s", f"features once, then {epochs} epochs"),
            ]
        ),
        Text(
            "A part of a photograph hangs on a wall and moves: it pans, grows, shrinks or turns. A class and its pair "
            "have the same frames in opposite orders, so no single frame tells them apart. An image transformer has "
            "learned to tell the photographs from single views, and stays as it is; only an adapter, a temporal "
            "transformer and a linear layer are trained, from features that are kept in a file."
        ),
        Picture("A test clip of each class, its frames from left to right", _strips(), "eight strips of eight frames"),
        Table(
            "Measured on 512 test clips of areas of the photographs that were not trained on",
            [
                *(
                    "",
                    "accuracy",
                    "kind of motion, either way",
                    "played backwards: right ones that turn into their pair",
                ),
                *("frames shuffled: accuracy", "frames shuffled: kind"),
            ],
            [[NAMES[name], *(f"{of[key]:.1%}" for key in MEASURES)] for name, of in measured.items()],
            note="The class token was trained to be the same wherever a photograph hangs; the grid keeps where it is.",
        ),
        Curves(
            "Accuracy on the validation clips",
            "epoch",
            "accuracy",
            {
                NAMES[name]: [(x + 1, y) for x, y in column(of / "metrics.csv", "epoch", "val_top1")]
                for name, of in runs.items()
            },
            y_range=(0.0, 1.0),
            percent=True,
        ),
        Picture(
            "What was taken for what, on the test clips",
            newest_run(tested / "vivit" / "demo") / "pictures" / "test_confusion.png",
            "confusion matrix of eight motions",
        ),
        Pictures(
            "One video of unseen clips, two of each of four classes: what is seen in the window of each moment",
            _answered(recognised / "motions.webm", (0.5, 1.5, 2.5, 4.5, 5.5, 6.5)),
        ),
        Picture("The same over time", recognised / "motions.png", "probabilities of the actions over time"),
        _steps_table(result["rows"]),
        Code("The commands that made this section", "\n".join(steps.commands)),
    ]
    section = Section(
        "vivit",
        "ViViT, frozen",
        "Actions in videos from an image transformer that stays frozen, by an adapter and a temporal transformer.",
        blocks,
    )
    figures = {name: {**of, "fit_seconds": round(seconds[name], 1)} for name, of in measured.items()}
    return section, {"trained": figures, "bench": result["rows"]}
