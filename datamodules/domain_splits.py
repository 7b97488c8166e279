"""Which classes of two domains are common, and which are of one domain alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.domain_classes import published
from vision.errors import InputError, did_you_mean, shorten

Setting = Literal["unida", "osda", "pda", "closed"]
_PRIVATE: dict[str, tuple[bool, bool]] = {
    "unida": (True, True),
    "osda": (False, True),
    "pda": (True, False),
    "closed": (False, False),
}
"""Whether the source, and whether the target, may have classes of its own."""


class ClassSplit(NamedTuple):
    """Class numbers; those that are in none of the three take no part."""

    common: list[int]
    source_private: list[int]
    target_private: list[int]


def check_split(split: str | Sequence[int] | None, setting: Setting) -> None:
    """That there is such a split and that it does not contradict the setting.

    Raises:
        InputError: it does, or there is none.
    """
    if setting not in _PRIVATE:
        raise InputError(f"setting must be one of {', '.join(_PRIVATE)}, got {setting}")
    if split is None:
        return
    if isinstance(split, str):
        splits = published()["splits"]
        if split not in splits:
            raise InputError(
                f"split: no published split of '{split}'{did_you_mean(split, splits)}; there are {', '.join(splits)}"
            )
        if setting not in splits[split]:
            raise InputError(f"split: that of {split} is published for {', '.join(splits[split])}, not for {setting}")
        return
    if len(split) != 3 or min(split) < 0 or split[0] < 1:
        raise InputError(
            "split must be a data set's name or how many classes are [common, source-private, target-private], "
            f"the first 1 or more, got {list(split)}"
        )
    for domain, may, number in zip(("source", "target"), _PRIVATE[setting], split[1:], strict=True):
        if number and not may:
            raise InputError(
                f"split: with setting {setting} the {domain} has no classes of its own, got {number} in {list(split)}"
            )


def split_classes(
    split: str | Sequence[int] | None,
    setting: Setting,
    names: Sequence[str],
    source: NDArray[np.int64],
    targets: Sequence[NDArray[np.int64] | None],
) -> ClassSplit:
    """Which classes take part, and where.

    Args:
        split: a data set's name, counts, or None: then the classes of the source are known, and only labels of the
            target's pictures, where there are any, say which it has of its own.
        setting: as the user knows it.
        names: of all classes.
        source: of each picture the class.
        targets: the same of each set of target pictures; None without labels.

    Raises:
        InputError: a split needs more classes than there are, or classes without source pictures, or labels of the
            target that are not there; or the labels contradict the setting.
    """
    present = np.bincount(source, minlength=len(names)) > 0
    if split is None:
        known = np.flatnonzero(present).tolist()
        private = sorted({int(number) for labels in targets if labels is not None for number in np.unique(labels)})
        private = [number for number in private if not present[number]]
        if private and not _PRIVATE[setting][1]:
            raise InputError(
                f"setting: with {setting} the target has no classes of its own, but its labels have "
                f"{shorten([names[number] for number in private])}"
            )
        return ClassSplit(known, [], private)
    if any(labels is None for labels in targets):
        raise InputError("split: classes of the target are left out by their labels, which its pictures do not have")
    if isinstance(split, str):
        ranges = published()["splits"][split][setting]
    else:
        ends = np.cumsum([0, *split]).tolist()
        ranges = list(pairwise(ends))
    if (needed := max(end for _, end in ranges)) > len(names):
        what = split if isinstance(split, str) else " + ".join(map(str, split))
        raise InputError(f"split: {what} needs {needed} classes, and the data has {len(names)}")
    found = ClassSplit(*(list(range(first, end)) for first, end in ranges))
    if absent := [names[number] for number in found.common + found.source_private if not present[number]]:
        raise InputError(f"split: the source has no pictures of {shorten(absent)}")
    return found
