"""The one error type for whatever a user can put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Something the user gave is wrong, and the message says what.

    The message is one line: it names the file (and row) or the argument, what was found and what was
    expected. The ``vision`` command prints it and exits with status 2; a traceback is kept for our own bugs.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest known word, or the empty string when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def shorten(names: Sequence[str], most: int = 5) -> str:
    """The first ``most`` names joined by commas, and how many were left out."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
