"""Real images that need no download, written as ordinary files so that the ordinary reader reads them.

Wherever a data module takes a ``root``, ``builtin:NAME`` names one of these.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from datamodules.builtin.digit_domains import write_fonts, write_styles
from datamodules.builtin.digit_pairs import write_digit_pairs
from datamodules.builtin.digits import write_digits
from datamodules.builtin.motion import write_motion, write_views
from datamodules.builtin.photographs import write_photographs
from datamodules.builtin.scenes import write_scenes
from vision.errors import InputError, did_you_mean

PREFIX = "builtin:"
# The number is part of the folder's name: raise it when what is written changes, and old folders stay unused.
WRITERS: dict[str, tuple[int, Callable[[Path], None]]] = {
    "digit_pairs": (1, write_digit_pairs),
    "digits": (1, write_digits),
    "fonts": (1, write_fonts),
    "motion": (1, write_motion),
    "motion_views": (1, write_views),
    "photographs": (1, write_photographs),
    "scenes": (1, write_scenes),
    "styles": (1, write_styles),
}


def cache_folder() -> Path:
    """Where built-in data is kept: ``$FRUGAL_VISION_CACHE``, else ``frugal-vision`` in the user's cache folder."""
    if folder := os.environ.get("FRUGAL_VISION_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frugal-vision"


def resolve_root(root: str | Path) -> Path:
    """The folder that ``root`` names; ``builtin:NAME`` is written at its first use and reused from then on.

    Several processes may ask at once: each writes a folder of its own, and the first one to finish is kept.

    Raises:
        InputError: there is no built-in data set of that name, or the folder cannot be written.
    """
    if not str(root).startswith(PREFIX):
        return Path(root)
    name = str(root).removeprefix(PREFIX)
    if name not in WRITERS:
        raise InputError(f"no built-in data '{name}'{did_you_mean(name, WRITERS)}; there are {', '.join(WRITERS)}")
    version, write = WRITERS[name]
    folder = cache_folder() / f"{name}-v{version}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            write(temporary)
            temporary.chmod(0o755)
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder}: the built-in data cannot be written ({error.strerror})") from error
    return folder
