"""EfficientViT's bite of the demo: two trainings on built-in images, and what they make of unseen ones."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.builtin import resolve_root
from datamodules.builtin.photographs import CELL, PART, photographs, test_cells
from datamodules.listing import find_images
from scripts.demo.steps import Steps, column, newest_run, shortened, shown
from scripts.report import Code, Curves, Figures, Picture, Section, Table, Text
from scripts.systems import CONFIGS

TASKS = {"photographs": "demo", "digits": "demo_digits"}  # built-in data, and the configuration over it
QUICK_EPOCHS = {"photographs": 1, "digits": 2}  # of 16 and of 8
SHOWN = 20  # pictures that the trained networks are tried on


def _last(metrics: Path, name: str) -> float:
    return column(metrics, "epoch", name)[-1][1]


def _pictures(folder: Path, data: str) -> Path:
    """Some unseen pictures of every class, in a folder without the classes' names."""
    target = folder / "pictures" / data
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    files = find_images(resolve_root(f"builtin:{data}") / "test")
    for file in random.Random(0).sample(files, SHOWN):  # noqa: S311
        shutil.copy(file, target / f"{Path(file).parent.name}-{Path(file).name}")
    return target


def train(steps: Steps, runs: Path, data: str, config: str, quick: bool = False) -> dict[str, Any]:
    """Trains on built-in images, tests the best network, tries it on pictures and exports it, by commands.

    Args:
        steps: whose folder the results go to.
        runs: folder for the training's own files.
        data: name of the built-in images.
        config: name of a configuration over them.
        quick: an epoch or two.

    Returns:
        The folders ``run``, ``test`` and ``infer``; ``figures``, the measures on the test images; ``exported``, what
        the export says of its files.
    """
    file = str(shown(CONFIGS / "efficientvit" / f"{config}.yaml"))
    out = steps.folder / data
    name = Path("efficientvit") / config
    common = ["--config", file, "--trainer.default_root_dir", str(runs)]
    fit = ["fit", *common, *(shortened(QUICK_EPOCHS[data]) if quick else [])]
    kept = runs / name
    seconds = steps.run(fit, produces=kept)
    run = newest_run(kept)
    best = run / "checkpoints" / "best.ckpt"
    tested = out / "test"
    steps.run(
        ["test", "--config", file, "--ckpt_path", str(best), "--trainer.default_root_dir", str(tested)],
        produces=tested,
    )
    results = out / "infer"
    pictures = _pictures(steps.folder, data)
    steps.run(
        ["infer", "efficientvit", "--input", str(pictures), "--checkpoint", str(best), "--out", str(results)],
        produces=results / "contact_sheet.png",
    )
    root = resolve_root(f"builtin:{data}")
    exported = out / "export"
    images = ["--int8", str(root / "train"), "--evaluate", str(root / "test")]
    steps.run(
        ["export", "efficientvit", "--checkpoint", str(best), "--out", str(exported), *images],
        produces=exported / "export.json",
    )
    test = newest_run(tested / name)
    names = ("test_top1", "test_f1_macro", "test_calibration_error")
    return {
        "run": run,
        "test": test,
        "infer": results,
        "figures": {**{n: _last(test / "metrics.csv", n) for n in names}, "fit_seconds": round(seconds, 1)},
        "exported": json.loads((exported / "export.json").read_text(encoding="utf-8")),
    }


def _measured(steps: Steps) -> dict[str, Any]:
    """The short benchmark."""
    folder = steps.folder / "bench"
    file = folder / "efficientvit.json"
    steps.run(["bench", "efficientvit", "--quick", "--out", str(folder)], produces=file)
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def _exported(by_task: Mapping[str, Mapping[str, Any]]) -> Table:
    rows: list[list[Any]] = []
    for data, files in by_task.items():
        int8 = files["int8"]
        sizes = [f"{files[kind]['bytes'] / 1e6:.1f}" for kind in ("float", "int8")]
        accuracies = [f"{int8[kind]:.1%}" for kind in ("top1_float", "top1_int8")]
        rows.append([data, *sizes, *accuracies, f"{int8['flipped']} of {int8['images']}"])
    return Table(
        "Exported to ONNX, in float and in int8, and compared on the test images",
        ["task", "float, MB", "int8, MB", "top-1, float", "top-1, int8", "decisions that differ"],
        rows,
        note="Int8: calibrated on 128 training images.",
    )


