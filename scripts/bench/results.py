"""What a benchmark leaves: options in, rows and claims out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vision.measure import Spread


@dataclass(frozen=True)
class Options:
    """What a system's benchmark is asked for.

    Attributes:
        folder: an empty one, for what is only needed while measuring.
        kept: where what is finished may be kept, for a benchmark that was interrupted to go on; need not exist.
        quick: the short form.
        device: that networks run on.
    """

    folder: Path
    kept: Path
    quick: bool
    device: torch.device


@dataclass(frozen=True)
class Measured:
    """What a system's benchmark found.

    Attributes:
        setting: how it was measured, in a sentence or two.
        rows: one a contender: ``name``, ``metrics`` (with the unit in each metric's name), and whatever else tables
            need to find it.
        claims: as :func:`claim` makes them.
        left_out: what the quick form or the device did not allow.
    """

    setting: str
    rows: Sequence[Mapping[str, Any]]
    claims: Sequence[Mapping[str, Any]]
    left_out: Sequence[str] = ()


def rounded(value: float, digits: int = 4) -> float:
    """To so many significant digits: what lies beyond is noise, and changes in every file that is committed."""
    return (
        value
        if value == 0 or not math.isfinite(value)
        else round(value, digits - 1 - math.floor(math.log10(abs(value))))
    )


def mean_and_error(values: Sequence[float]) -> Spread:
    """The mean, and the mean less and plus its standard error."""
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Spread(mean, mean - error, mean + error)


def mean_text(spread: Spread, signed: bool = False) -> str:
    """A mean with its standard error, as :func:`mean_and_error` gives it."""
    return f"{spread.median:{'+' if signed else ''}.1f} ± {spread.high - spread.median:.1f}"


def claim(
    name: str,
    text: str,
    measured: float | Spread,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    source: str = "ours",
) -> dict[str, Any]:
    """A claim and whether it holds; exactly one of ``at_least`` and ``at_most`` is given.

    Args:
        name: the claim's id.
        text: what is claimed, in words that include the direction and the unit.
        measured: a number, or a median with its quartiles.
        at_least: the least value for which the claim holds.
        at_most: the greatest one.
        source: the paper that claims it, or ``ours``.
    """
    value, spread = (measured, None) if isinstance(measured, float | int) else (measured.median, measured[1:])
    target = at_most if at_least is None else at_least
    if target is None or (at_least is not None and at_most is not None):
        raise ValueError("a claim takes one of at_least and at_most")
    return {
        "id": name,
        "claim": text,
        "source": source,
        "target": target,
        "measured": rounded(value),
        "spread": spread and [rounded(end) for end in spread],
        "holds": bool(value <= target if at_least is None else value >= target),
    }


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table whose first column is text and whose other columns are figures."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """The claims, those that fall short in bold."""
    rows = []
    for entry in claims:
        spread = entry["spread"]
        measured = f"{entry['measured']:g}" + (f" ({spread[0]:g}-{spread[1]:g})" if spread else "")
        holds = "yes" if entry["holds"] else "**no**"
        rows.append([entry["claim"], entry["source"], f"{entry['target']:g}", measured, holds])
    return markdown(["claim", "source", "target", "measured (spread)", "holds"], rows)


def environment_line(environment: Mapping[str, str]) -> str:
    """Machine and versions in one sentence."""
    machine = (
        f"{environment['processor']}, {environment['cores']} cores, {environment['memory']}, {environment['system']}"
    )
    gpu = f", {environment['GPU']}" if "GPU" in environment else ""
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "timm", "onnxruntime", "python"))
    return f"{machine}{gpu}; {versions}"


def setting_line(result: Mapping[str, Any]) -> str:
    """Machine, versions, how a result was measured and what it leaves out."""
    left_out = f" Left out: {'; '.join(result['left_out'])}." if result["left_out"] else ""
    setting = result["setting"]
    return f"{environment_line(result['environment'])}. {setting[:1].upper()}{setting[1:]}{left_out}"
