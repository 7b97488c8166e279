"""Words drawn by a computer: pictures to train and test readers with where there are none.

The 48-pixel drawing, the strengths of the distortions and the least contrast of colours are those of the project's
prototype; everything is a function of seed and index alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.text_fonts import HEIGHT, Face, embedded_faces, read_faces
from vision.errors import InputError
from vision.text import read_charset

OPENCV_SHARE = 0.15  # of the words that both OpenCV's faces and files can spell
CONTRAST = 180  # least sum over the channels of what text and background differ in
INK = 48  # a mask value above which a pixel belongs to a letter
SEEDS = 2**31  # the seeds of training words are below this; those of validation and test words are above
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class RenderOptions:
    """What is drawn.

    Attributes:
        count: training words.
        test_count: words of each test set, and of validation.
        seed: of the training words; those of validation and test are always the same.
        alphabet: as :func:`vision.text.read_charset` takes it; by default the data's charset. Where it has one case
            only, words are drawn in lower case, upper case or with a capital.
        lengths: share of the words of 1, 2, ... characters.
        words: a file with a word a line (UTF-8). Those with characters that are not in the alphabet are left out.
        word_share: share of the words that is taken from that file; the others are random strings.
        fonts: folder of further fonts (.ttf, .otf, .ttc).
        hard_share: share of the words that are bent, tilted and turned strongly, in training and validation.
        colour: ``any``, or ``grey`` for light text on dark.
        size: (height, width) in pixels; by default the network's.
    """

    count: int = 12000
    test_count: int = 1000
    seed: int = 0
    alphabet: str | None = None
    lengths: tuple[float, ...] = (0.02, 0.06, 0.14, 0.18, 0.18, 0.14, 0.1, 0.08, 0.05, 0.05)
    words: str | None = None
    word_share: float = 0.5
    fonts: str | None = None
    hard_share: float = 0.5
    colour: Literal["grey", "any"] = "any"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.count, self.test_count) < 1:
            raise InputError(f"rendered: count and test_count must be at least 1, got {self.count}, {self.test_count}")
        if not 0 <= self.seed < SEEDS:
            raise InputError(f"rendered.seed must be in [0, {SEEDS}), got {self.seed}")
        for name, share in (("word_share", self.word_share), ("hard_share", self.hard_share)):
            if not 0 <= share <= 1:
                raise InputError(f"rendered.{name} must be in [0, 1], got {share}")
        finite = all(math.isfinite(share) and share >= 0 for share in self.lengths)
        if not finite or not sum(self.lengths):
            raise InputError(f"rendered.lengths must be shares of 1, 2, ... characters, got {list(self.lengths)}")
        if self.colour not in ("grey", "any"):
            raise InputError(f"rendered.colour must be grey or any, got {self.colour}")
        if self.size is not None and min(self.size) < 4:
            raise InputError(f"rendered.size must be at least 4x4 pixels, got {self.size[0]}x{self.size[1]}")


def render(seed: int, index: int, options: RenderOptions) -> tuple[Pixels, str]:
    """The word number ``index`` of a seed; 1 to 2 ms.

    Args:
        seed: of all words.
        index: from 0 on; ``count`` is no bound here.
        options: alphabet and size are by default ``36`` and 32x128 here.

    Returns:
        uint8 ``(height, width, 3)`` RGB; the word as it is drawn, in its case.

    Raises:
        InputError: there is no font for a character, or a file of the options is unusable.
    """
    return renderer(options).render(seed, index)


@lru_cache(maxsize=16)
def renderer(options: RenderOptions) -> Renderer:
    """The renderer of some options, with its fonts read."""
    return Renderer(options)


class Renderer:
    """Draws words; see :func:`render`."""

    def __init__(self, options: RenderOptions) -> None:
        self.options = options
        self.height, self.width = options.size or (32, 128)
        alphabet = read_charset(options.alphabet or "36")
        self.one_case = alphabet in (alphabet.lower(), alphabet.upper())
        files, opencv = embedded_faces()
        files += read_faces(options.fonts) if options.fonts is not None else ()
        self.faces = (*files, *opencv)
        self.weights = np.repeat(
            [(1 - OPENCV_SHARE) / len(files), OPENCV_SHARE / len(opencv)], [len(files), len(opencv)]
        )
        self.spellable = [[c for c in alphabet if c in face.characters] for face in self.faces]
        known = frozenset().union(*self.spellable)
        lacking = next((character for character in alphabet if character not in known), None)
        if lacking is not None:
            raise InputError(
                f"rendered.alphabet: no font has '{lacking}' (U+{ord(lacking):04X}); name a folder of fonts that have "
                f"it (rendered.fonts{f', not {options.fonts}' if options.fonts else ''})"
            )
        self.alphabet = alphabet
        self.lengths = np.cumsum(options.lengths)
        self._fonts_of: dict[str, NDArray[np.float64]] = {}
        self.words = self._read_words(options.words) if options.words is not None else []

    def _read_words(self, file: str) -> list[str]:
        try:
            lines = Path(file).read_text(encoding="utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"rendered.words: cannot read {file} as UTF-8 text ({type(error).__name__})") from error
        if self.one_case:
            lines = [line.lower() if self.alphabet == self.alphabet.lower() else line.upper() for line in lines]
        known = frozenset(self.alphabet)
        words = [
            word
            for word in lines
            if known.issuperset(word) and any(face.characters.issuperset(word) for face in self.faces)
        ]
        if not words:
            raise InputError(f"rendered.words: {file} has no word of the alphabet '{self.alphabet[:40]}'")
        return words

    def word(self, seed: int, index: int) -> str:
        """The word that :meth:`render` draws, without drawing it."""
        return self._choose(np.random.default_rng((seed, index)))[1]

    def _choose(self, rng: np.random.Generator) -> tuple[bool, str, Face]:
        """Whether it is a hard one, the word, and a font that can spell it."""
        hard = bool(rng.random() < self.options.hard_share)
        if self.words and rng.random() < self.options.word_share:
            word = self.words[rng.integers(len(self.words))]
            face = self.faces[self._font(rng, word)]
        else:
            # The font follows from the first character, so that each is as frequent as any other, and the others
            # from the font: an alphabet may be spread over fonts of several scripts.
            first = self.alphabet[rng.integers(len(self.alphabet))]
            number = self._font(rng, first)
            face, letters = self.faces[number], self.spellable[number]
            length = _draw(rng, self.lengths) + 1
            word = first + "".join(letters[i] for i in rng.integers(len(letters), size=length - 1))
        if self.one_case:
            cased = (word.lower(), word.upper(), word.capitalize())[rng.integers(3)]
            word = cased if len(cased) == len(word) and face.characters.issuperset(cased) else word
        return hard, word, face

    def _font(self, rng: np.random.Generator, word: str) -> int:
        if word not in self._fonts_of:
            able = [face.characters.issuperset(word) for face in self.faces]
            self._fonts_of[word] = np.cumsum(self.weights * able)
        return _draw(rng, self._fonts_of[word])

    def render(self, seed: int, index: int) -> tuple[Pixels, str]:
        """See :func:`render`."""
        rng = np.random.default_rng((seed, index))
        hard, word, face = self._choose(rng)
        mask = face.draw(word)
        if hard:
            mask = _bend(rng, mask)
        mask = _tilt(rng, mask, jitter=0.25 if hard else 0.06, degrees=14 if hard else 3)
        top, bottom, left, right = _crop(rng, mask)
        inside = mask[top:bottom, left:right]
        shrinks = inside.shape[0] >= self.height and inside.shape[1] >= self.width
        resized = cv2.resize(
            inside, (self.width, self.height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        return self._paint(rng, np.asarray(resized, np.float32) / np.float32(255)), word

    def _paint(self, rng: np.random.Generator, alpha: NDArray[np.float32]) -> Pixels:
        """Text and background in their colours, perhaps blurred, with noise; ``alpha`` ``(H, W)`` is 1 on ink."""
        grey = self.options.colour == "grey"
        text, ground = _grey(rng) if grey else _colours(rng)
        shape = (*alpha.shape, len(text))
        picture = (ground + _gradient(rng, shape)) * (1 - alpha[..., None])
        picture += (text + _gradient(rng, shape)) * alpha[..., None]
        if rng.random() < 0.3:
            picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.0) * self.height / 32).reshape(shape)
        picture += rng.uniform(2, 18) * rng.standard_normal(shape, np.float32)
        return np.repeat(np.clip(picture, 0, 255).astype(np.uint8), 3 // len(text), axis=2)


def _draw(rng: np.random.Generator, shares: NDArray[np.float64]) -> int:
    """A place, each as likely as its share; the shares are summed up from the first on."""
    return int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))


def _bend(rng: np.random.Generator, mask: Pixels) -> Pixels:
    """Along a sine, and unevenly."""
    edge = HEIGHT // 2
    mask = np.pad(mask, edge)
    height, width = mask.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    amplitude = float(np.clip(rng.normal(0, 0.22), -0.5, 0.5)) * HEIGHT
    waves = rng.uniform(0.5, 1.0) * width / max(width, 3 * HEIGHT)
    y += amplitude * np.sin(2 * math.pi * (waves * x / width + rng.random()))
    nodes = (4, 2 + width // HEIGHT)
    for grid in (x, y):
        field = rng.normal(0, 0.05 * HEIGHT, nodes).astype(np.float32)
        grid += cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.remap(mask, x, y, cv2.INTER_LINEAR), dtype=np.uint8)


def _tilt(rng: np.random.Generator, mask: Pixels, jitter: float, degrees: float) -> Pixels:
    """Turned by an angle of this standard deviation, the corners moved by up to ``jitter`` letter heights."""
    height, width = mask.shape
    # A long line that is turned far would be squeezed to nothing by the crop.
    most = min(30.0, math.degrees(math.atan2(1.2 * HEIGHT, width)))
    angle = math.radians(float(np.clip(rng.normal(0, degrees), -most, most)))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], np.float32)
    moved = corners @ turn + rng.uniform(-jitter, jitter, (4, 2)).astype(np.float32) * HEIGHT
    moved -= moved.min(axis=0)
    size = np.ceil(moved.max(axis=0)).astype(int) + 1
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    return np.asarray(cv2.warpPerspective(mask, matrix, (int(size[0]), int(size[1]))), dtype=np.uint8)


def _crop(rng: np.random.Generator, mask: Pixels) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the ink and a little around it; a dot keeps its place in the line."""
    spans: list[tuple[int, int]] = []
    least = 0.6 * HEIGHT
    for axis in (1, 0):
        found = np.flatnonzero((mask > INK).any(axis=axis))
        size = mask.shape[1 - axis]
        start, end = (int(found[0]), int(found[-1]) + 1) if len(found) else (0, size)
        missing = least - (end - start)
        if missing > 0:  # towards the middle of the line
            shift = float(np.clip((size - start - end) / 2, -missing / 2, missing / 2))
            start, end = round(start - missing / 2 + shift), round(end + missing / 2 + shift)
        before, after = rng.uniform(0, 0.12, 2) * HEIGHT
        spans.append((max(0, start - int(before)), min(size, end + int(after))))
        least = max(0.6 * HEIGHT, 0.7 * (spans[0][1] - spans[0][0]))  # of the width, after the height
    return *spans[0], *spans[1]


def _grey(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Light text, dark background: one channel each."""
    return rng.uniform(170, 255, 1).astype(np.float32), rng.uniform(0, 70, 1).astype(np.float32)


def _colours(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of text and background, RGB."""
    while True:
        text, ground = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        if np.abs(text - ground).sum() >= CONTRAST:
            return text, ground


def _gradient(rng: np.random.Generator, shape: Sequence[int]) -> NDArray[np.float32]:
    """From one side of the picture to the other, at most 20 of 255 either way, ``(H, W, channels)``."""
    height, width, channels = shape
    direction = rng.uniform(0, 2 * math.pi)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    slope = (math.cos(direction) * x + math.sin(direction) * y[:, None]) / math.sqrt(2)
    return np.asarray(slope[..., None] * rng.uniform(-20, 20, channels), dtype=np.float32)
