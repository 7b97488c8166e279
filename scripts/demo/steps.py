"""Commands that are not run again when they have already been run, and what they leave."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
import sys
import time
import traceback
from pathlib import Path

import torch

from scripts.cli import main
from vision import __version__
from vision.errors import InputError


class Steps:
    """The ``vision`` commands of one system's demo.

    What is done stands in ``steps.json`` in the system's folder, so that a demo that was interrupted goes on where it
    was. A step is run again when its command, the configuration or the package's version has changed.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / "steps.json"
        self.commands: list[str] = []
        try:
            self._done: dict[str, dict[str, float]] = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._done = {}

    def run(self, arguments: list[str], produces: Path | None = None) -> float:
        """Runs ``vision ARGUMENTS`` in this process, which has its imports behind it, unless it is done.

        Args:
            arguments: of the command.
            produces: a file that must be there for the step to count as done.

        Returns:
            The seconds that it took when it ran.

        Raises:
            InputError: the command failed.
        """
        shown = shlex.join(["vision", *arguments])
        self.commands.append(shown)
        key = self._key(arguments)
        if key in self._done and (produces is None or produces.exists()):
            print(f"done before: {shown}", flush=True)
            return self._done[key]["seconds"]
        print(f"$ {shown}", flush=True)
        start = time.perf_counter()
        status = _vision(arguments)
        if status:
            raise InputError(f"demo: '{shown}' ended with status {status}")
        seconds = time.perf_counter() - start
        self._done[key] = {"seconds": seconds}
        self.file.write_text(json.dumps(self._done, indent=1), encoding="utf-8")
        return seconds

    @staticmethod
    def _key(arguments: list[str]) -> str:
        content = [__version__, *arguments]
        content += [Path(a).read_text(encoding="utf-8") for a in arguments if a.endswith(".yaml") and Path(a).is_file()]
        return hashlib.sha256("\0".join(content).encode()).hexdigest()[:16]


def _vision(arguments: list[str]) -> int:
    argv, threads = sys.argv[:], torch.get_num_threads()
    try:
        return main(arguments)
    except Exception:  # noqa: BLE001 (the other systems' demos go on)
        traceback.print_exc()
        return 1
    finally:
        sys.argv[:] = argv
        torch.set_num_threads(threads)  # a training shares the cores out anew


def shortened(epochs: int) -> list[str]:
    """Flags of a training of so few epochs that its warm-up is to take half of one."""
    return ["--trainer.max_epochs", str(epochs), "--model.lr_scheduler.init_args.warmup_epochs", "0.5"]


def newest_run(folder: Path) -> Path:
    """The last ``version_N`` of a configuration's runs.

    Raises:
        InputError: there is none.
    """
    runs = sorted(folder.glob("version_*"), key=lambda run: int(run.name.removeprefix("version_")))
    if not runs:
        raise InputError(f"demo: no run in {folder}")
    return runs[-1]


def column(metrics: Path, x: str, y: str) -> list[tuple[float, float]]:
    """The points (x, y) of a run's ``metrics.csv`` where both were logged."""
    with metrics.open(newline="", encoding="utf-8") as stream:
        return [(float(row[x]), float(row[y])) for row in csv.DictReader(stream) if row.get(x) and row.get(y)]


def shown(path: Path) -> Path:
    """A path as a user in the present folder would write it."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path
