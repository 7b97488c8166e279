"""Measures systems beside what they replace; writes ``DIR/<system>.json``, ``.md`` and pictures."""

from __future__ import annotations

import importlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from scripts.arguments import Parser
from scripts.bench.pages import ROOT, filled, pages
from scripts.bench.results import Measured, Options, claims_table, environment_line
from scripts.devices import usable_device
from scripts.infer.inputs import output_folder
from scripts.systems import SYSTEMS
from vision.errors import InputError, did_you_mean
from vision.measure import environment


def _write_text(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _write(folder: Path, system: str, device: torch.device, measured: Measured) -> str:
    """The result's files, the figures themselves first, so that a fault in what shows them loses nothing."""
    file = folder / (system if device.type == "cpu" else f"{system}-{device.type}")
    result: dict[str, Any] = {"environment": environment(), **asdict(measured)}
    _write_text(file.with_suffix(".json"), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    module = importlib.import_module(f"scripts.bench.{system}")
    tables: dict[str, str] = module.tables(result)
    parts = [f"# {system}", measured.setting, environment_line(result["environment"])]
    if measured.left_out:
        parts.append("Left out: " + "; ".join(measured.left_out) + ".")
    parts += [table for name, table in tables.items() if table and name not in ("claims", "setting")]
    for name, picture in module.pictures(result).items():
        Image.fromarray(picture).save(folder / f"{file.name}{name}.png", optimize=True)
        parts.append(f"![{file.name}]({file.name}{name}.png)")
    parts += ["## Claims", claims_table(measured.claims)]
    text = "\n\n".join(parts) + "\n"
    _write_text(file.with_suffix(".md"), text)
    return text


def main(arguments: list[str]) -> None:
    """Runs ``vision bench``; claims that fall short are printed, and are no error.

    Raises:
        InputError: an unknown system or device, or a folder that cannot be written.
    """
    parser = Parser(prog="vision bench", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="by default all")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="less of it, in minutes; says what it leaves out")
    parser.add_argument("--device", default="cpu", help="cpu (one thread; the default), cuda, cuda:1")
    own = "of a system that compares on your own data (memspm)"
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"{own}: names the data, in the place of built-in")
    parser.add_argument("--domains", nargs="+", default=[], metavar="D", help=f"{own}: each is source and target")
    options = parser.parse_args(arguments)
    for system in options.systems:
        if system not in SYSTEMS:
            raise InputError(
                f"bench: no system '{system}'{did_you_mean(system, SYSTEMS)}; there are {', '.join(SYSTEMS)}"
            )
    own_data = options.config is not None
    if own_data != bool(options.domains) or (own_data and options.systems != ["memspm"]):
        raise InputError(
            "your own data are compared on by: vision bench memspm --config FILE --domains D E ... --out DIR"
        )
    device = usable_device(options.device, ("cpu", "cuda"))
    folder = output_folder(options.out)
    for system in options.systems or SYSTEMS:
        with tempfile.TemporaryDirectory() as scratch:
            asked = Options(Path(scratch), folder / f"{system}.runs", options.quick, device)
            module = importlib.import_module(f"scripts.bench.{system}")
            measured: Measured = (
                module.sweep(asked, options.config, options.domains) if own_data else module.measure(asked)
            )
        try:
            print(f"\n{_write(folder, system, device, measured)}", flush=True)
        except OSError as error:
            raise InputError(f"--out: {folder} cannot be written ({error.strerror})") from error
    # A short result lacks what the pages show.
    if folder.resolve() == ROOT / "benchmarks" and not options.quick:
        for page in pages():
            page.write_text(filled(page), encoding="utf-8")
