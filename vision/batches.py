"""What passes between a data module and a task: batches, and nothing else.

``datamodules`` and ``tasks`` never import each other; both import these types.
"""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor


class ImageBatch(TypedDict):
    """Images with one class each.

    Keys:
        image: float32 ``(B, 3, H, W)``, RGB, scaled to [0, 1] and then normalised by the preprocessing's mean
            and standard deviation. In evaluation ``B`` is the number of readable images, so it may be 0.
        target: int64 ``(B,)`` class indices, or float32 ``(B, classes)`` probabilities that sum to 1 when
            Mixup or CutMix is on.
        path: the file of each image, ``B`` strings; of a mixed image, the file that it started from.
        unreadable: (path, reason) of files that could not be read while this batch was made.
    """

    image: Tensor
    target: Tensor
    path: list[str]
    unreadable: list[tuple[str, str]]


class MultitaskBatch(TypedDict):
    """Images that are labelled for several tasks, each label of which may be missing.

    Keys:
        image: as in :class:`ImageBatch`.
        labels: int64 ``(B, tasks)`` class indices, columns in the order of the schema, -1 where a label is missing.
        labelled: int64 ``(tasks,)``: how many labels of each task this process has over all the batches that make up
            one optimizer step (as many as this batch has, where gradients are not accumulated).
        path: the file of each image, ``B`` strings.
        unreadable: (path, reason) of files that could not be read while this batch was made.
    """

    image: Tensor
    labels: Tensor
    labelled: Tensor
    path: list[str]
    unreadable: list[tuple[str, str]]