def _beside_others(steps: Steps, measured: Mapping[str, Any]) -> list[Any]:
    """What the short benchmark says of other networks."""
    counts = {row["network"]: row["metrics"] for row in measured["rows"] if row["group"] == "counts"}
    latency: dict[str, dict[str, float]] = {}
    for row in measured["rows"]:
        if row["group"] == "peers":
            of, form = latency.setdefault(row["network"], {}), row["form"].split(",")[0]
            of[form] = min(row["metrics"]["latency_ms"], of.get(form, float("inf")))
    rows = [
        [
            network,
            f"{counts[network]['parameters'] / 1e6:.1f}",
            f"{counts[network]['macs'] / 1e6:.0f}",
            f"{counts[network]['saved_activations_mib_per_image']:.1f}",
            f"{of['pytorch']:.1f}",
            f"{of['onnxruntime']:.1f}",
        ]
        for network, of in latency.items()
    ]
    columns = ["network", "parameters, M", "MACs, M", "kept in training, MiB/image", "PyTorch, ms", "ONNX Runtime, ms"]
    return [
        Table(
            "Beside other small networks, on this machine",
            columns,
            rows,
            note="One image of 224 x 224 pixels on one thread, fp32, forms for inference (of two layouts the faster), "
            "medians of alternating rounds. Kept in training: what autograd holds for the backward pass, exactly.",
        ),
        Picture(
            "Published accuracy against the speed measured here",
            steps.folder / "bench" / "efficientvit.png",
            "scatter plot of published accuracy over images a second",
        ),
    ]


def run(folder: Path, quick: bool) -> tuple[Section, Mapping[str, Any]]:
    """Trains, tests and tries EfficientViT-M0 on the built-in images.

    Args:
        folder: of the whole demo; the system's own files go to ``efficientvit`` in it.
        quick: an epoch or two of training.

    Returns:
        The report's section, and the figures by task for ``results.json``.
    """
    steps = Steps(folder / "efficientvit")
    done = {data: train(steps, folder / "runs", data, config, quick) for data, config in TASKS.items()}
    figures = {data: task["figures"] for data, task in done.items()}
    tested = {data: len(find_images(resolve_root(f"builtin:{data}") / "test")) for data in TASKS}
    measured = _measured(steps)
    cells = sum(len(test_cells(*picture.shape[:2])) for picture in photographs().values())
    blocks: list[Any] = [
        Figures(
            [
                (
                    "photographs, unseen areas",
                    f"{figures['photographs']['test_top1']:.1%}",
                    f"top-1 on {tested['photographs']} parts",
                ),
                ("digits, unseen scans", f"{figures['digits']['test_top1']:.1%}", f"top-1 on {tested['digits']} scans"),
                ("training", f"{sum(f['fit_seconds'] for f in figures.values()):.0f} s", "both commands, start to end"),
            ]
        ),
        Text(
            "Two tasks, each trained from random weights. Photographs: ten colour photographs, cut into parts of "
            f"{PART} x {PART} pixels; the network says which photograph a part comes from. The parts that it is tested "
            f"on lie in {cells} cells of {CELL} x {CELL} pixels that no training part comes near. Parts of one cell "
            f"overlap, so the {tested['photographs']} test parts are worth about as much as their cells. Digits: "
            "scikit-learn's 1797 handwritten digits, three quarters to train on, the rest to test on."
        ),
        Table(
            "Measured on images that were not trained on",
            ["task", "top-1", "macro F1", "calibration error", "training, s"],
            [
                [
                    data,
                    f"{f['test_top1']:.1%}",
                    f"{f['test_f1_macro']:.3f}",
                    f"{f['test_calibration_error']:.3f}",
                    f"{f['fit_seconds']:.0f}",
                ]
                for data, f in figures.items()
            ],
            note="Calibration error: expected, 15 bins. Training: wall time of the command, one seed.",
        ),
    ]
    for data, task in done.items():
        metrics = task["run"] / "metrics.csv"
        blocks += [
            Curves(
                f"{data.capitalize()}: accuracy on validation images, which come from the training areas"
                if data == "photographs"
                else f"{data.capitalize()}: accuracy on validation images",
                "epoch",
                "top-1",
                {"validation": [(x + 1, y) for x, y in column(metrics, "epoch", "val_top1")]},
                y_range=(0.0, 1.0),
                percent=True,
            ),
            Curves(
                f"{data.capitalize()}: loss (in training with label smoothing and augmentation)",
                "epoch",
                "cross entropy",
                {
                    "training": [(x + 1, y) for x, y in column(metrics, "epoch", "train_loss_epoch")],
                    "validation": [(x + 1, y) for x, y in column(metrics, "epoch", "val_loss")],
                },
            ),
            Picture(
                f"{data.capitalize()}: what was taken for what, on the test images",
                task["test"] / "pictures" / "test_confusion.png",
                f"confusion matrix of the {data} test images",
            ),
            Picture(
                f"{data.capitalize()}: unseen pictures and the network's two most likely answers, the least sure first",
                task["infer"] / "contact_sheet.png",
                f"contact sheet of {SHOWN} predictions",
            ),
        ]
        mistakes = task["test"] / "pictures" / "test_worst_mistakes.png"
        if mistakes.exists():
            blocks.append(Picture(f"{data.capitalize()}: the worst mistakes", mistakes, f"worst mistakes on {data}"))
    exported = {data: task["exported"] for data, task in done.items()}
    blocks += [_exported(exported), *_beside_others(steps, measured)]
    blocks.append(Code("The commands that made this section", "\n".join(steps.commands)))
    section = Section(
        "efficientvit",
        "EfficientViT",
        "A small image classifier of high throughput (M0: 2.3 million parameters), trained from scratch.",
        blocks,
    )
    return section, {**figures, "exported": exported, "bench": measured["rows"]}
