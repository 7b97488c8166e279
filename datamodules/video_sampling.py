"""Which frames of a video and which parts of a frame become a view: the rules of ViViT's training and test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vision.clips import uniform_indices
from vision.errors import InputError


def dense_indices(count: int, frames: int, stride: int, start: int | NDArray[np.intp]) -> NDArray[np.intp]:
    """Frames at equal distances from ``start`` on; a video that ends before is repeated from its beginning.

    Args:
        count: frames that the video has, at least 1.
        frames: frames of the clip.
        stride: from one frame to the next.
        start: of one clip, or ``(W,)`` of several.

    Returns:
        ``(frames,)``, or ``(W, frames)`` for several starts; in [0, count).
    """
    indices: NDArray[np.intp] = (np.asarray(start, np.intp)[..., None] + stride * np.arange(frames)) % count
    return indices


def random_start(count: int, frames: int, stride: int, random: np.random.Generator) -> int:
    """Where a clip of the training starts: anywhere that leaves room for it.

    A video that is too short for the clip starts anywhere, since it is repeated.

    Returns:
        In [0, count - (frames - 1) * stride), or in [0, count).
    """
    room = count - (frames - 1) * stride
    return int(random.integers(room if room > 0 else count))


def window_starts(count: int, frames: int, stride: int, windows: int) -> NDArray[np.intp]:
    """Where the clips of the test start: spread from the first to the last that fits; a single one in the middle.

    All start at 0 where the video is too short for a clip.

    Returns:
        ``(windows,)``, rounded down.
    """
    last = max(0, count - frames * stride)
    if windows == 1:
        return np.array([last // 2])
    starts: NDArray[np.intp] = np.arange(windows) * last // (windows - 1)
    return starts


def uniform_clip(count: int, frames: int) -> NDArray[np.intp]:
    """:func:`~vision.clips.uniform_indices` for clips of one length: in a video that is too short, frames stand still.

    Returns:
        ``(frames,)``, ascending.
    """
    if frames <= count:
        return uniform_indices(count, frames)
    still: NDArray[np.intp] = np.arange(frames) * count // frames
    return still


def crop_corners(height: int, width: int, size: int, crops: int) -> NDArray[np.intp]:
    """Upper left corners of the square crops of a test: one in the centre, or three along the longer side.

    Args:
        height: of the frame, pixels.
        width: of the frame, pixels.
        size: side of the crop, pixels.
        crops: 1, or 3: left, centre, right (of an upright frame top, centre, bottom).

    Returns:
        ``(crops, 2)``: y and x. Half pixels are rounded up.

    Raises:
        InputError: ``crops`` is neither 1 nor 3, or the crop is larger than the frame.
    """
    if crops not in (1, 3):
        raise InputError(f"crops must be 1 or 3, got {crops}")
    if size > min(height, width):
        raise InputError(f"a crop of {size} pixels does not fit a frame of {width}x{height}")
    rest = np.array([height - size, width - size])
    corners = np.tile((rest + 1) // 2, (crops, 1))
    if crops == 3:
        along = int(width >= height)
        corners[0, along], corners[2, along] = 0, rest[along]
    return corners
