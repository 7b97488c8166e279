"""Videos to arrays: chosen frames of files and of folders of frames, and streams frame by frame."""

from __future__ import annotations

import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.decoding import MAX_PIXELS, SUFFIXES, UnreadableImageError, read_image
from datamodules.video_decoders import (
    DECODERS,
    UnreadableVideoError,
    Video,
    installed_decoders,
    open_stream,
    open_video,
)
from vision.errors import InputError

__all__ = [
    "DECODERS",
    "FOLDER_RATE",
    "VIDEO_SUFFIXES",
    "Span",
    "UnreadableVideoError",
    "fastest_decoder",
    "installed_decoders",
    "iterate_frames",
    "read_frames",
]

VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp")
FOLDER_RATE = 30.0
"""Frames a second that a folder of frames is taken to have."""

# Frames before a span from which on a seek is tried, as many as encoders leave between key frames: a span a minute into
# h264 at 320x240 then takes 27 ms in place of 200.
_WORTH_A_SEEK = 250
# Seconds before a span at which a seek aims, one after the other as long as it lands behind the span's start.
_AHEAD = (0.5, 4.0, 32.0)
_MICROSECOND = 1e-6  # timestamps are fractions, spans decimal numbers


@dataclass(frozen=True)
class Span:
    """Part of a video.

    Attributes:
        start: its first moment or frame; frames count from 0.
        end: the first moment or frame behind it; None for the end of the video.
        unit: of both. Folders of frames have no seconds.
    """

    start: float
    end: float | None
    unit: Literal["seconds", "frames"]

    @property
    def last(self) -> float:
        """``end``, infinite for the end of the video."""
        return math.inf if self.end is None else self.end

    def __str__(self) -> str:
        return f"{self.unit} {self.start:g} to {'the end' if self.end is None else f'{self.end:g}'}"


