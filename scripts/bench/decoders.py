"""Ways of reading a few frames of a video, beside each other on the same files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.builtin.photographs import photographs
from datamodules.video_decoding import installed_decoders, read_frames
from scripts.bench.results import rounded
from vision.clips import uniform_indices
from vision.measure import compare

LENGTH, HEIGHT, WIDTH, RATE = 300, 240, 320, 30
# Name, OpenCV's code, container.
CODECS = (("MPEG-4", "mp4v", "mp4"), ("Motion JPEG", "MJPG", "avi"), ("VP8", "VP80", "webm"), ("VP9", "VP90", "webm"))

Frames = NDArray[np.uint8]


def compare_decoders(folder: Path, frames: int = 16) -> list[dict[str, Any]]:
    """Reads frames that spread over 10 seconds of video in every way and every codec, by turns, one thread each.

    H.264 is written with PyAV where that is installed (no wheel of OpenCV has an encoder for it), the others with
    OpenCV where it can.

    Args:
        folder: for the videos.
        frames: that are wanted of each.

    Returns:
        A row for each codec and way. Metrics: ``ms``, ``ms_low`` and ``ms_high`` (median and quartiles), and
        ``exact_frames``: how many of the frames equal those of reading everything.
    """
    rows = []
    for codec, path in _videos(folder):
        ways = _ways(path, uniform_indices(LENGTH, frames))
        times = compare(ways, rounds=5, seconds=0.1, warm_up=0.1)
        print(f"{codec}\n{times}\n", flush=True)
        expected = ways["OpenCV, everything"]()
        for way, read in ways.items():
            spread = times.latency(way)
            metrics = {
                "ms": rounded(spread.median),
                "ms_low": rounded(spread.low),
                "ms_high": rounded(spread.high),
                "exact_frames": sum(map(np.array_equal, read(), expected)),
            }
            row = {"name": f"{codec}, {way}", "group": "decoders", "codec": codec, "way": way}
            rows.append({**row, "metrics": metrics})
    return rows


def _ways(path: Path, indices: NDArray[np.intp]) -> dict[str, Callable[[], Frames]]:
    ours = {
        f"ours, {decoder}": partial(read_frames, path, lambda _: indices, decoder=decoder)
        for decoder in installed_decoders()
    }
    return {
        **ours,
        "OpenCV, everything": partial(_everything, path, indices),
        "OpenCV, seeks": partial(_seeks, path, indices),
    }


def _capture(path: Path) -> cv2.VideoCapture:
    return cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])


def _everything(path: Path, indices: NDArray[np.intp]) -> Frames:
    """All frames are converted, then some are taken."""
    capture, read = _capture(path), []
    while (found := capture.read())[0]:
        read.append(cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB))
    return np.stack([read[index] for index in indices]).astype(np.uint8, copy=False)


def _seeks(path: Path, indices: NDArray[np.intp]) -> Frames:
    """The position is set for each frame."""
    capture, read = _capture(path), []
    for index in indices.tolist():
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        read.append(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
    return np.stack(read).astype(np.uint8, copy=False)


# --------------------------------------------------------------------------------------------------------- the videos
def _videos(folder: Path) -> Iterator[tuple[str, Path]]:
    """The same pictures in every codec that can be written here."""
    pictures = _pictures()
    if "pyav" in installed_decoders():
        yield "H.264", _write_h264(folder / "h264.mp4", pictures)
    for codec, code, suffix in CODECS:
        path = folder / f"{code}.{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), RATE, (WIDTH, HEIGHT))
        if writer.isOpened():
            for picture in pictures:
                writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            writer.release()
            yield codec, path


def _pictures() -> list[Frames]:
    """A window that goes around over a photograph."""
    photograph = photographs()["temple"]
    turns = 2 * np.pi * np.arange(LENGTH) / LENGTH
    height, width = photograph.shape[0] - HEIGHT, photograph.shape[1] - WIDTH
    corners = zip(
        (height * (1 - np.cos(turns)) / 2).astype(int), (width * (1 - np.sin(turns)) / 2).astype(int), strict=True
    )
    return [np.ascontiguousarray(photograph[y : y + HEIGHT, x : x + WIDTH]) for y, x in corners]


def _write_h264(path: Path, pictures: list[Frames]) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path
