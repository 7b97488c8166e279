"""Why a decoder refuses a file, which decoders do not tell."""

from __future__ import annotations

import os
from pathlib import Path


def why_closed(path: str, decoder: str) -> str:
    """What is wrong with a file that a decoder refuses, as far as its container tells."""
    if "://" in path:
        return "no stream can be opened at this address"
    head = _head(path)
    if head[4:8] == b"ftyp":
        index = _mp4_index(path)
        if index is None:
            return "cut off before its index (the moov box)"
        streams, mark = index, b"vide"
    elif head.startswith(b"\x1a\x45\xdf\xa3"):
        streams, mark = head, b"V_"
    elif head.startswith(b"RIFF"):
        streams, mark = head, b"vids"
    else:
        return "not a video of a known format, or its header is damaged"
    return f"damaged, or in a codec that {decoder} cannot decode" if mark in streams else "no video stream"


def _head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(1 << 16)


def _mp4_index(path: str) -> bytes | None:
    """The moov box; None where the file has none."""
    with Path(path).open("rb") as file:
        while len(header := file.read(8)) == 8:
            size, skip = int.from_bytes(header[:4]), 8
            if size == 1:
                size, skip = int.from_bytes(file.read(8)), 16
            if header[4:] == b"moov":
                return file.read(size - skip)
            if size < skip:
                return None
            file.seek(size - skip, os.SEEK_CUR)
    return None
