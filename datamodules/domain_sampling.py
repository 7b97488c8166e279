"""Which pictures of two domains make up a step; what is drawn by group comes from groups that change while training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from datamodules.sampling import TrainSampler

Rows = NDArray[np.int64]

# Which of the seed's random choices: each has numbers of its own, so that one option does not change another's.
_SOURCE, _TARGET, _STEP = range(1, 4)


class Picks(NamedTuple):
    """Rows of a domain to be made a batch of.

    Attributes:
        rows: ``(B,)``.
        seeds: ``(B,)``, of their augmentation.
        groups: ``(B,)``, what they were drawn for; None where each is taken for its class.
    """

    rows: Rows
    seeds: Rows
    groups: Rows | None = None


class Step(NamedTuple):
    """The rows of a :class:`~vision.batches.DomainBatch`, under its names."""

    source: Picks
    target: Picks
    aligned_source: Picks
    aligned_target: Picks
    clustered: Picks
    grouping: int


@dataclass(frozen=True)
class Groups:
    """What is drawn by group.

    Attributes:
        pairs: (pair, its rows of the source, its rows of the target), of those that have rows of both.
        clusters: (cluster, its rows of the target), of those that have any.
        number: how many times groups had been set then.
    """

    pairs: Sequence[tuple[int, Rows, Rows]] = ()
    clusters: Sequence[tuple[int, Rows]] = ()
    number: int = 0

    @classmethod
    def of(cls, source: ArrayLike, target: ArrayLike, clusters: ArrayLike, number: int) -> Groups:
        """From the pair of each row of the source, of the target, and the cluster of each row of it; -1 for none."""
        sources, targets = _members(source), _members(target)
        pairs = [(pair, rows, targets[pair]) for pair, rows in sources.items() if pair in targets]
        return cls(pairs, list(_members(clusters).items()), number)


def _members(groups: ArrayLike) -> dict[int, Rows]:
    of = np.asarray(groups, np.int64)
    order = np.argsort(of, kind="stable")
    numbers, starts = np.unique(of[order], return_index=True)
    split = np.split(order, starts[1:])
    return {int(number): rows for number, rows in zip(numbers, split, strict=True) if number >= 0}


class Whole(Dataset[object]):
    """Gives back what is asked of it: what makes a batch of the requests reads all of them at once."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, request: object) -> object:
        return request


class StepSampler(TrainSampler):
    """The steps of an epoch, a function of seed, epoch, number of the step, process and groups.

    The source comes in rounds of all classes, and each class's pictures by turns; the target comes in rounds of all
    pictures: whatever the length of an epoch, none is drawn twice as often as another of its kind, but for the
    rounding. These two parts are one sequence, of which the processes take turns. Groups are drawn by each process for
    itself.

    Args:
        labels: ``(n,)``, the class of each row of the source; None draws the source as the target is.
        sizes: rows of the source and of the target.
        batch_size: rows of either a step and process.
        groups: most pairs, and most clusters, a step.
        per_group: rows of a pair and domain, and of a cluster.
        steps: of an epoch.
        num_replicas: number of processes.
        rank: this process.
        seed: of all random choices, 0 or more.
    """

    def __init__(
        self,
        labels: ArrayLike | None,
        sizes: tuple[int, int],
        batch_size: int,
        groups: int,
        per_group: int,
        steps: int,
        num_replicas: int,
        rank: int,
        seed: int,
    ) -> None:
        super().__init__(Whole(steps), num_replicas, rank, seed=seed)
        self.labels = None if labels is None else np.asarray(labels, np.int64)
        self.sizes, self.batch_size, self.steps = sizes, batch_size, steps
        self.most, self.per_group = groups, per_group
        self.groups = Groups()
        """May be replaced at any time, and holds for the steps that are drawn from then on."""

    def __iter__(self) -> Iterator[Step]:  # type: ignore[override]
        start, self._skip = self._skip, 0
        count = self.steps * self.batch_size * self.num_replicas
        source = self._source(np.random.default_rng((self.seed, self.epoch, _SOURCE)), count)
        target = _in_turn(np.random.default_rng((self.seed, self.epoch, _TARGET)), self.sizes[1], count)
        shape = self.steps, self.batch_size, self.num_replicas
        own = [rows.reshape(shape)[..., self.rank] for rows in (source, target)]
        for step in range(start, self.steps):
            yield self._step(step, *(rows[step] for rows in own))

    def __len__(self) -> int:
        return self.steps

    def _source(self, random: np.random.Generator, count: int) -> Rows:
        if self.labels is None:
            return _in_turn(random, self.sizes[0], count)
        shuffled = random.permutation(self.sizes[0])
        rows = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        _, starts, sizes = np.unique(self.labels[rows], return_index=True, return_counts=True)
        classes = _in_turn(random, len(sizes), count)
        rounds = np.arange(count) // len(sizes)
        drawn: Rows = rows[starts[classes] + rounds % sizes[classes]]
        return drawn

    def _step(self, step: int, source: Rows, target: Rows) -> Step:
        groups = self.groups
        random = np.random.default_rng((self.seed, self.epoch, _STEP, step, self.rank))
        evenly = [Picks(rows, _seeds(random, len(rows))) for rows in (source, target)]
        pairs = [groups.pairs[i] for i in self._some(random, len(groups.pairs))]
        clusters = [groups.clusters[i] for i in self._some(random, len(groups.clusters))]
        return Step(
            evenly[0],
            evenly[1],
            self._of_groups(random, [(pair, rows) for pair, rows, _ in pairs]),
            self._of_groups(random, [(pair, rows) for pair, _, rows in pairs]),
            self._of_groups(random, clusters),
            groups.number,
        )

    def _some(self, random: np.random.Generator, number: int) -> list[int]:
        chosen: list[int] = random.choice(number, min(number, self.most), replace=False).tolist() if number else []
        return chosen

    def _of_groups(self, random: np.random.Generator, groups: Sequence[tuple[int, Rows]]) -> Picks:
        """Rows of each group; with replacement where it has too few."""
        size = self.per_group
        drawn = [rows[random.choice(len(rows), size, replace=len(rows) < size)] for _, rows in groups]
        rows = np.concatenate(drawn) if drawn else np.zeros(0, np.int64)
        numbers = np.repeat(np.array([number for number, _ in groups], np.int64), size)
        return Picks(rows, _seeds(random, len(rows)), numbers)


def _in_turn(random: np.random.Generator, number: int, count: int) -> Rows:
    """``count`` of ``number`` things, in rounds each of which has another order."""
    rounds = -(-count // number)
    orders: Rows = random.permuted(np.tile(np.arange(number), (rounds, 1)), axis=1)
    return orders.ravel()[:count]


def _seeds(random: np.random.Generator, number: int) -> Rows:
    seeds: Rows = random.integers(2**31, size=number)
    return seeds
