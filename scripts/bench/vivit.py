"""Ways of training a video transformer beside each other: what they cost, and what they learn of clips in motion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.builtin import resolve_root
from scripts.bench.decoders import compare_decoders
from scripts.bench.results import Measured, Options, claim, mean_and_error, rounded
from scripts.bench.vivit_costs import FRAMES, frames_at_the_memory_of, real_sizes, steps, streaming
from scripts.bench.vivit_runs import (
    DEMO,
    EPOCHS,
    EQUAL_TIME,
    RATES,
    SEEDS,
    STAGE1,
    VIEWS,
    Chain,
    Run,
    checkpoint,
    results,
)
from scripts.bench.vivit_tables import PARTS, READOUTS, measure_of, pictures, tables
from vision.measure import Comparison, Spread

__all__ = ["measure", "pictures", "tables"]

Row = dict[str, Any]


# --------------------------------------------------------------------------------------------------- the trainings
def _readout_flags(form: str, pool: str, queries: int, grid: int) -> tuple[str, ...]:
    return (
        *("--model.adapter.form", form, "--model.pool", pool),
        *("--model.adapter.queries", str(queries), "--model.adapter.grid", str(grid)),
    )


def _readouts(folder: Path, seed: int) -> list[Chain]:
    """Every readout of the frozen image transformer; those that keep the same of its tokens share a cache."""
    kept: dict[str, list[Run]] = {}
    start = ("--model.start.spatial", checkpoint(folder, "views", seed))
    for name, (form, pool, queries, grid) in READOUTS.items():
        cache = {"token": "tokens", "conv3d": "tokens", "attention": "tokens", "grid": f"grid{grid}"}.get(form)
        cache = cache or f"{'pooled' if form in ('none', 'frame') else form}-{pool}"
        kept.setdefault(cache, []).append(Run(name, DEMO, (*start, *_readout_flags(form, pool, queries, grid))))
    return [Chain(seed, tuple(runs), f"{name}-{seed}") for name, runs in kept.items()]


def _end_to_end(folder: Path, seed: int, rate: str, epochs: int, name: str) -> Chain:
    flags = (
        *("--model.start.spatial", checkpoint(folder, "views", seed), "--model.freeze", "none"),
        *("--data.cache", "null", "--data.cache_draws", "1"),
        *("--model.optimizer.init_args.lr", rate, "--trainer.max_epochs", str(epochs)),
    )
    return Chain(seed, (Run(name, DEMO, flags),), None)


def _parts(folder: Path, seed: int) -> list[Chain]:
    """Spatial part, temporal part and readout, each from where the paper's table mixes them."""
    chains = []
    stage1 = checkpoint(folder, "stage1", seed)
    sources = {"image": checkpoint(folder, "views", seed), "stage1": stage1}
    for spatial, source in sources.items():
        runs = []
        for name, (of, temporal, readout) in PARTS.items():
            if of == spatial and name not in READOUTS:
                flags = (
                    *("--model.start.spatial", source),
                    *("--model.start.temporal", stage1 if temporal == "stage1" else "random"),
                    *("--model.start.readout", stage1 if readout == "stage1" else "new"),
                )
                runs.append(Run(name, DEMO, flags))
        chains.append(Chain(seed, tuple(runs), f"grid4-{seed}" if spatial == "image" else f"stage1-{seed}"))
    return chains


def _trained(folder: Path) -> Iterator[Row]:
    for name in ("motion", "motion_views"):
        resolve_root(f"builtin:{name}")  # written once, not by two processes at a time
    yield from _rows([Chain(seed, (Run("views", VIEWS, ()),), None) for seed in SEEDS], folder)
    tried = [_end_to_end(folder, SEEDS[0], rate, EPOCHS, f"end to end, {rate}") for rate in RATES]
    readouts = [chain for seed in SEEDS for chain in _readouts(folder, seed)]
    found = list(_rows([*tried, *readouts], folder))
    yield from found
    best = best_rate(found)
    others = [_end_to_end(folder, seed, best, EPOCHS, f"end to end, {best}") for seed in SEEDS[1:]]
    for seed in SEEDS:
        start = ("--model.start.spatial", checkpoint(folder, "views", seed), "--model.optimizer.init_args.lr", best)
        others.append(Chain(seed, (Run("stage1", STAGE1, start),), None))
        others.append(_end_to_end(folder, seed, best, EQUAL_TIME, f"end to end, {EQUAL_TIME} epochs"))
    yield from _rows(others, folder)
    yield from _rows([chain for seed in SEEDS for chain in _parts(folder, seed)], folder)


