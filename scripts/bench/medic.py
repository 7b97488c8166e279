"""One network for four tasks beside four networks, the weightings beside each other, and what missing labels cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.builtin.scenes import TASKS as SCENES
from scripts.bench.medic_runs import EPOCHS, LONG, SEEDS, Run, length, partial_tables, results
from scripts.bench.medic_tables import pictures, score, tables
from scripts.bench.results import Measured, Options, claim, mean_and_error, rounded
from vision.labels import LabelSchema, count_labels
from vision.measure import Comparison, compare, count_macs, count_parameters, saved_activations
from vision.medic.checkpoint import OFFICIAL_TASKS
from vision.medic.losses import MaskedLosses, means
from vision.medic.model import MultitaskNetwork

__all__ = ["measure", "pictures", "tables"]

MOST = 0.3  # of four networks' cost
MOST_POINTS = 1.0  # of weighted F1 that one network may lose on any task
DEMO = "timm:test_resnet"
# Networks, the tasks they answer, and the size of their images.
NETWORKS: dict[str, tuple[Mapping[str, Any], int]] = {
    DEMO: (SCENES, 64),
    "resnet18": (OFFICIAL_TASKS, 224),
    "efficientvit_m5": (OFFICIAL_TASKS, 224),
    "mobilenetv4_conv_small": (OFFICIAL_TASKS, 224),
}
QUICK = (DEMO, "mobilenetv4_conv_small")
_NAMED = ("DWA", "RLW", "FAMO", "GradNorm", "PCGrad", "CAGrad")
RULES = {"Equal": "EqualWeights", "Uncertainty": "UncertaintyWeights", **{name: name for name in _NAMED}}


def _networks(backbone: str, schema: LabelSchema, size: int) -> tuple[MultitaskNetwork, list[MultitaskNetwork]]:
    """One for all tasks, and one for each."""
    together = MultitaskNetwork(backbone, schema, (size, size))
    return together, [MultitaskNetwork(backbone, schema.subset([name]), (size, size)) for name in schema.names]


# ------------------------------------------------------------------------------------------------------ the costs
def _counted(backbone: str) -> list[dict[str, Any]]:
    tasks, size = NETWORKS[backbone]
    schema = LabelSchema.parse(tasks)
    together, apart = _networks(backbone, schema, size)
    pair = torch.randn(2, 3, size, size)
    rows = []
    for form, networks in (("one", [together]), ("four", apart)):
        metrics = {
            "parameters": sum(count_parameters(network).total for network in networks),
            "macs": sum(count_macs(network, pair[:1]) for network in networks),
            "saved_activations_mib_per_image": rounded(
                sum(saved_activations(network, pair) for network in networks) / 2 / 2**20
            ),
        }
        name = f"{backbone}, {form}"
        rows.append({"name": name, "group": "counts", "network": backbone, "form": form, "metrics": metrics})
    return rows


def _step(networks: Sequence[MultitaskNetwork], images: Tensor) -> Callable[[], None]:
    """One optimizer step of every network on the same batch, 30 % of the labels missing."""
    generator = torch.Generator().manual_seed(0)
    trained: list[tuple[MultitaskNetwork, MaskedLosses, Tensor, torch.optim.Optimizer]] = []
    for network in networks:
        network.train()
        columns = [torch.randint(len(of), (len(images),), generator=generator) for of in network.schema.tasks.values()]
        labels = torch.stack(columns, dim=1)
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = -1
        optimizer = torch.optim.AdamW(network.parameters())
        trained.append((network, MaskedLosses(network.schema), labels.to(images.device), optimizer))

    def run() -> None:
        with torch.enable_grad():
            for network, losses, labels, optimizer in trained:
                optimizer.zero_grad()
                total = means(losses(network(images), labels), count_labels(labels)).sum()
                torch.autograd.backward(total)
                optimizer.step()

    return run


def _timed(backbone: str, options: Options) -> tuple[list[dict[str, Any]], dict[str, Comparison]]:
    """The answers for one image, and a training step, by one network and by four."""
    tasks, size = NETWORKS[backbone]
    together, apart = _networks(backbone, LabelSchema.parse(tasks), size)
    place = options.device
    for network in (together, *apart):
        network.to(place).eval()
    image = torch.randn(1, 3, size, size, device=place)
    batch = torch.randn(8, 3, size, size, device=place)

    def all_of(networks: Sequence[nn.Module]) -> Callable[[], None]:
        def run() -> None:
            for network in networks:
                network(image)

        return run

    rounds, seconds = (5, 0.05) if options.quick else (11, 0.2)
    found = {
        "latency": compare(
            {"four": all_of(apart), "one": all_of([together])}, rounds=rounds, seconds=seconds, device=place
        ),
        "step": compare(
            {"four": _step(apart, batch), "one": _step([together], batch)}, rounds=rounds, seconds=seconds, device=place
        ),
    }
    rows = []
    for what, comparison in found.items():
        print(f"{backbone}, {what}\n{comparison}\n", flush=True)
        for form in ("one", "four"):
            ms, ratio = comparison.latency(form), comparison.speedup("four", over=form)
            metrics = {"ms": rounded(ms.median), "ms_low": rounded(ms.low), "ms_high": rounded(ms.high)}
            metrics |= {"of_four": rounded(ratio.median)}
            row = {"name": f"{backbone}, {form}, {what}", "group": "times", "network": backbone, "form": form}
            rows.append({**row, "what": what, "metrics": metrics})
    return rows, found


def _cost_claims(counts: Sequence[Mapping[str, Any]], times: Mapping[str, Mapping[str, Comparison]]) -> list[Any]:
    claims = []
    of = {(row["network"], row["form"]): row["metrics"] for row in counts}
    for key, what in (("parameters", "parameters"), ("macs", "multiply-accumulates")):
        worst = max(of[name, "one"][key] / of[name, "four"][key] for name, _ in of)
        claims.append(
            claim(key, f"One network over four, {what}, the worst of the networks, at most", worst, at_most=MOST)
        )
    for key, what in (("latency", "time to answer for one image"), ("step", "time of a training step")):
        for name, comparisons in times.items():
            ratio = comparisons[key].speedup("four", over="one")
            claims.append(
                claim(f"{key}_{name}", f"{name}: one network over four, {what}, at most", ratio, at_most=MOST)
            )
    return claims


# --------------------------------------------------------------------------------------------------- the trainings
def _runs(options: Options) -> list[Run]:
    runs = []
    for seed in SEEDS:
        runs.append(Run("together", seed, length(LONG)))
        runs += [Run(f"only_{task}", seed, (*length(LONG), "--model.tasks", f"[{task}]")) for task in SCENES]
        runs += [Run(name, seed, (*length(EPOCHS), "--model.weighting", rule)) for name, rule in RULES.items()]
        for name, (table, rows) in partial_tables(options.folder, seed).items():
            runs.append(Run(name, seed, (*length(EPOCHS, rows), "--data.train", str(table))))
    return runs


def _trained(options: Options) -> list[dict[str, Any]]:
    runs, rows = _runs(options), []
    for number, (run, found) in enumerate(results(runs, options.folder), start=1):
        metrics: dict[str, Any] = {}
        for task, of in found.items():
            for key in ("f1_weighted", "f1_macro", "accuracy", "mean_absolute_error"):
                if key in of:
                    metrics[f"{task}_{key}"] = rounded(of[key])
            metrics[f"{task}_majority_f1_weighted"] = rounded(of["majority"]["f1_weighted"])
        print(f"[{number}/{len(runs)}] {run.name}, seed {run.seed}: {metrics}", flush=True)
        row = {"name": f"{run.name}, seed {run.seed}", "group": "trained", "contender": run.name, "seed": run.seed}
        rows.append({**row, "metrics": metrics})
    return sorted(rows, key=lambda row: (str(row["contender"]), int(row["seed"])))


def _accuracy_claims(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    claims = []
    for task in SCENES:
        gains = [
            100 * (score(rows, "together", seed, [task]) - score(rows, f"only_{task}", seed, [task])) for seed in SEEDS
        ]
        text = f"{task}: weighted F1 of one network less that of its own, points, at least"
        claims.append(claim(f"f1_{task}", text, mean_and_error(gains), at_least=-MOST_POINTS))
    over = [
        min(row["metrics"][f"{task}_f1_weighted"] - row["metrics"][f"{task}_majority_f1_weighted"] for task in SCENES)
        for row in rows
        if row["contender"] == "together"
    ]
    text = "Weighted F1 over that of the most frequent class, points, the worst task and seed, at least"
    claims.append(claim("majority", text, 100 * min(over), at_least=0.0))
    gains = [100 * (score(rows, "hidden", seed) - score(rows, "dropped", seed)) for seed in SEEDS]
    text = "Half of the labels hidden: training on what is left, over dropping rows with a gap, points of F1, at least"
    claims.append(claim("partial_labels", text, mean_and_error(gains), at_least=0.0))
    return claims


def measure(options: Options) -> Measured:
    """Everything on the page of MEDIC; the quick form trains nothing."""
    names = QUICK if options.quick else tuple(NETWORKS)
    counts = [row for name in names for row in _counted(name)]
    rows, times = list(counts), {}
    for name in names:
        timed, times[name] = _timed(name, options)
        rows += timed
    claims = _cost_claims(counts, times)
    left_out = ["trainings, and networks other than two"] if options.quick else []
    if not options.quick:
        trained = _trained(options)
        rows += trained
        claims += _accuracy_claims(trained)
    device = "one thread" if options.device.type == "cpu" else str(options.device)
    return Measured(
        setting=f"Costs: {device}, fp32, random weights, one network and four by turns in one process; a step is one "
        "of AdamW on 8 images, 30 % of their labels missing. Trainings: the demo's network and pictures (30 % of the "
        f"labels missing), {EPOCHS} epochs of 75 steps ({LONG} where one network is compared with four), seeds "
        f"{', '.join(map(str, SEEDS))}, two at a time, one thread each; tested on 800 pictures with the weights that "
        "were best on the development ones. A spread is the mean less and plus its standard error over the seeds, of "
        "differences paired by seed; of times the quartiles.",
        rows=rows,
        claims=claims,
        left_out=left_out,
    )
