"""The house's rules on who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINGS = ("vision", "datamodules", "tasks", "scripts")
MAY_IMPORT = {
    "vision": {"vision"},
    "datamodules": {"datamodules", "vision"},
    "tasks": {"tasks", "vision"},
    "scripts": set(WINGS),
}
FILES = [file for wing in WINGS for file in sorted((ROOT / wing).rglob("*.py"))]
FOREIGN_TO_VISION = ("pytorch_lightning", "lightning", "jsonargparse", "argparse")
SYSTEMS = {"vivit", "efficientvit", "koala", "pixart", "vos", "ecotta", "memspm", "cace", "medic"}


def imported(source: str) -> Iterator[str]:
    """Dotted names of all modules that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide who imports whom"
            assert node.module is not None
            yield node.module
            # "from vision import ecotta" imports a system as "import vision.ecotta" does.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrongs(path: Path, source: str) -> list[str]:
    """What a file at ``path`` (relative to the root) imports against the rules."""
    wing = path.parts[0]
    own_system = path.with_suffix("").parts[-1 if wing != "vision" else 1]
    found = []
    for name in imported(source):
        parts = name.split(".")
        if parts[0] in WINGS and parts[0] not in MAY_IMPORT[wing]:
            found.append(f"{wing} imports {name}")
        # argparse.Namespace is what official checkpoints keep their options in.
        reads_options = name == "argparse" and path.name == "checkpoints.py"
        if wing == "vision" and parts[0] in FOREIGN_TO_VISION and not reads_options:
            found.append(f"vision imports {name}")
        if wing == "vision" and parts[0] == "vision" and len(parts) > 1 and parts[1] in SYSTEMS - {own_system}:
            found.append(f"{path} imports the system {parts[1]}")
        if wing == "datamodules" and len(parts) > 1 and parts[1] in SYSTEMS:
            found.append(f"a data module, shared by systems, imports {name}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_one_way(file):
    assert wrongs(file.relative_to(ROOT), file.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("vision/losses.py", "import pytorch_lightning"),
        ("vision/losses.py", "from tasks import ImageClassifier"),
        ("vision/ecotta/model.py", "from vision.efficientvit import build"),
        ("vision/ecotta/model.py", "from vision import efficientvit"),
        ("vision/classifiers.py", "def f():\n    import vision.efficientvit"),
        ("datamodules/video.py", "from tasks.classification import ImageClassifier"),
        ("tasks/ecotta.py", "import datamodules.image_folder"),
        ("tasks/ecotta.py", "from scripts.cli import main"),
    ],
)
def test_a_breach_is_found(path, source):
    assert wrongs(Path(path), source)
