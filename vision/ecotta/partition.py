"""Where the blocks of a network are cut into groups (Sec. 3.1, Table 4c), and what a cut costs (Sec. 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from vision.ecotta.discovery import Block
from vision.errors import InputError

# Blocks per group that give the paper's megabytes where its rule of thumb does not: ResNet-50's 16 bottlenecks.
_BOTTLENECKS = {(16, 4): [4, 4, 4, 4], (16, 5): [2, 2, 4, 4, 4]}
_SHARES = {4: (1, 1, 2, 2), 5: (1, 1, 1, 1, 2)}


def default_sizes(blocks: int, groups: int, bottlenecks: bool = False) -> list[int]:
    """Blocks per group, shallow to deep: more cuts in the shallow part, as in the paper.

    Raises:
        InputError: there are fewer blocks than groups.
    """
    if not 1 <= groups <= blocks:
        raise InputError(f"attach: {groups} groups of {blocks} blocks; groups must be from 1 to {blocks}")
    if bottlenecks and (blocks, groups) in _BOTTLENECKS:
        return list(_BOTTLENECKS[blocks, groups])
    shares = _SHARES.get(groups, (1,) * groups)
    cuts, done = [0], 0
    for place, share in enumerate(shares):
        done += share
        cut = math.ceil(blocks * done / sum(shares) - 1e-9)
        cuts.append(min(max(cut, cuts[-1] + 1), blocks - (groups - 1 - place)))
    return [after - before for before, after in pairwise(cuts)]


def check_sizes(sizes: Sequence[int], blocks: int) -> list[int]:
    """The sizes, where they are positive and add up to the number of blocks.

    Raises:
        InputError: they do not.
    """
    if not sizes or min(sizes) < 1 or sum(sizes) != blocks:
        raise InputError(f"attach: partition {list(sizes)} must be positive numbers that add up to {blocks} blocks")
    return list(sizes)


def group_bytes(before: Sequence[int], after: Sequence[int]) -> int:
    """Bytes an image that the training of one meta network keeps, by the paper's count: the inputs of its layers."""
    return 4 * (math.prod(before[1:]) + 2 * math.prod(after[1:]))


def cheapest_near(
    blocks: Sequence[Block],
    wanted: Sequence[int],
    fixed_bytes: float,
    weights: ParameterBytes,
    batch: int,
    budget: float,
) -> list[int] | None:
    """The partition nearest to the wanted one (by its cuts) that fits into a budget, by the paper's count.

    Args:
        blocks: of the main path.
        wanted: sizes of the groups.
        fixed_bytes: an image's bytes that do not depend on the cuts.
        weights: bytes of parameters by the shapes before and after a group.
        batch: images of a step.
        budget: bytes.

    Returns:
        None where none fits.
    """
    target = list(_cuts(wanted))
    best: tuple[int, float, tuple[int, ...]] | None = None
    for inner in combinations(range(1, len(blocks)), len(wanted) - 1):
        cuts = (0, *inner, len(blocks))
        total = batch * fixed_bytes + weights.frozen
        for first, end in pairwise(cuts):
            before, after = blocks[first].before, blocks[end - 1].after
            total += batch * group_bytes(before, after) + weights.of(before, after)
        if total > budget:
            continue
        distance = sum(abs(a - b) for a, b in zip(inner, target, strict=True))
        if best is None or (distance, total) < best[:2]:
            best = (distance, total, cuts)
    return None if best is None else [b - a for a, b in pairwise(best[2])]


def _cuts(sizes: Sequence[int]) -> Iterator[int]:
    done = 0
    for size in sizes[:-1]:
        done += size
        yield done


class ParameterBytes:
    """Bytes of parameters by the paper's count: four for a trained one, one for a frozen one.

    Args:
        frozen: parameters of the network.
        kernel: of the meta networks' convolutions.
        separable: whether these are depthwise separable.
    """

    def __init__(self, frozen: int, kernel: int, separable: bool) -> None:
        self.frozen, self.kernel, self.separable = frozen, kernel, separable

    def of(self, before: Sequence[int], after: Sequence[int]) -> int:
        """Of a group's meta network."""
        inner, outer = before[1], after[1]
        conv = inner * self.kernel**2 + inner * outer if self.separable else inner * outer * self.kernel**2
        return 4 * (conv + 4 * outer)
