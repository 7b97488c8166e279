"""EcoTTA beside other ways of adapting: memory, time, and what becomes of a network on a long stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.bench.ecotta_costs import backbones, memory, steps
from scripts.bench.ecotta_streams import RATES, ROUNDS, SEEDS, streams
from scripts.bench.ecotta_tables import group, of_runs, pictures, tables
from scripts.bench.results import Measured, Options, claim, mean_and_error
from vision.measure import Comparison

__all__ = ["measure", "pictures", "tables"]

Row = Mapping[str, Any]
PAPER = "arXiv 2303.01904"


def _cost_claims(rows: Sequence[Row], timed: Comparison, batch: int) -> list[Mapping[str, Any]]:
    found = {(row["network"], row["method"]): row["metrics"] for row in group(rows, "memory")}
    apart = max(abs(of["paper_mb"] - of["printed_mb"]) for of in found.values() if of["printed_mb"] is not None)

    def saved(network: str) -> float:
        own, other = (found[network, method]["paper_mb"] for method in ("EcoTTA K=4", "CoTTA"))
        return 100 * (1 - float(own) / float(other))

    own = found["WRN-40-2", "EcoTTA K=4"]["held_mb"]
    tent, cotta = (found["WRN-40-2", name] for name in ("TENT", "CoTTA"))
    claims: list[Mapping[str, Any]] = [
        claim("count", "Memory by the paper's count: the largest difference from what the paper prints, MB, at most",
              apart, at_most=2.0, source=PAPER),
        claim("saved_wrn", "WRN-40-2, K=4: less memory than CoTTA by the paper's count, %, at least",
              saved("WRN-40-2"), at_least=80.0, source=PAPER),
        claim("held_tent", "WRN-40-2, K=4, batches of 64: really held, over eager TENT, at most",
              own / tent["held_mb"], at_most=0.25),
        claim("held_cotta", "The same over eager CoTTA with its copies, at most",
              own / (cotta["held_mb"] + cotta["copies_mb"]), at_most=0.25),
        claim("time", f"Time of a step, memsave over eager, batches of {batch}, at most",
              timed.speedup("EcoTTA K=4, eager", over="EcoTTA K=4"), at_most=1.3),
        claim("faster", "The same: memsave at least as fast as eager",
              timed.speedup("EcoTTA K=4, eager", over="EcoTTA K=4"), at_most=1.0),
    ]  # fmt: skip
    if ("ResNet-50, 224 px", "CoTTA") in found:
        claims.insert(2, claim("saved_resnet", "ResNet-50, 224 px, K=4: less memory than CoTTA by the paper's count, "
                               "%, at least", saved("ResNet-50, 224 px"), at_least=86.0, source=PAPER))  # fmt: skip
    return claims


def _stream_claims(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    def values(contender: str, metric: str, rounds: int = ROUNDS, batch: int = 32) -> list[float]:
        return of_runs(rows, contender, metric, rounds, batch)

    def less(one: list[float], other: list[float]) -> list[float]:
        return [b - a for a, b in zip(one, other, strict=True)]

    own, tent = "ecotta lr 0.1", "tent lr 0.1"
    still = values("bn", "error", 1)
    tuned = min(("tent", *(f"tent lr {rate}" for rate in RATES)), key=lambda name: sum(values(name, "error")))
    best = min((f"ecotta lr {rate}" for rate in RATES), key=lambda name: sum(values(name, "error")))
    guarded = [row for row in group(rows, "streams") if row["contender"] == "tent lr 0.3 guard"]
    first = [row["metrics"]["first_rollback_step"] for row in guarded]
    alone = "ecotta lr 0.001 scaled"
    agreed = [
        100 * row["metrics"]["agreement"] for row in group(rows, "streams") if row["metrics"]["agreement"] is not None
    ]
    return [
        claim("holds", "lr .1, last of 12 rounds: EcoTTA's error less than that of batch statistics alone, points, the "
              "worst seed, at least", min(less(values(own, "last_error"), still)), at_least=0.0),
        claim("collapses", "lr .1, last round: TENT's error less EcoTTA's, points, the worst seed, at least",
              min(less(values(own, "last_error"), values(tent, "last_error"))), at_least=5.0),
        claim("keeps", "lr .1: EcoTTA's error on clean images in the last round, %, the worst seed, at most",
              max(values(own, "clean_error")), at_most=5.0),
        claim("forgets", "lr .1: TENT's error on clean images in the last round, %, the best seed, at least",
              min(values(tent, "clean_error")), at_least=10.0),
        claim("tuned", f"Each at its best, by this very error ({tuned}, {best}): TENT's mean error less EcoTTA's, "
              "points, at least",
              mean_and_error(less(values(best, "error"), values(tuned, "error"))), at_least=0.0, source=PAPER),
        claim("constants", "lr .1: error with exact gradients (eager) less that of memsave, points, at least",
              mean_and_error(less(values(own, "error"), values(f"{own} eager", "error"))), at_least=-0.5),
        claim("single", "One image at a time: error without AdaptBN less that with it, points, the worst seed, at "
              "least", min(less(values(f"{alone} adaptbn", "error", 1, 1), values(alone, "error", 1, 1))),
              at_least=15.0),
        claim("noticed", "TENT at lr .3: steps until the guard rolls back (48 a round), the worst seed, at most",
              max(2 * 48 * 6 if step is None else step for step in first), at_most=96),
        claim("guarded", "TENT at lr .3: last error without the guard less that with it, points, the worst seed, at "
              "least", min(less(values("tent lr 0.3 guard", "last_error"), values("tent lr 0.3", "last_error"))),
              at_least=10.0),
        claim("agreement", "Calibrated without source data: predictions shared with the bare network on the first "
              "batch, %, the worst seed, at least", min(agreed), at_least=90.0),
    ]  # fmt: skip


def measure(options: Options) -> Measured:
    """Everything on the page of EcoTTA; the quick form trains nothing."""
    rows: list[Row] = [*memory(options.quick)]
    timed_rows, timed = steps(options)
    print(f"a step\n{timed}\n", flush=True)
    rows += timed_rows
    claims = _cost_claims(rows, timed, timed_rows[0]["batch"])
    rows += backbones(options.quick)
    left_out = ["streams, networks other than WRN-40-2, seven of ten backbones"] if options.quick else []
    if not options.quick:
        found = sorted(streams(options.folder), key=lambda row: (row["contender"], row["seed"], row["rounds"]))
        rows += found
        claims += _stream_claims(found)
    return Measured(setting=_setting(options), rows=rows, claims=claims, left_out=left_out)


def _setting(options: Options) -> str:
    device = "one thread" if options.device.type == "cpu" else str(options.device)
    return (
        "Memory: MB of 1e6 bytes, of one step; the paper's count is that of TinyTL's profiler, and really held "
        "is what PyTorch keeps for backward passes at the most at one time, each storage once, without parameters. "
        "ResNet-50 and WRN-28-10 are measured with one image and multiplied. No prediction is left out, so that each "
        f"step is a whole one. Steps: {device}, fp32, by turns in one process, CoTTA with one view of its teacher "
        "without augmentation. Streams: the demo's network (wrn_16_1, digits in pairs, 100 classes), six corruptions "
        f"at severity 4, 256 images each, batches of 32, {ROUNDS} rounds, seeds {', '.join(map(str, SEEDS))} (of the "
        "network, its training, and the stream), two processes at a time, one thread each; CoTTA with four views (of "
        "its 32) that are not mirrored, RDumb anew after 96 steps (of its 1000). A spread is the mean less and plus "
        "its standard error over the seeds, of differences paired by seed; of times the quartiles."
    )