def best_rate(rows: Sequence[Row]) -> str:
    """The learning rate end to end that was best on the first seed's validation clips."""
    return max(RATES, key=lambda rate: measure_of(rows, f"end to end, {rate}", SEEDS[0], "val_top1"))


def _rows(chains: Sequence[Chain], folder: Path) -> Iterator[Row]:
    for run, seed, measured in results(chains, folder):
        metrics = {name: rounded(value) for name, value in measured.items()}
        print(f"{run.name}, seed {seed}: {metrics}", flush=True)
        row = {"name": f"{run.name}, seed {seed}", "group": "trained", "contender": run.name, "seed": seed}
        yield {**row, "metrics": metrics}


# ------------------------------------------------------------------------------------------------------ the claims
def _differences(rows: Sequence[Row], one: str, other: str) -> list[float]:
    return [100 * (measure_of(rows, one, seed, "top1") - measure_of(rows, other, seed, "top1")) for seed in SEEDS]


def _cost_claims(rows: Sequence[Row], timed: Comparison, streamed: Comparison) -> list[Mapping[str, Any]]:
    held = {row["form"]: row["metrics"]["held_bytes"] for row in rows if row["group"] == "steps"}
    frozen, cached, paper = "frozen + grid", "frozen + grid, cached", "arXiv 2306.04822"
    worst = max(
        row["metrics"]["held_bytes"]
        / next(
            of["metrics"]["held_bytes"]
            for of in rows
            if of["group"] == "sizes"
            and (of["size"], of["frames"], of["form"]) == (row["size"], row["frames"], "end to end")
        )
        for row in rows
        if row["group"] == "sizes" and row["form"] == frozen
    )

    sizes = ", ".join(dict.fromkeys(f"ViT-{row['size']}" for row in rows if row["group"] == "sizes"))
    sizes += f" with {' and '.join(map(str, FRAMES))} frames"

    def share(name: str) -> Spread:
        return timed.speedup("end to end", over=name)

    return [
        claim("held", "Held for the backward pass, frozen + adapter over end to end, at most",
              held[frozen] / held["end to end"], at_most=0.1),
        claim("held_real", f"The same at {sizes}, the worst, at most", worst, at_most=0.1),
        claim("step", "Time of a step, frozen + adapter over end to end, at most", share(frozen), at_most=0.5,
              source=paper),
        claim("cached", "Time of a step, from the cache over end to end, at most", share(cached), at_most=0.05),
        claim("stream", "A frame of a stream: time by the ring of features over that by the window anew, at most",
              streamed.speedup("anew", over="ring"), at_most=0.5),
    ]  # fmt: skip


