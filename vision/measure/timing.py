"""Latency of several contenders, compared in one process by turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from vision.errors import InputError, did_you_mean
from vision.measure.environment import environment

_MOST_CALLS = 10_000  # in one turn, for contenders that take next to no time


class Spread(NamedTuple):
    """A median with its lower and upper quartile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """From at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Comparison:
    """Times of the contenders of :func:`compare`.

    Attributes:
        milliseconds: for each contender, one call's time in each round.
        threads: of PyTorch. A contender with threads of its own (ONNX Runtime) sets them itself.
        device: that was waited for.
        environment: machine and versions.
    """

    milliseconds: Mapping[str, list[float]]
    threads: int
    device: str
    environment: Mapping[str, str]

    def latency(self, name: str) -> Spread:
        """Milliseconds of a call over the rounds."""
        return Spread.of(self._of(name))

    def speedup(self, name: str, over: str) -> Spread:
        """How many times as fast ``name`` is as ``over``: the ratio of their times in each round.

        What slows the whole machine down for a while is in both and cancels.
        """
        return Spread.of([slow / fast for fast, slow in zip(self._of(name), self._of(over), strict=True)])

    def throughput(self, name: str, items: int) -> float:
        """Items a second at the median latency, where a call works on ``items``."""
        return 1e3 * items / self.latency(name).median

    def _of(self, name: str) -> list[float]:
        if name not in self.milliseconds:
            raise InputError(
                f"compare: no contender '{name}'{did_you_mean(name, self.milliseconds)}; "
                f"there are {', '.join(self.milliseconds)}"
            )
        return self.milliseconds[name]

    def __str__(self) -> str:
        """A table: latencies, and speed relative to the first contender."""
        names = list(self.milliseconds)
        width = max(len(name) for name in names)
        lines = [f"{'':<{width}}   ms (quartiles)              speed over {names[0]}"]
        for name in names:
            ms, ratio = self.latency(name), self.speedup(name, names[0])
            times = f"{ms.median:9.3f} ({ms.low:.3f}-{ms.high:.3f})"
            lines.append(f"{name:<{width}} {times:<30}{ratio.median:6.2f} ({ratio.low:.2f}-{ratio.high:.2f})")
        rounds = len(self.milliseconds[names[0]])
        lines.append(f"{rounds} rounds by turns, {self.threads} thread(s), {self.device}")
        return "\n".join(lines)


def compare(
    contenders: Mapping[str, Callable[..., Any]],
    *inputs: Any,
    rounds: int = 11,
    seconds: float = 0.1,
    threads: int = 1,
    device: str | torch.device = "cpu",
    warm_up: float = 0.5,
) -> Comparison:
    """Times callables side by side: A, B, C, A, B, C, ... without gradients.

    Each contender is first called for ``warm_up`` seconds (at least three times; compilers and caches do their work
    there), then has a turn of about ``seconds`` in every round. Contenders that need gradients enable them
    themselves (``torch.enable_grad``). PyTorch's number of threads is set for the time of the comparison.

    Args:
        contenders: by name; modules should be in evaluation mode and on ``device``.
        inputs: what each of them is called with.
        rounds: turns of every contender.
        seconds: length of a turn; it has at least one call.
        threads: PyTorch's threads within an operation.
        device: waited for at the start and end of a turn.
        warm_up: seconds of calls before anything is timed.

    Raises:
        InputError: no contender, or a number that is out of range.
    """
    if not contenders:
        raise InputError("compare: no contenders were given")
    for name, value in (("rounds", rounds), ("threads", threads)):
        if value < 1:
            raise InputError(f"compare: {name} must be at least 1, got {value}")
    for name, duration in (("seconds", seconds), ("warm_up", warm_up)):
        if not duration >= 0:
            raise InputError(f"compare: {name} must not be negative, got {duration}")
    device = torch.device(device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def turn(contender: Callable[..., Any], calls: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            contender(*inputs)
        wait()
        return (time.perf_counter() - start) / calls

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            calls = {}
            for name, contender in contenders.items():
                end = time.perf_counter() + warm_up
                turn(contender, 2)
                once = turn(contender, 1)
                while time.perf_counter() < end:
                    once = min(once, turn(contender, 1))
                calls[name] = min(_MOST_CALLS, max(1, round(seconds / max(once, 1e-9))))
            times: dict[str, list[float]] = {name: [] for name in contenders}
            for _ in range(rounds):
                for name, contender in contenders.items():
                    times[name].append(1e3 * turn(contender, calls[name]))
    finally:
        torch.set_num_threads(before)
    return Comparison(times, threads, str(device), environment())
