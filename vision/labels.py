"""What images are labelled with when they are labelled for several tasks: names, classes, and which are ordered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vision.errors import InputError, did_you_mean

MISSING = -1
"""The index of a label that is not given."""

IGNORED = 255
"""The class of a pixel that has no label."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# What columns, measures and outputs are called beside the tasks; and how columns of a task end.
_TAKEN = {"image_path", "images", "mean", "path", "review_rank", "status"}
_ENDINGS = ("_entropy", "_probability")


def count_labels(labels: Tensor) -> Tensor:
    """How many labels of ``(B, tasks)`` are there: int64 ``(tasks,)``."""
    return (labels != MISSING).sum(dim=0)


@dataclass(frozen=True)
class TaskLabels:
    """The classes of one task.

    Attributes:
        classes: names, in the order of the indices; lowest first where they are ordered.
        ordinal: the classes are steps of one scale, as degrees of damage are.
    """

    classes: tuple[str, ...]
    ordinal: bool = False

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class LabelSchema:
    """Tasks by name, in the order of the columns of a batch's labels.

    The order of tasks and classes is what a configuration says, never what a file happens to hold.
    """

    tasks: Mapping[str, TaskLabels]

    @property
    def names(self) -> list[str]:
        """The tasks' names."""
        return list(self.tasks)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> LabelSchema:
        """From what a YAML file holds: a task's name, and its classes or ``{classes: [...], ordinal: true}``.

        Raises:
            InputError: a name is unusable, or classes are missing, repeated or fewer than two; the task is named.
        """
        if not isinstance(values, Mapping) or not values:
            raise InputError("tasks: expected the tasks by name, each with its list of classes; found none")
        return cls({str(name): _task(str(name), entry) for name, entry in values.items()})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a JSON file; :meth:`parse` reads them."""
        return {name: {"classes": list(of.classes), "ordinal": of.ordinal} for name, of in self.tasks.items()}

    def subset(self, names: Iterable[str]) -> LabelSchema:
        """Some of the tasks, in the given order.

        Raises:
            InputError: there is no such task.
        """
        chosen = list(names)
        for name in chosen:
            if name not in self.tasks:
                raise InputError(
                    f"tasks: no task '{name}'{did_you_mean(name, self.tasks)}; there are {', '.join(self.tasks)}"
                )
        return LabelSchema({name: self.tasks[name] for name in chosen})


def _task(name: str, entry: Any) -> TaskLabels:
    if not _NAME.fullmatch(name):
        raise InputError(f"tasks: '{name}' is no name for a task (a letter, then letters, digits and underscores)")
    if name in _TAKEN or name.endswith(_ENDINGS):
        raise InputError(f"tasks: '{name}' cannot be a task's name: results have a column or measure of that name")
    options = dict(entry) if isinstance(entry, Mapping) else {"classes": entry}
    classes, ordinal = options.pop("classes", None), options.pop("ordinal", False)
    if options:
        raise InputError(f"tasks: {name} takes classes and ordinal, found {', '.join(map(str, options))}")
    if not isinstance(classes, Sequence) or isinstance(classes, str) or len(classes) < 2:
        raise InputError(f"tasks: {name} needs a list of at least two classes, found {classes!r}")
    if not isinstance(ordinal, bool):
        raise InputError(f"tasks: {name}.ordinal is true or false, found {ordinal!r}")
    if wrong := [entry for entry in classes if not isinstance(entry, str) or not entry or entry != entry.strip()]:
        raise InputError(f"tasks: {name}: a class is a text (in quotes, if need be), found {wrong[0]!r}")
    if repeated := {entry for entry in classes if list(classes).count(entry) > 1}:
        raise InputError(f"tasks: {name}: the class '{min(repeated)}' is there more than once")
    return TaskLabels(tuple(classes), ordinal)
