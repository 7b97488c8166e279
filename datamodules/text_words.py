"""Words in pictures, listed so compactly that millions fit, and how many were dropped for which reason."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from datamodules.decoding import read_image
from vision.errors import InputError
from vision.text import clean_label


class _Indexed(Sequence[str]):
    """A sequence of which one string at a time exists."""

    def at(self, index: int) -> str:
        """The string at an index from 0 on."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.at(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.at(index % len(self))


class Strings(_Indexed):
    """Strings in one stretch of bytes: no Python object for each."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for string in strings:
            self.append(string)

    def append(self, string: str) -> None:
        """Adds a string at the end."""
        self._bytes += string.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._bytes))

    def at(self, index: int) -> str:
        """See :class:`_Indexed`."""
        start, end = self._ends[index], self._ends[index + 1]
        return self._bytes[start:end].decode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self._ends) - 1


class Numbered(_Indexed):
    """``PLACE#NUMBER`` for each number."""

    def __init__(self, place: str, numbers: Sequence[int]) -> None:
        self.place, self.numbers = place, numbers

    def at(self, index: int) -> str:
        """See :class:`_Indexed`."""
        return f"{self.place}#{self.numbers[index]}"

    def __len__(self) -> int:
        return len(self.numbers)


class Joined(_Indexed):
    """Several sequences as one."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self.parts = parts
        self.starts = [0, *accumulate(map(len, parts))]

    def at(self, index: int) -> str:
        """See :class:`_Indexed`."""
        part = bisect_right(self.starts, index) - 1
        return self.parts[part][index - self.starts[part]]

    def __len__(self) -> int:
        return self.starts[-1]


class Source(Protocol):
    """Pictures of one place, with their labels."""

    @property
    def name(self) -> str:
        """The place."""

    @property
    def paths(self) -> Sequence[str]:
        """What each picture is called."""

    @property
    def labels(self) -> Sequence[str]:
        """As long as ``paths``."""

    @property
    def dropped(self) -> Counter[str]:
        """How many were left out for which reason."""

    def pixels(self, index: int, max_pixels: int) -> NDArray[np.uint8]:
        """A picture, uint8 ``(H, W, 3)`` RGB.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """


class Sieve:
    """Takes the labels of a source one by one and keeps those that a network can learn.

    Args:
        charset: the characters.
        longest: characters at most.

    Attributes:
        numbers: of the pictures that were kept.
        labels: theirs, as :func:`vision.text.clean_label` makes them.
        dropped: how many were not, by reason.
    """

    def __init__(self, charset: str, longest: int) -> None:
        self.charset, self.longest = charset, longest
        self.numbers = array("i")
        self.labels = Strings()
        self.dropped: Counter[str] = Counter()

    def offer(self, number: int, raw: str) -> None:
        """Keeps the label of a picture, or counts why not."""
        text, reason = clean_label(raw, self.charset, self.longest)
        if reason is not None:
            self.dropped[reason] += 1
            return
        self.numbers.append(number)
        self.labels.append(text)


class PictureFiles:
    """Files of pictures; see :class:`Source`.

    Args:
        name: the list, or whatever names the files.
        paths: the files.
        labels: theirs; by default none has one.
        dropped: what was left out.
    """

    def __init__(
        self, name: str, paths: Iterable[str], labels: Sequence[str] | None = None, dropped: Counter[str] | None = None
    ) -> None:
        self.name, self.paths = name, Strings(paths)
        self.labels: Sequence[str] = [""] * len(self.paths) if labels is None else labels
        self.dropped: Counter[str] = Counter() if dropped is None else dropped

    def pixels(self, index: int, max_pixels: int) -> NDArray[np.uint8]:
        """See :class:`Source`."""
        return read_image(self.paths[index], max_pixels)


class Words:
    """The pictures of several sources, one behind the other.

    Args:
        sources: one at least.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.paths = Joined([source.paths for source in sources])
        self.targets = Joined([source.labels for source in sources])

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, index: int, max_pixels: int) -> NDArray[np.uint8]:
        """A picture; see :class:`Source`."""
        part = bisect_right(self.paths.starts, index) - 1
        return self.sources[part].pixels(index - self.paths.starts[part], max_pixels)


def require_words(split: str, words: Words) -> None:
    """Refuses a split of which nothing is left.

    Raises:
        InputError: there are no words; what became of them is said.
    """
    if len(words):
        return
    fates = [f"{source.name} ({_counts(source.dropped) or 'nothing there'})" for source in words.sources]
    more = f" and {len(fates) - 3} more sources" if len(fates) > 3 else ""
    raise InputError(f"data.{split}: no word is left of {', '.join(fates[:3])}{more}")


def _counts(dropped: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common())


def dropped_table(splits: dict[str, Words]) -> str:
    """A line for each source that words were dropped of, a column for each reason; "" where none was."""
    sources = [(split, source) for split, words in splits.items() for source in words.sources if source.dropped]
    if not sources:
        return ""
    reasons = list(dict.fromkeys(reason for _, source in sources for reason in source.dropped))
    rows = [["dropped from", "kept", *reasons]]
    for split, source in sources:
        counts = [f"{source.dropped[reason]:,}" for reason in reasons]
        rows.append([f"{split}: {source.name}", f"{len(source.labels):,}", *counts])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        right = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append(f"{name:<{widths[0]}}{right}")
    return "\n".join(lines)
