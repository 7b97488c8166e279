"""The classes of two domains: names, and the numbers that lists have for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.domain_listing import DomainPictures
from vision.errors import InputError, did_you_mean

MOST_CLASSES = 1_000_000  # where only the numbers of a list say how many there are


@cache
def published() -> Mapping[str, Any]:
    """``orders``: class names by data set (and by author, where they differ); ``splits``: by data set and setting."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("class_orders.json").read_text(encoding="utf-8"))
    return found


def read_order(order: str | None, split: str | Sequence[int] | None, root: Path) -> list[str] | None:
    """The class names in the order of their numbers; None where the data itself is to say it.

    Args:
        order: a published order's name, or a file with a name a line, absolute or below ``root``.
        split: where it names a data set, its order is taken by default.
        root: folder of the data.

    Raises:
        InputError: there is no such order or file, or the file is empty or names a class twice.
    """
    orders: dict[str, list[str]] = published()["orders"]
    if order is None:
        return orders[published()["default_orders"][split]] if isinstance(split, str) else None
    if order in orders:
        return orders[order]
    file = root / order
    if not file.is_file():
        raise InputError(
            f"data.class_order: no file {file}, and no published order '{order}'{did_you_mean(order, orders)}; "
            f"there are {', '.join(orders)}"
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not a text in UTF-8 (byte {error.start})") from error
    lines: dict[str, int] = {}
    for line, name in enumerate(map(str.strip, text.split("\n")), 1):
        if name in lines:
            raise InputError(f"{file}:{line}: '{name}' is in line {lines[name]} already")
        if name:
            lines[name] = line
    if not lines:
        raise InputError(f"{file}: the file has no classes")
    return list(lines)


def number_classes(
    domains: Sequence[DomainPictures], order: Sequence[str] | None
) -> tuple[list[str], list[NDArray[np.int64] | None]]:
    """The classes of all domains, and the class of each picture.

    Without an order, names are sorted without regard to case (numerically where all are numbers); numbers of lists
    are taken as they are, and called after the pictures' folders, where each number has one folder's name and each
    name one number.

    Returns:
        (class names, for each domain int64 ``(pictures,)`` indices into them or None without labels).

    Raises:
        InputError: a label is no class, or a number where the others are names; or a number and the picture's folder
            are two classes of the order; or two lists have other numbers for the same folders.
    """
    labelled = [domain for domain in domains if domain.labels is not None]
    if order is not None:
        names = list(order)
    else:
        numeric = [domain for domain in labelled if all(map(str.isdecimal, set(domain.labels or ())))]
        if numeric and len(numeric) < len(labelled):
            named = next(domain for domain in labelled if domain not in numeric)
            raise InputError(
                f"{numeric[0].place}: its labels are numbers, and those of {named.place} are names: data.class_order "
                "must say which is which"
            )
        if numeric and all(domain.lines is not None for domain in numeric):
            names = _called(numeric)
        else:
            found = {label for domain in labelled for label in domain.labels or ()}
            names = sorted(found, key=int) if numeric else sorted(found, key=lambda name: (name.casefold(), name))
    return names, [_indices(domain, names, given=order is not None) for domain in domains]


def _called(domains: Sequence[DomainPictures]) -> list[str]:
    """Names of numbers: those of the folders, where these and the numbers belong together one by one."""
    called: dict[int, str] = {}
    numbers: dict[str, tuple[int, str]] = {}
    plain = False
    most = 0
    for domain in domains:
        rows = {(int(label), domain.parent(row)): row for row, label in enumerate(domain.labels or ())}
        highest, row = max((number, row) for (number, _), row in rows.items())
        if highest >= MOST_CLASSES:
            raise InputError(f"{domain.where(row)}: label {highest} is not the number of a class")
        most = max(most, highest)
        of, folders = {number for number, _ in rows}, {name for _, name in rows}
        # A folder that is called by a number would be taken for that class; a sole one may hold whatever it likes.
        if len(of) < len(rows) or len(folders) < len(rows) or len(rows) < 2 or any(map(str.isdecimal, folders)):
            plain = True
            continue
        for (number, name), row in rows.items():
            before, where = numbers.setdefault(name, (number, domain.where(row)))
            if before != number:
                raise InputError(
                    f"{domain.where(row)}: the pictures in '{name}' have the label {number}, but {before} in {where}: "
                    "the lists have different orders"
                )
            plain = plain or called.setdefault(number, name) != name
    names = [str(number) if plain else called.get(number, str(number)) for number in range(most + 1)]
    return names if len(set(names)) == len(names) else [*map(str, range(most + 1))]


def _indices(domain: DomainPictures, names: Sequence[str], given: bool) -> NDArray[np.int64] | None:
    if domain.labels is None:
        return None
    index = {name: number for number, name in enumerate(names)}
    listed = domain.lines is not None
    numbers: dict[str, int] = {}
    for label in dict.fromkeys(domain.labels):
        # Names win over numbers: a class may be called "2".
        if label in index:
            numbers[label] = index[label]
            continue
        row = domain.labels.index(label)
        close = did_you_mean(label, names)
        if not listed:
            raise InputError(f"{domain.place}: the folder '{label}' is no class of data.class_order{close}")
        if not label.removeprefix("-").isdecimal():
            raise InputError(f"{domain.where(row)}: label '{label}' is no class{close} and no number")
        if not 0 <= int(label) < len(names):
            raise InputError(f"{domain.where(row)}: label {label} is not in 0 to {len(names) - 1}")
        numbers[label] = int(label)
    if listed and given:
        _check_folders(domain, names, index, numbers)
    return np.array([numbers[label] for label in domain.labels], np.int64)


def _check_folders(
    domain: DomainPictures, names: Sequence[str], index: Mapping[str, int], numbers: Mapping[str, int]
) -> None:
    """Lists of the same data with other numbers look alike; only the folders of their pictures tell."""
    seen = set[tuple[str, str]]()
    for row, label in enumerate(domain.labels or ()):
        pair = label, domain.parent(row)
        if pair in seen or label in index:
            continue
        seen.add(pair)
        if index.get(pair[1], numbers[label]) != numbers[label]:
            raise InputError(
                f"{domain.where(row)}: label {label} is '{names[numbers[label]]}' in data.class_order, but the picture "
                f"lies in '{pair[1]}': the list has another order ({_published_with(numbers[label], pair[1])})"
            )


def _published_with(number: int, name: str) -> str:
    fitting = [order for order, names in published()["orders"].items() if number < len(names) and names[number] == name]
    return f"data.class_order: {' or '.join(fitting)} would fit" if fitting else "no published one has it so"
