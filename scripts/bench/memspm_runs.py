"""The trainings of MemSPM's benchmark: methods on pairs of domains, settings and seeds; finished ones are kept."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datamodules import Domains
from datamodules.domain_splits import Setting
from scripts.bench.results import rounded
from scripts.bench.trainings import in_processes, run_vision
from scripts.demo.steps import newest_run
from scripts.stages import run_name
from scripts.systems import CONFIGS
from vision import __version__
from vision.memspm.checkpoint import DomainRecord, load_adapted
from vision.memspm.health import style_nmi
from vision.memspm.open_set import open_set_scores
from vision.memspm.rejection import otsu

Row = dict[str, Any]
DEMO = CONFIGS / "memspm" / "demo.yaml"
PAIRS = ("fonts", "styles")
# Of ten digits: common, source-private, target-private.
SPLITS: dict[Setting, str] = {"unida": "[5, 2, 3]", "osda": "[5, 0, 5]", "pda": "[5, 5, 0]", "closed": "[10, 0, 0]"}
METHODS = ("source_only", "ovanet", "dance", "dcc", "memspm")
# Each at the best of several learning rates on seeds 0 to 2 (of 0.0003 to 0.3, by steps of three; DCC and MemSPM on
# seeds 0 to 5); the demo has that of MemSPM.
RATES = {"source_only": "0.001", "ovanet": "0.1", "dance": "0.0003", "dcc": "0.001"}
# Flags of MemSPM's variants.
VARIANTS: dict[str, tuple[str, ...]] = {
    "memspm online": ("--model.clustering.assign", "online"),
    "memspm random": ("--model.memory.start", "random"),
    "memspm paper": (
        *("--model.memory.start", "random", "--model.memory.temperature", "1", "--model.memory.address", "paper"),
        *("--model.memory.items", "64", "--model.memory.top_k", "8"),
    ),
    "memspm one sub": ("--model.memory.subs", "1"),
    "memspm no cdd": ("--model.losses.cdd", "0"),
    "memspm no regulariser": ("--model.losses.regulariser", "0"),
    "memspm decoder": ("--model.decoder", "28", "--data.thumbnails", "28"),
}
NEIGHBOURS = 50
MEASURES = ("h", "h3", "common", "unknown", "h_micro", "accuracy", "average", "auroc", "oscr", "rejected")


class Run(NamedTuple):
    """One training.

    Attributes:
        pair: built-in domains, or the words for a user's.
        setting: unida, osda, pda or closed.
        contender: a method, or a variant of MemSPM.
        seed: of the training and of the data; of the built-in digits' order too.
        config: the configuration.
        domains: a user's source and target; None for built-in ones.
    """

    pair: str
    setting: Setting
    contender: str
    seed: int
    config: Path = DEMO
    domains: tuple[str, str] | None = None

    @property
    def flags(self) -> list[str]:
        """Of ``vision fit`` and ``vision test``, beside the configuration."""
        seed = str(self.seed)
        data = {"setting": self.setting, "seed": seed}
        flags = ["--model.method", self.contender.split()[0], "--seed_everything", seed]
        if self.domains is not None:
            data |= {"source": self.domains[0], "target": self.domains[1]}
        else:
            data |= {"root": f"builtin:{self.pair}", "split": SPLITS[self.setting], "shuffle_classes": seed}
            if self.contender in RATES:
                flags += ["--model.optimizer.init_args.lr", RATES[self.contender]]
        flags += [word for name, value in data.items() for word in (f"--data.{name}", value)]
        return [*flags, *VARIANTS.get(self.contender, ())]

    @property
    def key(self) -> str:
        """What its result is kept under: it is another one with other flags, configuration or version."""
        content = [__version__, self.config.read_text(encoding="utf-8"), *self.flags]
        return hashlib.sha256("\0".join(content).encode()).hexdigest()[:16]


def follow(run: Run, kept: Path) -> Row:
    """Trains, tests and measures, unless the result is kept already.

    Args:
        run: which.
        kept: folder of finished results and of the features.
    """
    file = kept / f"{run.key}.json"
    if file.is_file():
        found: Row = json.loads(file.read_text(encoding="utf-8"))
        return found
    folder = kept / f"training-{run.key}"
    shutil.rmtree(folder, ignore_errors=True)
    places = ["--trainer.default_root_dir", str(folder), "--data.cache", str(kept / "features" / run.pair)]
    run_vision(["fit", "--config", str(run.config), *run.flags, *places])
    trained = newest_run(folder / run_name(run.config))
    best = trained / "checkpoints" / "best.ckpt"
    run_vision(["test", "--config", str(run.config), *run.flags, *places, "--ckpt_path", str(best)])
    tested = newest_run(folder / run_name(run.config))
    report = json.loads((tested / "adaptation.json").read_text(encoding="utf-8"))
    metrics: dict[str, Any] = {}
    for rule, of in report["rules"].items():
        metrics |= {f"{rule}_{name}": rounded(of[name]) for name in MEASURES if of[name] is not None}
    metrics |= _by_consensus(trained / "metrics.csv")
    if report["memory"] is not None:
        metrics |= {"used": report["memory"]["used"] / report["memory"]["total"], "purity": report["memory"]["purity"]}
        if run.domains is None:
            metrics["style_nmi"] = rounded(_style_nmi(best, run))
    if run.domains is None and run.contender == "source_only" and run.setting in ("unida", "osda"):
        metrics["neighbours_h"] = rounded(_neighbours_h(best, run))
    row: Row = {"name": " ".join(map(str, run[:4])), "group": "adapted", "pair": run.pair, "setting": run.setting}
    row |= {"contender": run.contender, "seed": run.seed, "rule": report["rule"]}
    row["metrics"] = metrics
    file.with_suffix(".part").write_text(json.dumps(row), encoding="utf-8")
    file.with_suffix(".part").replace(file)
    shutil.rmtree(folder)
    return row


def _by_consensus(metrics: Path) -> dict[str, float]:
    """H of the epoch with the best consensus, which is chosen without labels, beside that of the last epoch."""
    with metrics.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("val_h") and row.get("val_consensus")]
    if not rows:
        return {}
    chosen = max(rows, key=lambda row: float(row["val_consensus"]))
    return {"consensus_h": rounded(float(chosen["val_h"])), "last_h": rounded(float(rows[-1]["val_h"]))}


def _data(record: DomainRecord, run: Run) -> Domains:
    """The pictures of a run as its network takes them."""
    how = record.preprocessing
    data = Domains(
        f"builtin:{run.pair}", setting=run.setting, split=json.loads(SPLITS[run.setting]), shuffle_classes=run.seed,
        image_size=how.size, mean=how.mean, std=how.std, crop_pct=how.crop_pct, num_workers=0, batch_size=512,
    )  # fmt: skip
    data.setup()
    return data


@torch.no_grad()
def _neighbours_h(checkpoint: Path, run: Run) -> float:
    """H where a picture is known by its neighbours: Otsu on the share of the source among the nearest of both domains.

    A control that trains nothing: it looks at the encoder's features, as a memory's usage does. Domains count alike,
    however many pictures they have.
    """
    network, record = load_adapted(checkpoint)
    data = _data(record, run)
    source = torch.cat([network.encode(batch["media"]) for batch in data.domain_loader("source")])
    batches = list(data.val_dataloader())
    target = torch.cat([network.encode(batch["media"]) for batch in batches])
    labels, predicted = torch.cat([batch["group"] for batch in batches]), network.examine(target).logits.argmax(dim=1)
    source, target = (torch.nn.functional.normalize(of, dim=1) for of in (source, target))
    similarity = torch.cat([target @ source.T, (target @ target.T).fill_diagonal_(-2.0)], dim=1)
    of_source = similarity.topk(NEIGHBOURS, dim=1).indices < len(source)
    inside, outside = of_source.sum(dim=1) / len(source), (~of_source).sum(dim=1) / len(target)
    known = (inside / (inside + outside)).double()
    answers = torch.where(known > otsu(known.numpy()), predicted, len(record.class_names))
    return float(open_set_scores(labels, answers, len(record.class_names))["h"] or 0.0)


def _style_nmi(checkpoint: Path, run: Run) -> float:
    """How far sub-prototypes tell fonts (or styles of handwriting) within a class, which the files' names say."""
    network, record = load_adapted(checkpoint)
    data = _data(record, run)
    rows, classes, styles = [], [], list[str]()
    with torch.no_grad():
        for batch in data.domain_loader("source"):
            addressed = network.examine(batch["media"]).addressed
            assert addressed is not None
            rows.append(addressed.rows[:, 0])
            classes.append(batch["group"])
            styles += [Path(path).stem.split("_", 1)[1] for path in batch["path"]]
    numbers = {style: number for number, style in enumerate(sorted(set(styles)))}
    return style_nmi(torch.cat(rows), torch.cat(classes), torch.tensor([numbers[style] for style in styles]))


