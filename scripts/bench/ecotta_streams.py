"""The streams of EcoTTA's benchmark: digits in pairs, corrupted, shown to each method with its own settings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from datamodules import CorruptionStream
from datamodules.builtin import resolve_root
from scripts.bench.results import rounded
from scripts.bench.trainings import in_processes, run_vision
from scripts.demo.steps import newest_run
from scripts.systems import CONFIGS
from tasks.stream_measures import StreamMeasures
from vision.batches import StreamBatch
from vision.ecotta import Descent, EcoTTA, GuardOptions, Method, Online, load_adapter
from vision.ecotta.baselines import AdaptBN, BatchStatistics, Source, Tent
from vision.ecotta.cotta import CoTTA
from vision.ecotta.eata import EATA, RDumb

Row = dict[str, Any]
DEMO = CONFIGS / "ecotta" / "demo.yaml"
SEEDS = (0, 1, 2)
ROUNDS, LONG = 12, 30
RATES = (0.02, 0.05, 0.1, 0.3)
CLASSES = 100
# Of single images: "scaled" divides the rate by the batches' 32 images.
SINGLE = (
    "ecotta lr 0.001 scaled", "ecotta lr 0.001 scaled adaptbn", "ecotta lr 0.0002 scaled adaptbn", "adaptbn", "bn",
)  # fmt: skip


class Run(NamedTuple):
    """One method on one stream.

    Attributes:
        name: of the method with its settings.
        seed: of the network, its training, and the stream.
        rounds: of the stream.
        batch: images of a step.
    """

    name: str
    seed: int
    rounds: int
    batch: int = 32


def _sgd(rate: float, lr_batch: int | None = None) -> Descent:
    return Descent("sgd", rate, lr_batch=lr_batch)


class Start:
    """The trained network of a seed with warmed-up meta networks, and the clean images that it was trained on."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.checkpoint = folder / f"adapter-{seed}.ckpt"
        self.seed = seed

    def adapter(self, **online: Any) -> EcoTTA:
        """EcoTTA; without a guard unless asked for."""
        return load_adapter(self.checkpoint, online=Online(**{"guard": False, **online}))[0]

    def calibrated(self, **online: Any) -> EcoTTA:
        """EcoTTA round the same network, with meta networks that had no warm-up."""
        options = Online(**{"guard": False, **online}).options()
        torch.manual_seed(self.seed)
        return EcoTTA.attach(self.network(), 4, input_size=(16, 32), **options)

    def network(self) -> torch.nn.Module:
        """The network alone."""
        return copy.deepcopy(self.adapter().model)

    def source_images(self) -> Iterator[torch.Tensor]:
        """Of EATA's Fisher information."""
        return (batch["image"] for batch in data(self.seed, 32).train_dataloader())


def _named(name: str, start: Start) -> Method:
    """A method by its name: a word, and for some a learning rate."""
    words = name.split()
    rate = float(words[words.index("lr") + 1]) if "lr" in words else None
    descent = None if rate is None else _sgd(rate)
    guard = GuardOptions() if "guard" in words else None
    makers: dict[str, Callable[[], Method]] = {
        "source": lambda: Source(start.network()),
        "bn": lambda: BatchStatistics(start.network()),
        "adaptbn": lambda: AdaptBN(start.network()),
        "tent": lambda: Tent(start.network(), descent=descent, guard=guard),
        "eata": lambda: EATA(start.network(), start.source_images(), similarity=0.1, descent=descent),
        # Anew after two rounds: the usual thousand steps are more than the stream has.
        "rdumb": lambda: RDumb(start.network(), similarity=0.1, period=96, descent=descent),
        "cotta": lambda: CoTTA(start.network(), threshold=0.72, views=4, mirror=False, descent=descent),
    }
    if words[0] != "ecotta":
        return makers[words[0]]()
    online: dict[str, Any] = {"lr": rate, "guard": guard is not None}
    if "eager" in words:
        online["memory"] = "eager"
    if "adaptbn" in words:
        online["prior"] = 16.0
    if "scaled" in words:
        online["lr_batch"] = 32
    return start.calibrated(**online) if "calibrated" in words else start.adapter(**online)


def data(seed: int, batch: int, rounds: int = 1) -> CorruptionStream:
    """The demo's data module, ready, with this seed."""
    options = dict(yaml.safe_load(DEMO.read_text(encoding="utf-8"))["data"]["init_args"])
    options |= {"seed": seed, "rounds": rounds, "stream_batch_size": batch, "num_workers": 0}
    # What the network's own preprocessing says where the command is used.
    options |= {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}
    module = CorruptionStream(**options)
    module.setup()
    return module


