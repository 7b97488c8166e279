"""MEDIC's bite of the demo: one network for four tasks, from a table with missing labels."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.builtin import resolve_root
from datamodules.builtin.scenes import TASKS
from scripts.bench.medic_tables import cost_shares
from scripts.demo.steps import Steps, column, newest_run, shortened, shown
from scripts.report import Code, Curves, Figures, Picture, Pictures, Section, Table, Text
from scripts.systems import CONFIGS
from vision.labels import LabelSchema

QUICK_EPOCHS = 1  # of 10
SHOWN = 40  # test pictures that the trained network is tried on


def _pictures(folder: Path) -> Path:
    """The first test pictures, and a broken file among them, in a folder of their own."""
    target = folder / "pictures"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    root = resolve_root("builtin:scenes")
    with (root / "test.tsv").open(newline="", encoding="utf-8") as stream:
        for row in list(csv.DictReader(stream, delimiter="\t"))[:SHOWN]:
            shutil.copy(root / row["image_path"], target)
    (target / "truncated.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return target


def _missing() -> tuple[int, dict[str, int]]:
    """Rows of the training table, and how many of them lack each task's label."""
    with (resolve_root("builtin:scenes") / "train.tsv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return len(rows), {task: sum(not row[task] for row in rows) for task in TASKS}


def _reviewed(table: Path) -> Table:
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    ranked = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: int(row["review_rank"]))[:5]
    cells: list[list[Any]] = [
        [Path(row["path"]).name, *[f"{row[task]} ({float(row[f'{task}_probability']):.0%})" for task in TASKS]]
        for row in ranked
    ]
    cells += [
        [Path(row["path"]).name, row["status"], *[None] * (len(TASKS) - 1)] for row in rows if row["status"] != "ok"
    ]
    return Table(
        "Which pictures a person should look at first, and what could not be read",
        ["picture", *TASKS],
        cells,
        note="Ranked by the largest normalised entropy of a picture's answers.",
    )


def _costs(rows: list[Mapping[str, Any]]) -> Table:
    columns, cells = cost_shares(rows)
    return Table("One network's cost, as a share of four's", columns, cells, note="On this machine, one thread.")


def run(folder: Path, quick: bool) -> tuple[Section, Mapping[str, Any]]:
    """Trains, tests, tries and exports one network for four tasks.

    Args:
        folder: of the whole demo; the system's own files go to ``medic`` in it.
        quick: one epoch of training.

    Returns:
        The report's section, and the figures for ``results.json``.
    """
    steps = Steps(folder / "medic")
    file, runs = str(shown(CONFIGS / "medic" / "demo.yaml")), folder / "runs"
    name = Path("medic") / "demo"
    fit = ["fit", "--config", file, "--trainer.default_root_dir", str(runs)]
    seconds = steps.run([*fit, *(shortened(QUICK_EPOCHS) if quick else [])], produces=runs / name)
    trained = newest_run(runs / name)
    best = str(trained / "checkpoints" / "best.ckpt")
    tested, answered, exported = (steps.folder / part for part in ("test", "infer", "export"))
    steps.run(
        ["test", "--config", file, "--ckpt_path", best, "--trainer.default_root_dir", str(tested)], produces=tested
    )
    steps.run(
        ["infer", "medic", "--input", str(_pictures(steps.folder)), "--checkpoint", best, "--out", str(answered)],
        produces=answered / "contact_sheet.png",
    )
    steps.run(["export", "medic", "--checkpoint", best, "--out", str(exported)], produces=exported)
    bench = steps.folder / "bench"
    steps.run(["bench", "medic", "--quick", "--out", str(bench)], produces=bench / "medic.json")

    test = newest_run(tested / name)
    report: dict[str, Any] = json.loads((test / "test_report.json").read_text(encoding="utf-8"))
    measured: dict[str, Any] = json.loads((bench / "medic.json").read_text(encoding="utf-8"))
    rows, missing = _missing()
    metrics = trained / "metrics.csv"
    mean = sum(of["f1_weighted"] for of in report.values()) / len(report)
    constant = sum(of["majority"]["f1_weighted"] for of in report.values()) / len(report)
    parts = {row["form"]: row["metrics"] for row in measured["rows"] if row["group"] == "counts"}
    blocks: list[Any] = [
        Figures(
            [
                ("four tasks, unseen pictures", f"{mean:.1%}", "mean weighted F1"),
                ("always the most frequent class", f"{constant:.1%}", "mean weighted F1"),
                (
                    "one network's parameters",
                    f"{parts['one']['parameters'] / parts['four']['parameters']:.2f}",
                    "of four",
                ),
                ("training", f"{seconds:.0f} s", "one command"),
            ]
        ),
        Text(
            f"{rows} pictures of shapes on photographs in a table with a column for each of four tasks: how much of "
            "the picture shapes cover (level), whether there is a shape (useful), which (kind), and what is behind it "
            "(type). Of each column three labels in ten are missing; a picture counts for the tasks that it is "
            "labelled for. The photographs behind the test pictures are areas that no training picture shows."
        ),
        Table(
            "Measured on 800 test pictures",
            [
                *("task", "labels missing in training", "accuracy", "weighted F1", "macro F1"),
                *("lowest recall of a class", "most frequent class: weighted F1"),
            ],
            [
                [
                    task,
                    f"{missing[task] / rows:.0%}",
                    f"{of['accuracy']:.1%}",
                    f"{of['f1_weighted']:.1%}",
                    f"{of['f1_macro']:.1%}",
                    "{1} {0:.1%}".format(*min((found["recall"], label) for label, found in of["classes"].items())),
                    f"{of['majority']['f1_weighted']:.1%}",
                ]
                for task, of in report.items()
            ],
            note="Weighted: by the classes' numbers of pictures, as in the paper's script. Macro: the plain mean over "
            "all classes.",
        ),
        Curves(
            "Macro F1 on the development pictures",
            "epoch",
            "macro F1",
            {task: [(x + 1, y) for x, y in column(metrics, "epoch", f"val_{task}_f1_macro")] for task in report},
            y_range=(0.0, 1.0),
            percent=True,
        ),
        Curves(
            "Loss in training, over the pictures that are labelled for the task",
            "epoch",
            "cross entropy",
            {task: [(x + 1, y) for x, y in column(metrics, "epoch", f"train_{task}_loss")] for task in report},
        ),
        Pictures(
            "What was taken for what, on the test pictures",
            [
                Picture(task, test / "pictures" / f"test_confusion_{task}.png", f"confusion matrix of {task}")
                for task, of in LabelSchema.parse(TASKS).tasks.items()
                if len(of) > 2
            ],
        ),
        Picture(
            "Unseen pictures with every task's answer, the most covered first; the number is the rank for review",
            answered / "contact_sheet.png",
            f"contact sheet of {SHOWN} pictures with four answers each",
        ),
        _reviewed(answered / "predictions.csv"),
        _costs(measured["rows"]),
        Code("The commands that made this section", "\n".join(steps.commands)),
    ]
    section = Section(
        "medic",
        "MEDIC",
        "One network for several classification tasks, trained on a table in which labels are missing.",
        blocks,
    )
    tasks = {task: {key: of[key] for key in ("accuracy", "f1_weighted", "f1_macro")} for task, of in report.items()}
    for task, of in report.items():
        tasks[task]["majority_f1_weighted"] = of["majority"]["f1_weighted"]
    return section, {"tasks": tasks, "fit_seconds": round(seconds, 1), "bench": measured["rows"]}
