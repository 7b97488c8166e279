"""EcoTTA's bite of the demo: a trained network that goes on learning on a stream of corrupted pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.builtin import resolve_root
from datamodules.corruptions import corrupt, image_seed
from datamodules.listing import find_images
from scripts.demo.steps import Steps, newest_run, shortened, shown
from scripts.report import Code, Figures, Picture, Section, Table, Text
from scripts.systems import CONFIGS

ROUNDS = 2  # of the stream; the configuration has 12
QUICK_SOURCE = [*shortened(3), "--data.batch_size", "32"]  # of 10 epochs, in twice as many steps each
QUICK_STREAM = 192  # pictures of a corruption, of 256, in one round
SHOWN = 200  # pictures that the network adapts on from a folder
NAMES = {
    "source": "Source: as it was trained",
    "bn": "batch statistics",
    "tent": "TENT",
    "eata": "EATA",
    "cotta": "CoTTA",
    "rdumb": "RDumb",
    "ecotta": "EcoTTA",
}


def _pictures(folder: Path) -> Path:
    """Test pictures of low contrast in a folder of their own."""
    target = folder / "pictures"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    files = find_images(resolve_root("builtin:digit_pairs") / "test")
    for number, place in enumerate(np.random.default_rng(0).permutation(len(files))[:SHOWN]):
        file = Path(files[place])
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        dull = corrupt(pixels, "contrast", 3, image_seed(0, "contrast", number))
        Image.fromarray(dull).save(target / f"{number:04d}_is_{file.parent.name}.png")
    return target


def _methods(report: Mapping[str, Any], rounds: int) -> Table:
    rows: list[list[Any]] = []
    for name, of in report.items():
        rows.append(
            [
                NAMES[name],
                f"{of['error']:.1%}",
                f"{of['error_by_round'][-1]:.1%}",
                f"{of['clean'][0][1]:.1%}",
                f"{of['clean'][-1][1]:.1%}",
                f"{of['paper_mb']:.1f}",
                f"{of['held_mb']:.1f}",
                f"{of['ms']:.0f}",
            ]
        )
    return Table(
        f"Seven methods on one stream: {rounds} round{'s' * (rounds > 1)} of six corruptions",
        [
            *("method", "error", "last round", "clean pictures: before", "after"),
            *("MB, as papers count", "MB really held", "ms a step"),
        ],
        rows,
        note="Predictions count from before the step that learns from them. TENT has EcoTTA's rate, which it does not "
        "bear; at its own best rate it does as well (docs/systems/ecotta.md). The others have their own recipes.",
    )


def _corruptions(report: Mapping[str, Any]) -> Table:
    domains = list(next(iter(report.values()))["error_by_corruption"])
    rows: list[list[Any]] = [
        [domain.replace("_", " "), *(f"{of['error_by_corruption'][domain]:.1%}" for of in report.values())]
        for domain in domains
    ]
    return Table("Error by corruption, all rounds", ["", *(NAMES[name].split(":")[0] for name in report)], rows)


def run(folder: Path, quick: bool) -> tuple[Section, Mapping[str, Any]]:
    """Trains a network, warms up its meta networks, and shows a stream to seven methods.

    Args:
        folder: of the whole demo; the system's own files go to ``ecotta`` in it.
        quick: less training, and one round of a shorter stream.

    Returns:
        The report's section, and the figures for ``results.json``.
    """
    steps = Steps(folder / "ecotta")
    file, runs = str(shown(CONFIGS / "ecotta" / "demo.yaml")), folder / "runs"
    name = Path("ecotta") / "demo"
    place = ["--trainer.default_root_dir", str(runs)]
    seconds, short = 0.0, []
    if quick:
        # The configuration would train its network in full first.
        first = ["fit", "--config", str(shown(CONFIGS / "ecotta" / "source.yaml")), *place, *QUICK_SOURCE]
        seconds += steps.run(first, produces=runs / "ecotta" / "source")
        source = newest_run(runs / "ecotta" / "source") / "checkpoints" / "best.ckpt"
        short = ["--model.source", str(source), *shortened(1)]
    seconds += steps.run(["fit", "--config", file, *place, *short], produces=runs / name)
    best = str(newest_run(runs / name) / "checkpoints" / "best.ckpt")
    tested, answered = steps.folder / "test", steps.folder / "infer"
    rounds = 1 if quick else ROUNDS
    flags = ["--ckpt_path", best, "--data.rounds", str(rounds), "--trainer.default_root_dir", str(tested)]
    flags += ["--data.images", str(QUICK_STREAM)] if quick else []
    steps.run(["test", "--config", file, *flags], produces=tested)
    pictures = ["--input", str(_pictures(steps.folder)), "--checkpoint", best, "--out", str(answered)]
    steps.run(["infer", "ecotta", *pictures, "--batch-size", "32"], produces=answered / "stream.png")

    test = newest_run(tested / name)
    report: dict[str, Any] = json.loads((test / "stream.json").read_text(encoding="utf-8"))["methods"]
    own, tent = report["ecotta"], report["tent"]
    blocks: list[Any] = [
        Figures(
            [
                ("EcoTTA on corrupted pictures", f"{own['error']:.1%}", "error"),
                ("the network as it was trained", f"{report['source']['error']:.1%}", "error"),
                ("clean pictures afterwards", f"{own['clean'][-1][1]:.1%}", f"error; TENT {tent['clean'][-1][1]:.1%}"),
                ("held for a step", f"{own['held_mb'] / tent['held_mb']:.2f}", "of TENT's"),
            ]
        ),
        Text(
            "A small network has learned pairs of digits, and is frozen. Pictures with noise, snow, frost, low "
            "contrast and coarse pixels then come in one batch after the other, without labels; each method predicts a "
            "batch and learns from it. EcoTTA trains four small networks beside the frozen one."
        ),
        _methods(report, rounds),
        Picture(
            "Errors as the stream goes on, and on clean pictures: what is forgotten",
            test / "pictures" / "test_forgetting.png",
            "curves of seven methods",
        ),
        _corruptions(report),
        Picture(
            f"'vision infer ecotta' on a folder of {SHOWN} dull pictures: how sure the network is as it adapts",
            answered / "stream.png",
            "entropy along the stream",
        ),
        Code("The commands that made this section", "\n".join(steps.commands)),
    ]
    section = Section(
        "ecotta",
        "EcoTTA",
        "A network that goes on learning where it is used, at a fraction of the memory.",
        blocks,
    )
    figures = {
        key: {"error": of["error"], "clean": of["clean"][-1][1], "held_mb": of["held_mb"]} for key, of in report.items()
    }
    return section, {"methods": figures, "fit_seconds": round(seconds, 1)}
