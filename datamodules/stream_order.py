"""In which order a deployed network meets images: stretches of one corruption, runs of one class, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

CLEAN, MIXED = "clean", "mixed"
MOST_SLOTS = 100

Order = Literal["continual", "gradual", "mixed", "correlated"]
Stretch = tuple[str, int]
"""A corruption, or ``mixed``, and its severity."""
Items = NDArray[np.intp]


def stretches(order: Order, corruptions: Sequence[str], severity: int) -> list[Stretch]:
    """The stretches of one round.

    Args:
        order: ``continual`` and ``correlated`` show one corruption after the other; ``gradual`` lets the severity of
            each rise from 1 and fall back to 1 (1 2 3 4 5 4 3 2 1, as CoTTA's gradually changing setting); ``mixed``
            is a single stretch.
        corruptions: by name, in their order.
        severity: 1 to 5; of ``gradual``, the highest.
    """
    if order == "mixed":
        return [(MIXED, severity)]
    if order == "gradual":
        slope = [*range(1, severity), *range(severity, 0, -1)]
        return [(name, level) for name in corruptions for level in slope]
    return [(name, severity) for name in corruptions]


def class_runs(labels: NDArray[np.integer], concentration: float, random: np.random.Generator) -> Items:
    """An order in which the images of a class come in runs, as RoTTA and NOTE test it.

    The stretch has as many slots as there are classes, at most 100. Each class spreads its images over the slots, in
    their order, by shares from a symmetric Dirichlet distribution; within a slot the classes come one after the other,
    in random order.

    Args:
        labels: ``(n,)`` class of each image.
        concentration: of the Dirichlet distribution, positive. The smaller, the longer the runs: towards 0 the whole
            class is in one slot; where it is large, every slot has a little of every class.
        random: decides.

    Returns:
        Each of 0 to n - 1 once.
    """
    classes = np.unique(labels)
    slots = min(len(classes), MOST_SLOTS)
    shares = random.dirichlet(np.full(slots, concentration), size=len(classes))
    parts = []
    for target, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(labels == target)
        parts.append(np.split(members, np.rint(np.cumsum(share)[:-1] * len(members)).astype(int)))
    return np.concatenate([parts[i][slot] for slot in range(slots) for i in random.permutation(len(classes))])


def even_mix(names: Sequence[str], count: int, random: np.random.Generator) -> list[str]:
    """A name for each of ``count`` images: each name as often as any other, or once more often."""
    drawn = [names[i % len(names)] for i in random.permutation(len(names))]
    return [drawn[i % len(names)] for i in random.permutation(count)]


class Leg(NamedTuple):
    """The images of a stretch, in their order, with the corruption of each.

    Attributes:
        items: image numbers.
        corruptions: as many names.
        severity: of all of them.
    """

    items: Items
    corruptions: Sequence[str]
    severity: int


class Serving(NamedTuple):
    """What a batch is to show; ``position``, ``round`` and ``probe`` as in :class:`~vision.batches.StreamBatch`.

    Attributes:
        items: image numbers; of a probe, numbers of clean images.
        corruptions: as many names.
        severity: of all of them; 0 of a probe.
    """

    items: list[int]
    corruptions: list[str]
    severity: int
    position: int
    round: int
    probe: bool


@dataclass(frozen=True)
class Plan:
    """All batches of a stream; the sampler of a loader that makes no batches itself.

    Args:
        legs: the stretches of one round.
        probes: clean images that are shown before the first stretch and after each.
        batch_size: images a batch. The last one of a stretch may have fewer, since no batch spans two stretches.
        rounds: how often the legs come.
    """

    legs: Sequence[Leg]
    probes: Items
    batch_size: int
    rounds: int

    def __iter__(self) -> Iterator[Serving]:
        yield from self._clean(-1, 0)
        for number in range(self.rounds):
            for position, leg in enumerate(self.legs, number * len(self.legs)):
                for start in range(0, len(leg.items), self.batch_size):
                    part = slice(start, start + self.batch_size)
                    items, names = leg.items[part].tolist(), list(leg.corruptions[part])
                    yield Serving(items, names, leg.severity, position, number, probe=False)
                yield from self._clean(position, number)

    def _clean(self, position: int, number: int) -> Iterator[Serving]:
        for start in range(0, len(self.probes), self.batch_size):
            items = self.probes[start : start + self.batch_size].tolist()
            yield Serving(items, [CLEAN] * len(items), 0, position, number, probe=True)

    def __len__(self) -> int:
        round_batches = sum(-(-len(leg.items) // self.batch_size) for leg in self.legs)
        probings = 1 + self.rounds * len(self.legs)
        return self.rounds * round_batches + probings * -(-len(self.probes) // self.batch_size)