def read_frames(
    path: str | Path,
    choose: Callable[[int], NDArray[np.intp]],
    span: Span | None = None,
    decoder: str = "opencv",
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Decodes some frames of a video file, or of a folder of frames in their natural order.

    A file is decoded in sequence and only what is wanted is converted, which is faster than seeking for frames that
    spread over a video. To a span in seconds that starts late it seeks; it goes by the timestamps of the frames, so
    that they are those of a reading from the beginning. A container's number of frames is an estimate: where the
    video ends before, or its frames come at another rate than stated, it is decoded to its end, and ``choose`` is
    asked again with the number of frames that there are.

    Args:
        path: the file or folder; a file's content counts, not its suffix.
        choose: given the number of frames of the span, the indices that are wanted: in [0, number), in any order,
            repeats allowed.
        span: the part of the video that counts; all of it by default.
        decoder: one of ``DECODERS``.
        max_pixels: videos with larger frames are refused before they are decoded.

    Returns:
        uint8 ``(n, H, W, 3)``: RGB, upright, in the order of the indices.

    Raises:
        UnreadableVideoError: the file is missing, empty, damaged, no video, without a frame in the span, or with
            frames of several or too large sizes.
        InputError: the decoder is unknown or not installed, or a span in seconds is asked of a folder.
    """
    if os.path.isdir(path):  # noqa: PTH112 (a million paths)
        return _read_folder(path, choose, span, max_pixels)
    with open_video(path, decoder, max_pixels) as video:
        expected = _expected(video, span, os.path.getsize(path))  # noqa: PTH202
        wanted = choose(expected) if expected else np.empty(0, np.intp)
        frames, real = _walk(video, span, set(wanted.tolist()), expected)
        if real == 0:
            raise UnreadableVideoError(path, f"no frame in {span}" if span else "no frame can be decoded")
        if real is not None and real != expected:
            if real < 0.9 * expected:
                warnings.warn(f"{path}: it ends after {real} of {expected} frames; those are used", stacklevel=2)
            wanted = choose(real)
            if missing := set(wanted.tolist()) - frames.keys():
                video.restart()
                frames |= _walk(video, span, missing, real)[0]
    return _stacked(path, [frames[index] for index in wanted.tolist()])


def _expected(video: Video, span: Span | None, size: int) -> int:
    """The number of frames that the container promises for the span; 0 where that is not known."""
    total = video.count if video.count <= size else 0  # no frame takes less than a byte
    if span is None:
        return max(0, total)
    rate = video.rate if span.unit == "seconds" else 1.0
    first = math.ceil(rate * (span.start - _MICROSECOND))
    last = total if span.end is None else min(total, math.ceil(rate * (span.end - _MICROSECOND)))
    return max(0, last - first)


def _walk(
    video: Video, span: Span | None, wanted: set[int], expected: int
) -> tuple[dict[int, NDArray[np.uint8]], int | None]:
    """The wanted frames of a span by their index, and the number of its frames where its end was reached.

    It is looked for where nothing or the last expected frame is wanted, and where the rate is not the stated one.
    """
    frames: dict[int, NDArray[np.uint8]] = {}
    last, length = max(wanted, default=None), 0
    for index in _grab_span(video, span):
        length = index + 1
        if index in wanted:
            frames[index] = video.retrieve()
        if index == last and length < expected and _is_even(video, span, index):
            return frames, None
    return frames, length


def _is_even(video: Video, span: Span | None, index: int) -> bool:
    """Whether the grabbed frame is shown when the rate says; if not, the number of frames may be another, too."""
    start = 0.0 if span is None else span.start if span.unit == "seconds" else span.start / (video.rate or 1)
    # The first frame is shown up to one frame's time behind the start; rates and timestamps are rounded.
    return -0.5 - 0.01 * index <= video.rate * (video.seconds - start) - index <= 1.5 + 0.01 * index


def _grab_span(video: Video, span: Span | None) -> Iterator[int]:
    """Grabs the frames of a span one after the other, and says their indices in it."""
    if span is not None and span.unit == "seconds":
        return _grab_seconds(video, span.start - _MICROSECOND, span.last - _MICROSECOND)
    return _grab_numbers(video, *((0, math.inf) if span is None else (int(span.start), span.last)))


def _grab_numbers(video: Video, start: int, end: float) -> Iterator[int]:
    for position in count_from():
        if position >= end or not video.grab():
            return
        if position >= start:
            yield position - start


def _grab_seconds(video: Video, start: float, end: float) -> Iterator[int]:
    grabbed, index = _go_to(video, start), 0
    while grabbed and (seconds := video.seconds) < end:
        if seconds >= start:
            yield index
            index += 1
        grabbed = video.grab()


def _go_to(video: Video, seconds: float) -> bool:
    """Grabs a frame that is not behind ``seconds``; False where there is no frame."""
    if seconds * video.rate > _WORTH_A_SEEK:
        for ahead in _AHEAD:
            if ahead >= seconds:
                break
            video.seek(seconds - ahead)
            # 0 is also the time of a frame that has none.
            if video.grab() and 0 < video.seconds <= seconds:
                return True
        video.restart()
    return video.grab()


def _stacked(path: str | Path, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if len({frame.shape for frame in frames}) > 1:
        sizes = sorted({f"{frame.shape[1]}x{frame.shape[0]}" for frame in frames})
        raise UnreadableVideoError(path, f"its frames have several sizes ({', '.join(sizes)})")
    return np.stack(frames)


# ---------------------------------------------------------------------------------------------- folders of frames
def _read_folder(
    folder: str | Path, choose: Callable[[int], NDArray[np.intp]], span: Span | None, max_pixels: int
) -> NDArray[np.uint8]:
    files = _frame_files(folder)
    if span is not None:
        if span.unit == "seconds":
            raise InputError(f"{folder}: a folder of frames has no timestamps: give the span in frames, not in seconds")
        files = files[int(span.start) : None if span.end is None else int(span.end)]
        if not files:
            raise UnreadableVideoError(folder, f"no frame in {span}")
    wanted = choose(len(files)).tolist()
    frames = {index: _read_frame(folder, files[index], max_pixels) for index in set(wanted)}
    return _stacked(folder, [frames[index] for index in wanted])


def _frame_files(folder: str | Path) -> list[str]:
    names = [name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not names:
        raise UnreadableVideoError(folder, f"a folder without frames ({', '.join(SUFFIXES)})")
    # Numbers of one width sort like text, a hundred thousand of them in a tenth of the time.
    return sorted(names, key=None if len({len(name) for name in names}) == 1 else _natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_frame(folder: str | Path, name: str, max_pixels: int) -> NDArray[np.uint8]:
    try:
        return read_image(os.path.join(folder, name), max_pixels)
    except UnreadableImageError as error:
        raise UnreadableVideoError(folder, f"{name}: {error.reason}") from error


# ------------------------------------------------------------------------------------------------ frame by frame
def iterate_frames(source: str | Path | int, decoder: str = "opencv") -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """All frames of a source one after the other, one of them in memory at a time.

    Args:
        source: a video file, a folder of frames (``FOLDER_RATE`` a second), a stream's address (``rtsp://``,
            ``http://``, ...) or a camera's number. Streams and cameras are read by OpenCV.
        decoder: of a file, one of ``DECODERS``.

    Yields:
        Seconds from the beginning, and the frame: uint8 ``(H, W, 3)``, RGB, upright.

    Raises:
        UnreadableVideoError: the source cannot be opened or has no frame.
        InputError: the camera cannot be opened, or the decoder is unknown or not installed.
    """
    if isinstance(source, int):
        yield from _camera(source)
        return
    if os.path.isdir(source):  # noqa: PTH112
        for index, name in enumerate(_frame_files(source)):
            yield index / FOLDER_RATE, _read_frame(source, name, MAX_PIXELS)
        return
    with open_stream(str(source)) if "://" in str(source) else open_video(source, decoder, MAX_PIXELS) as video:
        if not video.grab():
            raise UnreadableVideoError(source, "no frame can be decoded")
        yield video.seconds, video.retrieve()
        while video.grab():
            yield video.seconds, video.retrieve()


def _camera(number: int) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    capture = cv2.VideoCapture(number)
    try:
        started = time.monotonic()
        done, frame = capture.read()
        if not done:
            raise InputError(f"camera {number}: it cannot be opened or gives no picture")
        while done:
            yield time.monotonic() - started, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
            done, frame = capture.read()
    finally:
        capture.release()


# ---------------------------------------------------------------------------------------------- which is fastest
def fastest_decoder(files: Sequence[str | Path]) -> str:
    """The installed decoder that reads these files in the least time, measured by turns on the first three.

    Every fourth frame of the first 64 is read, three times. ``opencv`` where none of the files can be read.
    """
    decoders = installed_decoders()
    times: dict[str, list[float]] = {name: [] for name in decoders}
    for file in [file for file in files[:3] if len(decoders) > 1] * 3:
        for name in decoders:
            start = time.perf_counter()
            try:
                read_frames(file, lambda count: np.arange(0, min(count, 64), 4), decoder=name)
            except UnreadableVideoError:
                times[name].append(math.inf)
            else:
                times[name].append(time.perf_counter() - start)
    return min(decoders, key=lambda name: sum(times[name]))
