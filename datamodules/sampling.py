"""Which image comes next, on which process, with which seed: the same after a resumption as without one.

Every random choice of the data (order, augmentation, mixing) follows from the seed, the epoch and the position in
the epoch alone. It depends neither on the number of loader workers nor on where a run was interrupted, and with N
processes of batch B the images of a step are those of one process of batch N*B.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class Draw(NamedTuple):
    """One request to a dataset: the item, and the seed of its augmentation."""

    item: int
    seed: int


# Lightning leaves a loader alone whose sampler is a DistributedSampler, hence the base class.
class TrainSampler(DistributedSampler[Draw]):
    """A new order for every epoch; what does not divide by the processes is left to the next epoch.

    Args:
        dataset: anything with a length.
        num_replicas: number of processes.
        rank: this process.
        seed: of order and augmentation.
        repeats: with 3, each image comes three times in a row and an epoch is cut to one third of that (repeated
            augmentation as in DeiT, by timm's sampler: an epoch sees about a third of the images).
        weights: of the items, positive and of any sum; given, as many items as ever are drawn with replacement, each
            with a probability in proportion to its weight. Not together with ``repeats``.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int,
        rank: int,
        seed: int = 0,
        repeats: int = 1,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        assert weights is None or repeats == 1
        self.weights = weights
        self.repeated = RepeatAugSampler(dataset, num_replicas, rank, num_repeats=repeats) if repeats > 1 else None
        self._skip = 0

    def skip(self, draws: int) -> None:
        """Leaves out the first ``draws`` of the next pass, which were drawn before an interruption."""
        self._skip = draws

    def __iter__(self) -> Iterator[Draw]:
        count, size, rank = len(self), self.num_replicas, self.rank
        items = len(self.dataset)  # type: ignore[arg-type]
        random = np.random.default_rng((self.seed, self.epoch))
        seeds = random.integers(2**31, size=count * size)[rank::size]
        if self.repeated is not None:
            self.repeated.set_epoch(self.epoch)
            order: Sequence[int] = list(self.repeated)
        elif self.weights is not None:
            share = self.weights / self.weights.sum()
            order = random.choice(items, count * size, p=share)[rank::size].tolist()
        else:
            order = random.permutation(items)[: count * size][rank::size].tolist()
        start, self._skip = self._skip, 0
        for index, seed in zip(order[start:], seeds[start:].tolist(), strict=True):
            yield Draw(index, seed)

    def __len__(self) -> int:
        if self.repeated is not None:
            return len(self.repeated)
        return len(self.dataset) // self.num_replicas  # type: ignore[arg-type]


class EvalSampler(DistributedSampler[Draw]):
    """Every item exactly once over all processes: no duplicates to even the ranks out, so that metrics are exact."""

    def __init__(self, dataset: Sized, num_replicas: int, rank: int) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=False)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(i, 0) for i in range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


class EvalLoader(DataLoader[Any]):
    """A loader with a batch at least: a process without items has an empty one, since all measure together."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return super().__iter__() if super().__len__() else iter([self.collate_fn([])])

    def __len__(self) -> int:
        return max(1, super().__len__())


class ResumableLoader(DataLoader[Any]):
    """A loader that goes on in the middle of an epoch: Lightning keeps its state in every checkpoint.

    Its sampler must be a :class:`TrainSampler`; the batches before the interruption are not decoded again.

    Args:
        dataset: takes draws.
        trainer: may limit the batches of an epoch.
    """

    _done = 0
    _resume_at = 0

    def __init__(self, dataset: Dataset[Any], trainer: pl.Trainer | None, **options: Any) -> None:
        # A generator of its own: else each epoch would draw the workers' seeds from the model's random numbers.
        options["generator"] = torch.Generator()
        # The trainer has this loader: in a cycle of the two, the workers would be ended late and by force.
        self._trainer = weakref.ref(trainer) if trainer is not None else None
        super().__init__(dataset, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator function: nothing is drawn before the first batch is asked for, since Lightning makes the
        # iterator before it tells the sampler the epoch.
        assert isinstance(self.sampler, TrainSampler)
        assert self.batch_size is not None
        self._done, self._resume_at = self._resume_at, 0
        self.sampler.skip(self._done * self.batch_size)
        for batch in self.arrange(super().__iter__(), self._done):
            self._done += 1
            yield batch

    def arrange(self, batches: Iterator[Any], start: int) -> Iterator[Any]:
        """The batches as they are to be yielded, the first being number ``start`` of the epoch."""
        return batches

    @property
    def trainer(self) -> pl.Trainer | None:
        """The trainer that asks for the batches, if one does."""
        return self._trainer() if self._trainer is not None else None

    def epoch_batches(self) -> int:
        """How many batches an epoch has at this moment."""
        trainer = self.trainer
        return int(min(trainer.num_training_batches, len(self))) if trainer is not None else len(self)

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch are done; 0 between epochs."""
        return {"batches": self._done % max(1, self.epoch_batches())}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass starts behind the batches that are done."""
        self._resume_at = state["batches"]