def _learned_claims(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    paper = "arXiv 2306.04822"
    grid = {
        name: [measure_of(rows, "grid", seed, name) for seed in SEEDS]
        for name in ("top1", "reversed", "shuffled_top1", "shuffled_kind")
    }
    looking = [name for name in READOUTS if not name.startswith("cls") or "grid" in name]
    least = min(min(_differences(rows, name, "cls")) for name in looking)
    whole = f"end to end, {best_rate(rows)}"
    short = f"end to end, {EQUAL_TIME} epochs"
    both = "stage1 + stage1 + new"
    longer = min(
        measure_of(rows, short, seed, "fit_seconds") / measure_of(rows, "grid", seed, "fit_seconds") for seed in SEEDS
    )
    return [
        claim("grid", "Frozen + grid adapter: accuracy on the test clips, %, the worst seed, at least",
              100 * min(grid["top1"]), at_least=65.0),
        claim("grid_over_cls", "The same less that of the class token alone (naive freezing), points, the worst seed, "
              "at least", min(_differences(rows, "grid", "cls")), at_least=35.0),
        claim("naive", "Every readout that looks at the patches less naive freezing, points, the worst readout and "
              "seed, at least", least, at_least=0.0, source=paper),
        claim("two_stages", "Frozen + adapter: both parts from stage 1 over one stage, points, the worst seed, at "
              "least", min(_differences(rows, both, "grid")), at_least=0.0, source=paper),
        claim("temporal_start", "The temporal part from stage 1 over a random one, spatial part from stage 1, points, "
              "the worst seed, at least", min(_differences(rows, both, "stage1 + random + new")), at_least=0.0,
              source=paper),
        claim("longer", f"Seconds of {EQUAL_TIME} epochs end to end over those of frozen + adapter with the making of "
              "its cache, the worst seed, at least", longer, at_least=1.0),
        claim("equal_time", "Frozen + adapter + cache less end to end for at least as long, points, at least",
              mean_and_error(_differences(rows, "grid", short)), at_least=0.0),
        claim("equal_epochs", "Frozen + adapter + cache less end to end for as many epochs, points, at least",
              mean_and_error(_differences(rows, "grid", whole)), at_least=0.0),
        claim("reversed", "Played backwards, clips that were right fall into the pair's other class, %, the worst "
              "seed, at least", 100 * min(grid["reversed"]), at_least=80.0),
        claim("shuffled", "Frames shuffled: accuracy, %, the worst seed, at most", 100 * max(grid["shuffled_top1"]),
              at_most=55.0),
        claim("shuffled_kind", "Frames shuffled: the kind of motion, whichever way, %, the worst seed, at least",
              100 * min(grid["shuffled_kind"]), at_least=60.0),
    ]  # fmt: skip


def measure(options: Options) -> Measured:
    """Everything on the page of ViViT; the quick form trains nothing."""
    rows: list[Row] = real_sizes(options.quick)
    budget = next(row["metrics"] for row in rows if row["name"] == "B/16, 32 frames, end to end")
    total = budget["state_bytes"] + budget["held_bytes"] + 32 * 3 * 224 * 224
    for size in dict.fromkeys(row["size"] for row in rows):
        frames = frames_at_the_memory_of(rows, size, total)
        row = {
            "name": f"{size}, frozen + grid, frames at the memory of B/16 end to end",
            "group": "budget",
            "size": size,
        }
        rows.append({**row, "metrics": {"frames": frames, "budget_bytes": total}})
    timed_rows, timed = steps(options)
    print(f"a training step\n{timed}\n", flush=True)
    streamed_rows, streamed = streaming(options)
    print(f"a frame of a stream\n{streamed}\n", flush=True)
    rows += timed_rows + streamed_rows
    claims = _cost_claims(rows, timed, streamed)
    left_out = ["trainings, decoders, and sizes other than B/16"] if options.quick else []
    if not options.quick:
        decoded = compare_decoders(options.folder)
        rows += decoded
        exact = min(row["metrics"]["exact_frames"] for row in decoded)
        claims.append(
            claim("exact", "Frames of 16 that every decoder and way reads exactly, at least", exact, at_least=16)
        )
        trained = sorted(_trained(options.folder), key=lambda row: (str(row["contender"]), int(row["seed"])))
        rows += trained
        claims += _learned_claims(trained)
    device = "one thread" if options.device.type == "cpu" else str(options.device)
    return Measured(
        setting="Real sizes: one clip, 224 pixels, tubelets of 2 frames, fp32, counted on fake tensors. Steps: "
        f"{device}, fp32, vit_tiny_patch16_224 on four clips of eight 96-pixel frames, four temporal layers, AdamW, by "
        "turns in one process. Trainings: the demo's network and clips (2,048 of 8 frames of 64 pixels, 512 for the "
        f"test from areas of the photographs that were not trained on), {EPOCHS} epochs where nothing else is said, "
        f"seeds {', '.join(map(str, SEEDS))} (of the image transformer's training too), two at a time, one thread "
        "each, the epoch that was best on 256 validation clips; end to end with the grid adapter too, by the learning "
        f"rate of {', '.join(RATES)} that was best on seed 0's validation clips. A spread is the mean less and plus "
        "its standard error over the seeds, of differences paired by seed; of times the quartiles.",
        rows=rows,
        claims=claims,
        left_out=left_out,
    )