def runs(jobs: Sequence[Run], kept: Path) -> Iterator[Row]:
    """A row for each run, as they end; first those that are kept."""
    kept.mkdir(parents=True, exist_ok=True)
    left = [job for job in jobs if not (kept / f"{job.key}.json").is_file()]
    for job in jobs:
        if job not in left:
            yield follow(job, kept)
    for pair in dict.fromkeys(job.pair for job in left):
        # Built-in data are written once, and features made once, not by two processes at a time.
        if not (kept / "features" / pair / "target").is_dir():
            follow(next(job for job in left if job.pair == pair), kept)
    # The long ones first.
    left.sort(key=lambda job: ("decoder" not in job.contender, not job.contender.startswith("memspm")))
    for number, (_, row) in enumerate(in_processes(partial(follow, kept=kept), left), start=1):
        rule = row["rule"]
        shown = row["metrics"].get(f"{rule}_h", row["metrics"].get(f"{rule}_accuracy"))
        print(f"[{number}/{len(left)}] {row['name']}: {rule} {shown}", flush=True)
        yield row


def values(rows: Sequence[Mapping[str, Any]], pair: str, setting: str, contender: str, metric: str) -> list[float]:
    """A measure of a contender, in percent, a value a seed."""
    found = [
        row
        for row in rows
        if row["group"] == "adapted" and (row["pair"], row["setting"], row["contender"]) == (pair, setting, contender)
    ]
    return [100 * row["metrics"][metric] for row in sorted(found, key=lambda row: int(row["seed"]))]
