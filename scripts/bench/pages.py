"""Figures in the README and in ``docs/``: written from the JSON files under ``benchmarks/``, never by hand.

A page has blocks, each between ``<!-- bench SYSTEM NAME -->`` and ``<!-- end -->``; NAME is one of the tables of
``scripts/bench/SYSTEM.py``. ``python -m scripts.bench.pages`` fills them, with ``--check`` it says where they differ.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

from scripts.arguments import Parser, leave_with
from scripts.systems import SYSTEMS
from vision.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
_BLOCK = re.compile(r"(<!-- bench (\w+) (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def _tables(system: str, folder: Path) -> dict[str, str]:
    file = folder / f"{system}.json"
    try:
        tables: dict[str, str] = importlib.import_module(f"scripts.bench.{system}").tables(
            json.loads(file.read_text(encoding="utf-8"))
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{file}: not a readable result of 'vision bench' ({error!r})") from error
    return tables


def filled(page: Path, root: Path = ROOT) -> str:
    """The text of a page with its blocks as the results have them.

    Raises:
        InputError: a block names a system or table that there is none of, or a result is missing.
    """

    def fill(block: re.Match[str]) -> str:
        start, system, name, _, end = block.groups()
        if system not in SYSTEMS:
            raise InputError(f"{page}: a block for '{system}', which is no system")
        tables = _tables(system, root / "benchmarks")
        if name not in tables:
            raise InputError(f"{page}: a block for the table '{name}' of {system}; there are {', '.join(tables)}")
        return f"{start}\n{tables[name].strip()}\n\n{end}"

    return _BLOCK.sub(fill, page.read_text(encoding="utf-8"))


def pages(root: Path = ROOT) -> list[Path]:
    """The pages that may have blocks."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main() -> int:
    """Fills the blocks, or with ``--check`` tells which pages differ: exit status 1 where one does."""
    parser = Parser(prog="python -m scripts.bench.pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page differs")
    options = parser.parse_args()
    status = 0
    for page in pages():
        text = filled(page)
        if text == page.read_text(encoding="utf-8"):
            continue
        if options.check:
            print(f"{page.relative_to(ROOT)}: its figures are not those of benchmarks/; run: make figures")
            status = 1
        else:
            page.write_text(text, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    leave_with(main)
