"""The page: sections of blocks into HTML, and HTML into a file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from scripts.report import charts, formatting
from scripts.report.blocks import Block, Code, Curves, Figures, Picture, Pictures, Section, Table, Text
from scripts.report.images import embed

HERE = Path(__file__).parent
WIDE_CHART, PHONE_CHART = (520, 350), (340, 260)
SMALLEST_CELL, LARGEST_CELL = 100, 320  # of a grid of pictures: pixels, where there is room
WIDEST_HALF = 1.5  # width over height up to which a picture may share a row with a chart
FEW_PIXELS = 128  # a picture that is no wider is shown with its pixels as squares

View = dict[str, Any]


def _picture(picture: Picture) -> View:
    embedded = embed(picture.image)
    return {
        "kind": "picture",
        "half": embedded.width <= WIDEST_HALF * embedded.height,
        "caption": picture.caption,
        "alt": picture.alt,
        "embedded": embedded,
        "pixels": embedded.width <= FEW_PIXELS,
    }


def _curves(curves: Curves) -> View:
    names_fit = charts.names_fit(curves)
    return {
        "kind": "curves",
        "half": True,
        "caption": curves.caption,
        "wide": charts.line_chart(curves, *WIDE_CHART, names_at_ends=names_fit),
        "phone": charts.line_chart(curves, *PHONE_CHART, names_at_ends=False),
        "legend": charts.legend(curves),
        "names_fit": names_fit,
    }


def _table(table: Table) -> View:
    columns = [formatting.column(cells) for cells in zip(*table.rows, strict=True)]
    columns = columns or [([], False) for _ in table.columns]
    return {
        "kind": "table",
        "half": False,
        "caption": table.caption,
        "columns": [(name, right) for name, (_, right) in zip(table.columns, columns, strict=True)],
        "rows": list(zip(*(texts for texts, _ in columns), strict=True)),
        "note": table.note,
    }


def _figures(figures: Figures) -> list[tuple[str, str, str]]:
    return [(label, formatting.cell(value), note) for label, value, note in figures.figures]


def _view(block: Block) -> View:
    """What the template needs to know of a block."""
    match block:
        case Text():
            return {"kind": "text", "half": False, "paragraph": block.paragraph}
        case Figures():
            return {"kind": "figures", "half": False, "figures": _figures(block)}
        case Table():
            return _table(block)
        case Curves():
            return _curves(block)
        case Picture():
            return _picture(block)
        case Pictures():
            pictures = [_picture(picture) for picture in block.pictures]
            widest = max((picture["embedded"].width for picture in pictures), default=0)
            return {
                "kind": "pictures",
                "half": False,
                "caption": block.caption,
                "pictures": pictures,
                "cell": min(max(widest, SMALLEST_CELL), LARGEST_CELL),
                "large": widest >= LARGEST_CELL,
            }
        case Code():
            return {"kind": "code", "half": False, "caption": block.caption, "text": block.text.strip("\n")}


def _pair(views: list[View]) -> list[list[View]]:
    """Two neighbours that take half the width each share a row."""
    rows: list[list[View]] = []
    for view in views:
        if view["half"] and rows and len(rows[-1]) == 1 and rows[-1][0]["half"]:
            rows[-1].append(view)
        else:
            rows.append([view])
    return rows


def _anchors(sections: Sequence[Section]) -> list[str]:
    """An id for every section: its system's name, so that a link to it can be guessed."""
    anchors: list[str] = []
    for section in sections:
        name = base = re.sub(r"[^a-z0-9]+", "-", section.system.lower()).strip("-")[:40] or "system"
        while name in (*anchors, "systems", "environment"):
            name = f"{base}-{len(anchors) + 1}"
            base = name
        anchors.append(name)
    return anchors


def _section(section: Section, anchor: str) -> View:
    headlines = [figure for block in section.blocks if isinstance(block, Figures) for figure in _figures(block)]
    return {
        "anchor": anchor,
        "system": section.system,
        "title": section.title,
        "summary": section.summary,
        "headline": headlines[0] if headlines else None,
        "rows": _pair([_view(block) for block in section.blocks]),
    }


def write_report(path: Path, title: str, intro: str, sections: Sequence[Section], env: Mapping[str, str]) -> None:
    """Writes the report; a reader of ``path`` sees the former one or all of the new one.

    Args:
        path: the HTML file; its folder is made.
        title: the heading of the page.
        intro: one paragraph that says what the report is.
        sections: one a system, in the order of the page.
        env: versions and machine, as from ``environment()``.
    """
    templates = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    now = datetime.now(UTC)
    page = templates.get_template("page.html").render(
        title=title,
        intro=intro,
        date=f"{now.day} {now:%B %Y, %H:%M} UTC",
        timestamp=now.isoformat(timespec="seconds"),
        sections=[_section(*pair) for pair in zip(sections, _anchors(sections), strict=True)],
        environment=env,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),  # noqa: S704  our own file
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Names of files and folders can hold what UTF-8 cannot.
        beside.write_bytes(page.encode("utf-8", errors="replace"))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
