"""A page as a browser shows it: its DOM, and pictures of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from html import escape
from pathlib import Path

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
NARROWEST_WINDOW = 500  # Chromium makes none that is narrower, so a phone's width is that of a frame
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
_FRAME = """<!DOCTYPE html><style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<iframe width="{width}" height="{height}" srcdoc="{page}"></iframe>
<script>
  const frame = document.querySelector("iframe");
  frame.addEventListener("load", () => {{ {when_loaded} }});
</script>"""
_SHOW_FRAMED_DOM = "document.documentElement.replaceWith(document.adoptNode(frame.contentDocument.documentElement));"


def _browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"none of {', '.join(NAMES)} is on this machine"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _open(page: str, *flags: str) -> str:
    """Opens the page in a new browser, and returns what it writes; an error on its console is a failure."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder, "page.html")
        file.write_text(page, encoding="utf-8")
        command = [_browser(), *FLAGS, f"--user-data-dir={folder}/profile", *flags, file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert done.returncode == 0, done.stderr[-2000:]
    assert not console, "\n".join(console)
    return done.stdout


def _framed(page: str, width: int, height: int, when_loaded: str = "") -> str:
    return _FRAME.format(width=width, height=height, page=escape(page), when_loaded=when_loaded)


def render(html_path: Path, width: int = 1200, script: str | None = None) -> str:
    """The DOM of the page once it is loaded, as HTML.

    Args:
        html_path: the page; it is not changed.
        width: of the viewport in pixels.
        script: runs in a copy of the page after everything is loaded, and may write what it finds into the DOM.
    """
    page = html_path.read_text(encoding="utf-8")
    if script is not None:
        # The page's own policy would keep the script from running.
        page = _POLICY.sub("", page)
        page = page.replace("</body>", f'<script>addEventListener("load", () => {{ {script} }});</script></body>')
    if width < NARROWEST_WINDOW:
        page = _framed(page, width, 800, _SHOW_FRAMED_DOM)
    return _open(page, f"--window-size={max(width, NARROWEST_WINDOW)},800", "--dump-dom")


def screenshot(html_path: Path, png_path: Path, width: int, height: int, dark: bool = False) -> None:
    """Writes a picture of the page's upper left ``width`` x ``height`` pixels."""
    page = html_path.read_text(encoding="utf-8")
    if width < NARROWEST_WINDOW:
        page = _framed(page, width, height)
    window = f"--window-size={max(width, NARROWEST_WINDOW)},{height}"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _open(page, window, scheme, f"--screenshot={png_path.resolve()}")
    with Image.open(png_path) as picture:
        cropped = picture.convert("RGB").crop((0, 0, width, height))
    cropped.save(png_path)
