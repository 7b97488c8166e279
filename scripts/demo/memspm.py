"""MemSPM's bite of the demo: printed digits with labels, handwritten ones without, and some that have no class."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.builtin import resolve_root
from scripts.bench.memspm_runs import METHODS, PAIRS, Run, runs
from scripts.bench.memspm_tables import methods_cells
from scripts.demo.steps import Steps, newest_run, shown
from scripts.report import Code, Figures, Section, Table, Text
from scripts.systems import CONFIGS
from vision.memspm.rejection import RULES

SEEDS = tuple(range(10, 16))
QUICK_SEEDS, QUICK_METHODS = SEEDS[:2], ("dcc", "memspm")
SHOWN = 12  # of the table of predictions


def _known(folder: Path, classes: Sequence[str]) -> Path:
    """The source's pictures of the classes that the network knows, in a folder of their own."""
    target = folder / "source"
    shutil.rmtree(target, ignore_errors=True)
    for name in classes:
        shutil.copytree(resolve_root("builtin:fonts") / "source" / name, target / name)
    return target


def _answers(table: Path) -> Table:
    """Some pictures, what they were taken for, and what they are, which their folder says."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    picked = rows[:: max(1, len(rows) // SHOWN)][:SHOWN]
    cells = [
        [Path(row["path"]).name, Path(row["path"]).parent.name, row["class"], row["score"], row["sub_prototypes"]]
        for row in picked
    ]
    columns = ["picture", "is a", "answer", "above the cut", "sub-prototypes that decided (item.sub:weight)"]
    return Table("What 'vision infer memspm' wrote, some rows", columns, cells)


def run(folder: Path, quick: bool) -> tuple[Section, Mapping[str, Any]]:
    """Adapts from print to handwriting, tries the network, and compares methods over seeds.

    Args:
        folder: of the whole demo; the system's own files go to ``memspm`` in it.
        quick: two methods on two seeds are compared.

    Returns:
        The report's section, and the figures for ``results.json``.
    """
    steps = Steps(folder / "memspm")
    file, trained = str(shown(CONFIGS / "memspm" / "demo.yaml")), folder / "runs"
    name = Path("memspm") / "demo"
    cache = ["--data.cache", str(steps.folder / "features")]
    fit = ["fit", "--config", file, "--trainer.default_root_dir", str(trained), *cache]
    seconds = steps.run(fit, produces=trained / name)
    best = str(newest_run(trained / name) / "checkpoints" / "best.ckpt")
    tested, answered = steps.folder / "test", steps.folder / "infer"
    place = ["--ckpt_path", best, "--trainer.default_root_dir", str(tested), *cache]
    steps.run(["test", "--config", file, *place], produces=tested)
    report: dict[str, Any] = json.loads((newest_run(tested / name) / "adaptation.json").read_text(encoding="utf-8"))
    source = _known(steps.folder, report["classes"])
    pictures = ["--input", str(resolve_root("builtin:fonts") / "target"), "--source", str(source)]
    infer = ["infer", "memspm", *pictures, "--checkpoint", best, "--out", str(answered)]
    steps.run(infer, produces=answered / "prototypes.html")
    own = report["rules"][report["rule"]]
    methods, seeds = (QUICK_METHODS, QUICK_SEEDS) if quick else (METHODS, SEEDS)
    jobs = [Run(pair, "unida", method, seed) for pair in PAIRS for method in methods for seed in seeds]
    print(f"comparing {len(methods)} methods on {len(PAIRS)} pairs of domains, {len(seeds)} seeds", flush=True)
    rows = list(runs(jobs, steps.folder / "compared"))
    columns, cells = methods_cells(rows, ("h", "auroc"))
    memory = report["memory"]
    blocks: list[Any] = [
        Figures(
            [
                ("known classes and unknown together", f"{own['h']:.1%}", "H, unseen kind of picture"),
                ("digits that both have", f"{own['common']:.1%}", "mean recall"),
                ("digits that print has not", f"{own['unknown']:.1%}", "called unknown"),
                ("sub-prototypes used", f"{memory['used']} of {memory['total']}", f"purity {memory['purity']:.2f}"),
            ]
        ),
        Text(
            "Digits printed in eleven fonts have labels; handwritten digits have none. Five digits are in both, two in "
            "print only, and three only by hand: those the network has to call unknown. Its memory of "
            "sub-prototypes is begun from both kinds of pictures; classes and clusters of the handwriting are matched "
            "and drawn together. H is the harmonic mean of the recall of the common digits and of the unknown."
        ),
        Table(
            "Where to cut: every rule on one network's answers",
            ["unknown is what has", "H", "common digits", "unknown ones", "AUROC"],
            [
                [
                    RULES[rule] + (" (the default)" if rule == report["rule"] else ""),
                    *(f"{of[key]:.1%}" if of[key] is not None else None for key in ("h", "common", "unknown", "auroc")),
                ]
                for rule, of in report["rules"].items()
            ],
        ),
        Table(
            f"Methods on the same features, {len(seeds)} draws of the digits",
            columns,
            [list(row) for row in cells],
            note="Print to handwriting, and two halves of the handwriting in different styles.",
        ),
        _answers(answered / "predictions.csv"),
        Text(
            f"What each sub-prototype has learned, with pictures of both kinds: {shown(answered / 'prototypes.html')}"
        ),
        Code("The commands that made this section", "\n".join(steps.commands)),
    ]
    section = Section(
        "memspm",
        "MemSPM",
        "Classes for unlabelled pictures of another kind, and “unknown” for what has none.",
        blocks,
    )
    figures = {key: of["h"] for key, of in report["rules"].items()}
    compared = [{key: row[key] for key in ("pair", "contender", "seed", "metrics")} for row in rows]
    return section, {"h": figures, "memory": memory, "compared": compared, "fit_seconds": round(seconds, 1)}
