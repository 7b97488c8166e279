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
from scripts.infer.inputs import output_folder
from scripts.systems import SYSTEMS
from vision.errors import InputError, did_you_mean
from vision.measure import environment


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device: '{name}' cannot be used here ({str(error).splitlines()[0]})") from error
    return device


def _write(folder: Path, system: str, device: torch.device, measured: Measured) -> str:
    file = folder / (system if device.type == "cpu" else f"{system}-{device.type}")
    result: dict[str, Any] = {"environment": environment(), **asdict(measured)}
    result["pictures"] = sorted(f"{name}.png" for name in measured.pictures)
    tables: dict[str, str] = importlib.import_module(f"scripts.bench.{system}").tables(result)
    for name, picture in measured.pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png", optimize=True)
    file.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    parts = [f"# {system}", f"{measured.setting}", environment_line(result["environment"])]
    if measured.left_out:
        parts.append("Left out: " + "; ".join(measured.left_out) + ".")
    parts += [table for name, table in tables.items() if table and name != "claims"]
    parts += [f"![{name}]({name})" for name in result["pictures"]]
    parts += ["## Claims", claims_table(measured.claims)]
    text = "\n\n".join(parts) + "\n"
    file.with_suffix(".md").write_text(text, encoding="utf-8")
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
    options = parser.parse_args(arguments)
    for system in options.systems:
        if system not in SYSTEMS:
            raise InputError(
                f"bench: no system '{system}'{did_you_mean(system, SYSTEMS)}; there are {', '.join(SYSTEMS)}"
            )
    device = _device(options.device)
    folder = output_folder(options.out)
    for system in options.systems or SYSTEMS:
        with tempfile.TemporaryDirectory() as scratch:
            asked = Options(Path(scratch), options.quick, device)
            measured: Measured = importlib.import_module(f"scripts.bench.{system}").measure(asked)
        try:
            print(f"\n{_write(folder, system, device, measured)}", flush=True)
        except OSError as error:
            raise InputError(f"--out: {folder} cannot be written ({error.strerror})") from error
    if folder.resolve() == ROOT / "benchmarks":
        for page in pages():
            page.write_text(filled(page), encoding="utf-8")
