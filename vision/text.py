"""Character sets, labels of words, and how a reading is compared with its label; shared by data and networks."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.text import edit_distance

from vision.errors import InputError

# 94: all printable ASCII characters but the blank, in the order that official checkpoints number them by.
CHARSETS = {
    "36": string.digits + string.ascii_lowercase,
    "62": string.digits + string.ascii_lowercase + string.ascii_uppercase,
    "94": string.digits + string.ascii_lowercase + string.ascii_uppercase + string.punctuation,
}
Dropped = Literal["empty", "too long", "no character of the charset"]


def read_charset(spec: str) -> str:
    """The characters that a network knows, in the order of its tokens.

    Args:
        spec: ``36`` digits and lower-case letters, ``62`` with upper-case letters, ``94`` with punctuation;
            a ``.txt`` file (UTF-8, line ends ignored); or the characters themselves.

    Raises:
        InputError: there are no characters, one is there twice or is a blank, or the file is unreadable.
    """
    found, where = CHARSETS.get(spec, spec), f"charset '{spec[:40]}'"
    if spec.endswith(".txt"):
        try:
            found = Path(spec).read_text(encoding="utf-8").replace("\r", "").replace("\n", "")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"charset: cannot read {spec} as UTF-8 text ({type(error).__name__})") from error
    if not found:
        raise InputError(f"{where} has no characters")
    twice = [character for character, count in Counter(found).items() if count > 1]
    if twice:
        raise InputError(f"{where}: '{twice[0]}' is there twice")
    blank = next((character for character in found if character.isspace()), None)
    if blank is not None:
        raise InputError(f"{where} holds a blank (U+{ord(blank):04X}); words have none")
    return found


def in_charset(text: str, charset: str) -> str:
    """A reading or a label as it is compared: in the charset's case where that has one, other characters deleted."""
    if charset == charset.lower():
        text = text.lower()
    elif charset == charset.upper():
        text = text.upper()
    known = frozenset(charset)
    return "".join(character for character in text if character in known)


def clean_label(raw: str, charset: str, longest: int) -> tuple[str, Dropped | None]:
    """A label as it is trained on and compared with, or why it is dropped.

    In this order, as PARSeq and CFE do it: blanks are removed; letters lose their accents and what is not ASCII goes,
    unless the charset itself has such characters; too long ones are dropped; then :func:`in_charset`.

    Args:
        raw: as the data have it.
        charset: the characters.
        longest: characters at most.

    Returns:
        The label ("" where it is dropped), and the reason or None.
    """
    text = "".join(raw.split())
    if not text:
        return "", "empty"
    if charset.isascii():
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    if len(text) > longest:
        return "", "too long"
    text = in_charset(text, charset)
    return (text, None) if text else ("", "no character of the charset")


def normalised_distances(readings: Sequence[str], labels: Sequence[str]) -> Tensor:
    """Levenshtein's distance of each pair over the length of its longer word (ICDAR 2019's NED); 0 of two empty words.

    Returns:
        float32 ``(n,)`` in [0, 1].
    """
    if not readings:
        return torch.zeros(0)
    longest = torch.tensor([max(len(a), len(b), 1) for a, b in zip(readings, labels, strict=True)])
    found: Tensor = edit_distance(list(readings), list(labels), reduction="none")
    return found / longest
