"""The systems that are in the house, and the configurations that come with them."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SYSTEMS: dict[str, str] = {
    "ecotta": "EcoTTA: networks that go on learning where they are used, at a fraction of the memory",
    "efficientvit": "EfficientViT M0-M5: small image classifiers of high throughput",
    "medic": "MEDIC: one network for several classification tasks, from tables with missing labels",
    "memspm": 'MemSPM: classes for unlabelled pictures of another kind, and "unknown" for what has none',
    "vivit": "ViViT with a frozen spatial transformer: actions in videos, trained at a fraction of the memory",
}


def config_files(system: str) -> list[tuple[Path, str]]:
    """The configurations of a system, each with the first line of its opening comment."""
    files = sorted((CONFIGS / system).glob("*.yaml"))
    return [(file, file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")) for file in files]


def print_systems() -> None:
    """The table of ``vision list``."""
    for system, what in SYSTEMS.items():
        print(f"{system}: {what}")
        for file, comment in config_files(system):
            try:
                shown = file.relative_to(Path.cwd())
            except ValueError:
                shown = file
            print(f"  {shown!s:<44}{comment}")
