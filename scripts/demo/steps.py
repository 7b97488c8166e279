"""Commands that are not run again when they have already been run."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

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
        """Runs ``vision ARGUMENTS`` unless it is done.

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
        status = subprocess.run([sys.executable, "-m", "scripts.cli", *arguments], check=False).returncode  # noqa: S603
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
