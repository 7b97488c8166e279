"""What the sources of a data module of words name: LMDBs, trees of them, lists, drawn words."""

from __future__ import annotations

import glob
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.decoding import SUFFIXES
from datamodules.listing import find_images
from datamodules.text_lists import READERS, find_list, read_list
from datamodules.text_lmdb import FILE, LmdbWords
from datamodules.text_renderer import SEEDS, RenderOptions, renderer
from datamodules.text_words import Numbered, PictureFiles, Sieve, Source, Words
from vision.errors import InputError, shorten

RENDERED = "rendered"
VAL_SEED, TEST_SEED = SEEDS + 1, SEEDS + 2
MEMORY = 2**28  # bytes of drawn words that a source keeps in a process

Names = str | list[str]


class RenderedWords:
    """Words that are drawn when they are asked for, and kept; see :class:`~datamodules.text_words.Source`.

    They are a function of seed and index, so processes that each draw their own draw the same. They are kept in memory
    and not on the disk: the first pass costs a millisecond a word, which workers share, later ones cost nothing, the
    training starts at once, and no folder is left behind. What many runs are to share, ``vision render`` writes.

    Args:
        name: for paths and messages.
        seed: of the words.
        count: so many.
        options: with alphabet and size.
        charset: the characters that a network knows.
        longest: characters of a label at most.
    """

    def __init__(self, name: str, seed: int, count: int, options: RenderOptions, charset: str, longest: int) -> None:
        self.name, self.seed, self.options = name, seed, options
        sieve, draws = Sieve(charset, longest), renderer(options)
        for number in range(count):
            sieve.offer(number, draws.word(seed, number))
        self.labels: Sequence[str] = sieve.labels
        self.numbers: array[int] = sieve.numbers
        self.dropped: Counter[str] = sieve.dropped
        self.paths: Sequence[str] = Numbered(name, self.numbers)
        self._kept: dict[int, NDArray[np.uint8]] = {}

    def pixels(self, index: int, max_pixels: int) -> NDArray[np.uint8]:
        """See :class:`~datamodules.text_words.Source`."""
        if index in self._kept:
            return self._kept[index]
        pixels, _ = renderer(self.options).render(self.seed, self.numbers[index])
        if len(self._kept) * pixels.nbytes < MEMORY:
            self._kept[index] = pixels
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


class SourceReader:
    """Reads what is named in a configuration.

    Args:
        root: folder that names are relative to.
        charset: the characters that a network knows.
        longest: characters of a label at most.
        rendered: what ``rendered`` means, with alphabet and size.
    """

    def __init__(self, root: Path, charset: str, longest: int, rendered: RenderOptions) -> None:
        self.root, self.charset, self.longest, self.rendered = root, charset, longest, rendered

    def words(self, split: str, names: Names) -> Words:
        """All pictures of one or several sources, for ``train``, ``val`` or ``predict``.

        Raises:
            InputError: a source is missing or unusable.
        """
        found: list[Source] = []
        for name in [names] if isinstance(names, str) else names:
            if name == RENDERED:
                found.append(self._rendered(split, self.rendered))
            elif split == "predict" and (pictures := self._pictures(name)):
                found.append(pictures)
            else:
                found += [self._read(place) for place in self._places(split, name)]
        return Words(found)

    def sets(self, split: str, names: Names | dict[str, Names]) -> dict[str, Words]:
        """Test sets by name: those that are named, or one for each LMDB and list of the sources.

        Raises:
            InputError: a source is missing or unusable.
        """
        if isinstance(names, dict):
            return {name: self.words(split, sources) for name, sources in names.items()}
        found: dict[str, Words] = {}
        for name in [names] if isinstance(names, str) else names:
            if name == RENDERED:
                for level, share in (("clean", 0.0), ("hard", 1.0)):
                    found[level] = Words([self._rendered(level, replace(self.rendered, hard_share=share))])
                continue
            places = self._places(split, name)
            for place in places:
                found[_set_name(place, places, found)] = Words([self._read(place)])
        return found

    def _rendered(self, which: str, options: RenderOptions) -> RenderedWords:
        train = which == "train"
        seed = options.seed if train else {"val": VAL_SEED}.get(which, TEST_SEED)
        count = options.count if train else options.test_count
        return RenderedWords(f"{RENDERED}:{which}", seed, count, options, self.charset, self.longest)

    def _read(self, place: Path) -> Source:
        if (place / FILE).is_file():
            return LmdbWords(place, self.charset, self.longest)
        return read_list(find_list(place) or place, self.charset, self.longest)

    def _places(self, split: str, name: str) -> list[Path]:
        """LMDBs, folders with lists and files of lists: the source itself, or all below it."""
        place = self.root / name
        if place.is_file() and place.suffix.lower() in READERS:
            return [place]
        if not place.exists():
            raise InputError(f"data.{split}: no such folder or list: {place}")
        found: list[Path] = []
        for folder, below, files in os.walk(place, followlinks=True):
            below.sort()
            if FILE in files or find_list(Path(folder)):
                found.append(Path(folder))
                below.clear()
        if not found:
            what = "has neither data.mdb nor labels" if place.is_dir() else "is no list"
            raise InputError(f"data.{split}: {place} {what} ({', '.join(READERS)})")
        return sorted(found)

    def _pictures(self, name: str) -> Source | None:
        """Pictures without labels: a file, a folder that has no LMDB and no list, a pattern; else None."""
        place = self.root / name
        if place.is_dir():
            if any(FILE in files or find_list(Path(folder)) for folder, _, files in os.walk(place, followlinks=True)):
                return None
            found = find_images(place)
            if not found:
                raise InputError(f"data.predict: {place} has no pictures ({', '.join(SUFFIXES)})")
            return PictureFiles(str(place), found)
        if place.is_file():
            return PictureFiles(str(place), [str(place)]) if place.suffix.lower() not in READERS else None
        matches = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        return PictureFiles(str(place), matches) if matches else None


def _set_name(place: Path, places: Sequence[Path], taken: dict[str, Words]) -> str:
    """The folder's name, with those above it where that is needed to tell sets apart."""
    parts = (*place.parts[:-1], place.stem if place.is_file() else place.name)
    rivals = [other for other in places if other != place]
    for length in range(1, len(parts) + 1):
        name = "/".join(parts[-length:])
        if name not in taken and not any(other.parts[-length:] == place.parts[-length:] for other in rivals):
            return name
    raise InputError(f"data.test: {shorten([str(place)])} is there twice")
