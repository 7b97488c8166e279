"""Configurations that begin with another configuration's checkpoint: which run that is, and how it is trained."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

FINISHED = "finished.json"  # in the folder of a training that came to its end: what it was asked for
# What a second stage is told and its first one is to be told too.
_SHARED = ("seed_everything", *(f"trainer.{name}" for name in ("accelerator", "devices", "precision", "strategy")))
# What does not change what is trained.
_ASIDE = ("--trainer.default_root_dir", "--trainer.accelerator", "--trainer.devices")


def run_name(config: Path) -> str:
    """What the runs of a configuration are called: its folder and its name."""
    return "/".join(config.resolve().with_suffix("").parts[-2:])


def note_finished(folder: Path, asked: dict[str, Any]) -> None:
    """Notes in a run's folder that the training ended, and what it was asked for at its beginning."""
    (folder / FINISHED).write_text(json.dumps(asked), encoding="utf-8")


def asked_for(arguments: list[str]) -> dict[str, Any]:
    """The configurations of a command by their content now, and its flags in their order."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    asked: dict[str, Any] = {"configurations": [], "flags": []}
    flags = iter(words[1:])
    for flag in flags:
        value = next(flags, "") if flag.startswith("--") else ""
        if flag in ("--config", "-c"):
            asked["configurations"].append([str(Path(value).resolve()), _content_hash(Path(value))])
        elif flag not in _ASIDE:
            asked["flags"].append([flag, value])
    return asked


def _content_hash(file: Path) -> str | None:
    """None for what is no file: a configuration may be written out on the command line."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def newest_best(folder: Path) -> Path | None:
    """``best.ckpt`` of the newest of a configuration's runs that came to its end, if there is one."""
    notes = folder.glob(f"version_*/{FINISHED}")
    found = [best for note in notes if (best := note.parent / "checkpoints" / "best.ckpt").is_file()]
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


class Stage:
    """A configuration whose checkpoint another one begins with.

    Args:
        first: the configuration.
        second: the one that names it.
        config: what the second one and its flags come to. Where both configurations have the same ``data.root``, and
            the flags changed it, the first one is told so; the seed and the devices are passed on too.
    """

    def __init__(self, first: Path, second: Path, config: Namespace) -> None:
        self.first, self.run_name = first, run_name(first)
        self.flags: list[str] = []
        own, other = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in (first, second))
        root = config.get("data.init_args.root")
        if _root(own) == _root(other) != root:
            self.flags += ["--data.root", str(root)]
        for name in _SHARED:
            if (value := config.get(name)) is not None and _at(other, name) != value and value != _default(name):
                self.flags += [f"--{name}", str(value)]

    @property
    def _command(self) -> list[str]:
        return ["fit", "--config", str(self.first), *self.flags]

    def best(self, runs: Path) -> Path | None:
        """``best.ckpt`` of the newest run below ``runs`` that was asked for the same and came to its end."""
        found = []
        for note in (runs / self.run_name).glob(f"version_*/{FINISHED}"):
            best = note.parent / "checkpoints" / "best.ckpt"
            if best.is_file() and json.loads(note.read_text(encoding="utf-8")) == asked_for(self._command):
                found.append(best)
        return max(found, key=lambda file: file.stat().st_mtime, default=None)

    def train(self, runs: Path) -> Path | None:
        """Trains it in a process of its own; its best checkpoint, None where that failed."""
        command = [sys.executable, "-P", "-m", "scripts.cli", *self._command, "--trainer.default_root_dir", str(runs)]
        ended = subprocess.run(command, check=False)  # noqa: S603 (our own command)
        return None if ended.returncode else self.best(runs)


def _root(content: Any) -> Any:
    return _at(content, "data.init_args.root")


def _at(content: Any, name: str) -> Any:
    for part in name.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _default(name: str) -> Any:
    return {"seed_everything": 0}.get(name, "auto")
