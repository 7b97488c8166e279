"""Measures systems and writes what came out: ``DIR/<system>.json`` and ``DIR/<system>.md``."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

from scripts.arguments import Parser
from scripts.infer.inputs import output_folder
from scripts.report import environment
from scripts.systems import SYSTEMS
from vision.errors import InputError, did_you_mean


def _table(result: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for row in result["rows"] for name in row["metrics"]))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in result["rows"]:
        cells = (row["metrics"].get(name) for name in names)
        lines.append(f"| {row['name']} | " + " | ".join("" if c is None else f"{c:.4g}" for c in cells) + " |")
    lines += ["", "| claim | target | measured | holds |", "|---|---|---|---|"]
    for claim in result["claims"]:
        holds = "yes" if claim["holds"] else "no"
        lines.append(f"| {claim['claim']} | {claim['target']:.4g} | {claim['measured']:.4g} | {holds} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Runs ``vision bench``; claims that fall short are printed, and are no error.

    Raises:
        InputError: an unknown system, or a folder that cannot be written.
    """
    parser = Parser(prog="vision bench", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="by default all")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    options = parser.parse_args(arguments)
    for system in options.systems:
        if system not in SYSTEMS:
            raise InputError(
                f"bench: no system '{system}'{did_you_mean(system, SYSTEMS)}; there are {', '.join(SYSTEMS)}"
            )
    folder = output_folder(options.out)
    for system in options.systems or SYSTEMS:
        with tempfile.TemporaryDirectory() as runs:
            measured = importlib.import_module(f"scripts.bench.{system}").measure(Path(runs))
        result = {"environment": environment(), **measured}
        table = _table(result)
        for suffix, text in (("json", json.dumps(result, indent=1) + "\n"), ("md", f"# {system}\n\n{table}")):
            (folder / f"{system}.{suffix}").write_text(text, encoding="utf-8")
        print(f"\n{table}")
