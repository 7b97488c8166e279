"""Runs the demos of the systems and writes ``report.html`` and ``results.json``."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

from scripts.arguments import Parser, leave_with
from scripts.report import Section, Text, write_report
from scripts.systems import SYSTEMS
from vision.errors import InputError, did_you_mean
from vision.measure import environment

INTRO = (
    "Computer vision under a budget of memory, compute and time. This page was made by 'make demo': every system below "
    "was run on this machine, on real data that comes with the package, by the commands that a user would type."
)
QUICK = (
    "This was a quick demo ('--quick'): every command ran, but trainings were cut short, in all to about a quarter, "
    "so that the figures are those of half-trained networks and say little about a system."
)


def main() -> int:
    """The demo's exit status: 0, or 1 where a system's demo failed (the others are still run and reported)."""
    parser = Parser(prog="python -m scripts.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="about a quarter of the training, in DIR/quick: every command runs and the report is whole, but its "
        "figures are those of half-trained networks",
    )
    parser.add_argument("--skip", nargs="*", default=[], metavar="SYSTEM", help="systems to leave out")
    options = parser.parse_args()
    for name in options.skip:
        if name not in SYSTEMS:
            raise InputError(f"--skip: no system '{name}'{did_you_mean(name, SYSTEMS)}; there are {', '.join(SYSTEMS)}")
    # In a folder of its own: a full demo and a quick one would take each other's runs for theirs.
    folder = options.out / "quick" if options.quick else options.out
    chosen = [system for system in SYSTEMS if system not in options.skip]
    sections: list[Section] = []
    results: dict[str, object] = {}
    failed = []
    for number, system in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {system}: {SYSTEMS[system]}", flush=True)
        start = time.perf_counter()
        try:
            section, results[system] = importlib.import_module(f"scripts.demo.{system}").run(folder, options.quick)
        except InputError as error:
            failed.append(system)
            print(f"vision: error: {error}", file=sys.stderr)
            section = Section(system, system, "This demo failed.", [Text(str(error))])
        sections.append(section)
        print(f"    {time.perf_counter() - start:.0f} s", flush=True)
    env = environment()
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.html"
    title, intro = "Frugal Vision: demo", INTRO
    if options.quick:
        title, intro = "Frugal Vision: quick demo", f"{QUICK} {INTRO}"
    write_report(report, title, intro, sections, env)
    _write_json(folder / "results.json", {"environment": env, "quick": options.quick, "systems": results})
    print(f"\nOpen {report} (figures: {folder / 'results.json'})")
    return 1 if failed else 0


def _write_json(file: Path, content: object) -> None:
    temporary = file.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    temporary.replace(file)


if __name__ == "__main__":
    leave_with(main)
