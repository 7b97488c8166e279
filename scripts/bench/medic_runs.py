"""The trainings of MEDIC's benchmark: each a ``vision fit`` and a ``vision test``, two at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.builtin import resolve_root
from datamodules.builtin.scenes import TASKS
from scripts.bench.trainings import in_processes, run_vision
from scripts.systems import CONFIGS

CONFIG = CONFIGS / "medic" / "demo.yaml"
SEEDS = (0, 1, 2)
EPOCHS, LONG = 10, 20  # the demo's, and where one network is compared with four
BATCH = 32  # the configuration's


class Run(NamedTuple):
    """One training.

    Attributes:
        name: of what is compared.
        seed: of weights and data.
        flags: added to the demo's configuration.
    """

    name: str
    seed: int
    flags: tuple[str, ...]


def train(run: Run, folder: Path) -> dict[str, Any]:
    """The report on the test pictures, of the epoch that was best on the development ones."""
    place = folder / f"{run.name}-{run.seed}"
    common = ["--config", str(CONFIG), *run.flags, "--data.seed", str(run.seed), "--data.num_workers", "0"]
    common += ["--seed_everything", str(run.seed)]
    run_vision(["fit", *common, "--trainer.default_root_dir", str(place)])
    (best,) = place.rglob("best.ckpt")
    tested = place / "test"
    run_vision(["test", *common, "--ckpt_path", str(best), "--trainer.default_root_dir", str(tested)])
    (report,) = tested.rglob("test_report.json")
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    shutil.rmtree(place)
    return found


def results(runs: Sequence[Run], folder: Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Every run with its report, as they end."""
    resolve_root("builtin:scenes")  # written once, not by two processes at a time
    yield from in_processes(partial(train, folder=folder), runs)


def length(epochs: int, rows: int = 2400) -> tuple[str, ...]:
    """Flags for a training of so many rows that takes as many steps, and measures as often, as epochs of all rows."""
    per_epoch = rows // BATCH
    times = max(1, round(2400 // BATCH / per_epoch))
    return (
        *("--trainer.max_epochs", str(epochs * times), "--trainer.check_val_every_n_epoch", str(times)),
        *("--model.lr_scheduler.warmup_epochs", str(times)),
    )


def partial_tables(folder: Path, seed: int) -> Mapping[str, tuple[Path, int]]:
    """Two tables of the training pictures, and their numbers of rows.

    ``hidden``: of the complete labels each is left out with probability 1/2, independently. ``dropped``: the rows of
    it that have no gap.
    """
    lines = (resolve_root("builtin:scenes") / "train_full.tsv").read_text(encoding="utf-8").splitlines()
    header, rows = lines[0].split("\t"), [line.split("\t") for line in lines[1:]]
    columns = [header.index(task) for task in TASKS]
    gaps = np.random.default_rng(seed).random((len(rows), len(columns))) < 0.5
    blanked = [
        [("" if i in columns and gap[columns.index(i)] else cell) for i, cell in enumerate(row)]
        for row, gap in zip(rows, gaps, strict=True)
    ]
    tables = {"hidden": blanked, "dropped": [row for row, gap in zip(rows, gaps, strict=True) if not gap.any()]}
    files = {}
    for name, content in tables.items():
        file = folder / f"{name}-{seed}.tsv"
        file.write_text("\n".join("\t".join(row) for row in [header, *content]) + "\n", encoding="utf-8")
        files[name] = file, len(content)
    return files
