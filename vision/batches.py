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
            Mixup or CutMix is on; of pictures labelled pixel by pixel int64 ``(B, H, W)``, 255 where there is no label.
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


class VideoBatch(TypedDict):
    """Clips of videos that are labelled in one or several label sets (an action; or a noun and a verb).

    Keys:
        video: uint8 ``(B, V, T, 3, H, W)``, RGB in [0, 255]: ``V`` views of each video (clips along time times crops),
            one in training; ``T`` frames. Not normalised: what takes the frames does it, a quarter of the bytes having
            travelled. In evaluation ``B`` is the number of readable videos, so it may be 0.
        labels: int64 ``(B, sets)`` class indices, columns in the order of the schema, -1 where a label is missing.
        path: the file of each video, ``B`` strings.
        unreadable: (path, reason) of files that could not be read while this batch was made.
    """

    video: Tensor
    labels: Tensor
    path: list[str]
    unreadable: list[tuple[str, str]]


class FeatureBatch(TypedDict):
    """What a frozen network made of clips before the training began, in the place of the clips.

    Keys:
        features: float32 ``(B, V, ...)``: of each view, whatever the task's ``frozen_features`` gave for it.
        labels: as in :class:`VideoBatch`.
        path: the file of each video, ``B`` strings.
        unreadable: (path, reason) of files that could not be read while the features were made.
    """

    features: Tensor
    labels: Tensor
    path: list[str]
    unreadable: list[tuple[str, str]]


class StreamBatch(TypedDict):
    """Images in the order in which a deployed network meets them, some of them corrupted.

    Keys:
        image: as in :class:`ImageBatch`.
        target: int64 ``(B,)`` class indices; of pictures labelled pixel by pixel ``(B, H, W)``, 255 where there is no
            label. For measuring: what adapts never sees it.
        path: the file of each image (or file and row), ``B`` strings.
        unreadable: (path, reason) of files that could not be read while this batch was made.
        domain: what was done to each image: a corruption's name, or ``clean``; ``B`` strings.
        position: how many stretches of the stream lie before this one; a stretch is a corruption at a severity, or,
            where corruptions are mixed, a round.
        round: how many times the whole order of corruptions lies before this batch.
        probe: clean images to measure with and not to adapt on. They come after a stretch, whose position they have;
            those before the first stretch have position -1.
    """

    image: Tensor
    target: Tensor
    path: list[str]
    unreadable: list[tuple[str, str]]
    domain: list[str]
    position: int
    round: int
    probe: bool


class DomainImages(TypedDict):
    """Pictures of one domain, or the features that a frozen network made of them before the training began.

    Keys:
        media: float32 ``(B, 3, H, W)``, images as in :class:`ImageBatch`; or float32 ``(B, D)``, features.
        index: int64 ``(B,)``: which row of the domain each is.
        group: int64 ``(B,)``: what each is taken for. In training of source pictures their class, of target pictures
            -1, and of those that were drawn by group that group; in evaluation the class, numbered as in
            ``target_names`` of the data module, -1 where there is no label.
        thumbnail: uint8 ``(B, 3, side, side)``, RGB in [0, 255], what a decoder is to draw; ``(B, 0)`` without one.
        path: the file of each, ``B`` strings.
        unreadable: (path, reason) of files that could not be read while this was made.
    """

    media: Tensor
    index: Tensor
    group: Tensor
    thumbnail: Tensor
    path: list[str]
    unreadable: list[tuple[str, str]]


class DomainBatch(TypedDict):
    """A step of domain adaptation: labelled source pictures and unlabelled target pictures.

    Keys:
        source: drawn evenly from the source, ``group`` being their classes.
        target: drawn evenly from the target, ``group`` being -1: no training sees a label of the target's.
        aligned_source: of some matched pairs of a source class and a target cluster, a few pictures each; ``group`` is
            the pair. Empty (``B`` = 0) while there are no pairs.
        aligned_target: the same pairs' pictures of the target.
        clustered: some target pictures of each of a few target clusters; ``group`` is the cluster.
        grouping: how many times pairs and clusters had been set when the last three were drawn.
        unreadable: (path, reason) of files that could not be read while this batch was made.
    """

    source: DomainImages
    target: DomainImages
    aligned_source: DomainImages
    aligned_target: DomainImages
    clustered: DomainImages
    grouping: int
    unreadable: list[tuple[str, str]]


class TextBatch(TypedDict):
    """Pictures of one word each.

    Keys:
        image: as in :class:`ImageBatch`.
        text: the words, in the charset; "" where there is no label (prediction).
        path: the file of each picture, or ``LMDB#number``; ``B`` strings.
        unreadable: (path, reason) of pictures that could not be read while this batch was made.
    """

    image: Tensor
    text: list[str]
    path: list[str]
    unreadable: list[tuple[str, str]]