def train(seed: int, folder: Path) -> None:
    """The network and its meta networks, by the command with the demo's configuration."""
    runs = folder / f"runs-{seed}"
    flags = ["--seed_everything", str(seed), "--data.seed", str(seed), "--trainer.default_root_dir", str(runs)]
    run_vision(["fit", "--config", str(DEMO), *flags, "--data.num_workers", "0"])
    best = newest_run(runs / "ecotta" / "demo") / "checkpoints" / "best.ckpt"
    best.replace(folder / f"adapter-{seed}.ckpt")


def follow(run: Run, folder: Path) -> dict[str, Any]:
    """Shows the stream to a method, and measures."""
    start = Start(folder, run.seed)
    method = _named(run.name, start)
    measures = StreamMeasures([run.name], CLASSES)
    # The same images in each round: made once.
    one_round: list[StreamBatch] = list(data(run.seed, run.batch).test_dataloader())
    agreement = None
    for number in range(run.rounds):
        for batch in one_round:
            image = batch["image"]
            if batch["probe"]:
                if number and batch["position"] < 0:
                    continue
                stretches = 6 * number if batch["position"] >= 0 else 0
                shown: StreamBatch = {**batch, "position": batch["position"] + stretches}
                measures.add(run.name, shown, method.predict(image))
                continue
            if agreement is None and "calibrated" in run.name:
                agreement = _agreement(method, start, image)
            logits = method.adapt(image)
            measures.note(run.name, method.last, 0.0)
            measures.add(run.name, {**batch, "round": number}, logits)
    report = measures.report()[run.name]
    clean = report["clean"]
    # A mean over the last round, since a probe has 256 images only.
    report["last_clean"] = sum(error for _, error in clean[-6:]) / len(clean[-6:])
    report["agreement"] = agreement
    return report


def _agreement(method: Method, start: Start, image: torch.Tensor) -> float:
    """The share of predictions that a calibrated network shares with the bare one on batch statistics."""
    assert isinstance(method, EcoTTA)
    method.calibrate(image)
    bare = BatchStatistics(start.network()).predict(image)
    return float((method.predict(image).argmax(dim=1) == bare.argmax(dim=1)).float().mean())


def plan() -> list[Run]:
    """Every run, the long ones first."""
    long = [Run(name, SEEDS[0], LONG) for name in ("ecotta lr 0.1", "tent lr 0.02", "rdumb")]
    at_the_rate = [
        "cotta", "tent lr 0.1", "ecotta lr 0.1", "ecotta lr 0.1 guard", "ecotta lr 0.1 eager",
        "ecotta lr 0.1 calibrated", "tent", "eata", "rdumb", "tent lr 0.3", "tent lr 0.3 guard", "ecotta lr 0.3",
    ]  # fmt: skip
    rates = [f"{name} lr {rate}" for name in ("tent", "ecotta") for rate in RATES if rate not in (0.1, 0.3)]
    runs = [Run(name, seed, ROUNDS) for seed in SEEDS for name in [*at_the_rate, *rates]]
    runs += [Run(name, seed, 1) for seed in SEEDS for name in ("source", "bn", "adaptbn")]
    return long + runs + [Run(name, seed, 1, 1) for seed in SEEDS for name in SINGLE]


def streams(folder: Path) -> Iterator[Row]:
    """A row for each run, as they end."""
    resolve_root("builtin:digit_pairs")  # written once, not by two processes at a time
    for _ in in_processes(partial(train, folder=folder), list(SEEDS)):
        pass
    for run, found in in_processes(partial(follow, folder=folder), plan()):
        metrics = {
            "error": rounded(found["error"]),
            "last_error": rounded(found["error_by_round"][-1]),
            "first_clean_error": rounded(found["clean"][0][1]),
            "clean_error": rounded(found["last_clean"]),
            "kept": rounded(found["kept"]),
            "rollbacks": len(found["events"]),
            "first_rollback_step": found["events"][0]["step"] if found["events"] else None,
            "agreement": found["agreement"],
        }
        print(f"{run}: {metrics}", flush=True)
        row: Row = {"name": f"{run.name}, seed {run.seed}, {run.rounds} rounds, batches of {run.batch}"}
        row |= {"group": "streams", "contender": run.name, "seed": run.seed, "rounds": run.rounds, "batch": run.batch}
        row |= {"metrics": metrics, "error_by_round": [rounded(error) for error in found["error_by_round"]]}
        row["clean_by_round"] = _by_six([error for _, error in found["clean"][1:]])
        row["first_event"] = found["events"][0]["what"] if found["events"] else None
        yield row


def _by_six(errors: Sequence[float]) -> list[float]:
    return [rounded(sum(errors[i : i + 6]) / len(errors[i : i + 6])) for i in range(0, len(errors), 6)]
