"""Trainings that a benchmark runs by the command's own verbs, two at a time."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_vision(arguments: list[str]) -> None:
    """Runs a command in this process, silently.

    Raises:
        RuntimeError: it failed; what it said.
    """
    from scripts.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(arguments)
    if status:
        raise RuntimeError(said.getvalue())


def _start() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # so that the command leaves the threads as they are
    torch.set_num_threads(1)


def in_processes(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[tuple[Job, Result]]:
    """Every job with its result, as they end; the first ones begin first."""
    # Spawned: forked processes would inherit the threads' locks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), context, initializer=_start) as pool:
        waiting = {pool.submit(work, job): job for job in jobs}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
