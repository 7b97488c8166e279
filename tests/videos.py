"""Tiny videos whose frames say their own numbers, for tests."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

BITS = 9


def numbered_frame(number: int, height: int = 48, width: int = 72) -> NDArray[np.uint8]:
    """A frame that carries its number as bright and dark bars, read by :func:`frame_number` after any codec.

    The upper half is redder and the lower half bluer, so that a mix-up of channels or a rotation shows.
    """
    bars = np.array([number >> bit & 1 for bit in range(BITS)])
    bright = 60 + 120 * bars[np.arange(width) * BITS // width]
    frame = np.repeat(np.broadcast_to(bright, (height, width))[..., None], 3, axis=-1)
    frame[: height // 2, :, 0] += 60
    frame[height // 2 :, :, 2] += 60
    return frame.astype(np.uint8)


def numbered_frames(count: int, height: int = 48, width: int = 72) -> list[NDArray[np.uint8]]:
    """Frames number 0 to ``count - 1``."""
    return [numbered_frame(number, height, width) for number in range(count)]


def frame_number(frame: NDArray[np.uint8]) -> int:
    """The number that a frame carries."""
    width = frame.shape[1]
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(int(frame[:, centre, 1].mean() > 120) << bit for bit, centre in enumerate(centres))


def numbers(frames: Iterable[NDArray[np.uint8]]) -> list[int]:
    """The numbers of several frames."""
    return [frame_number(frame) for frame in frames]


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float = 10, fourcc: str = "mp4v") -> Path:
    """Writes RGB frames with OpenCV: mp4v (mp4, mov, mkv), MJPG or FFV1 (avi), VP80 or VP90 (webm)."""
    writer = None
    for frame in frames:
        if writer is None:
            size = (frame.shape[1], frame.shape[0])
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*fourcc), fps, size)
            assert writer.isOpened(), f"OpenCV has no encoder for {fourcc} here"
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    assert writer is not None, "no frames"
    writer.release()
    return path


def write_with_pyav(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    codec: str = "libx264",
    fps: int = 10,
    times: list[int] | None = None,
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    """Writes RGB frames with PyAV: what OpenCV cannot, as h264, grey, odd sizes and ``times`` of one's own (ms)."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.pix_fmt, (stream.height, stream.width) = pixels, frames[0].shape[:2]
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def rotate_header(path: Path, degrees: int, height: int, width: int) -> Path:
    """Makes an mp4 say that it is to be shown turned by 90, 180 or 270 degrees clockwise, as telephones do."""
    matrix = {
        90: (0, 65536, 0, -65536, 0, 0, height << 16, 0, 1 << 30),
        180: (-65536, 0, 0, 0, -65536, 0, width << 16, height << 16, 1 << 30),
        270: (0, -65536, 0, 65536, 0, 0, 0, width << 16, 1 << 30),
    }[degrees]
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, place) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, place, *matrix)
    path.write_bytes(data)
    return path
