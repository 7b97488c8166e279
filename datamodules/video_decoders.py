"""Video files frame by frame: one class a decoder, all of which give the same frames."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.decoding import UnreadableFileError
from datamodules.video_damage import why_closed
from vision.errors import InputError, did_you_mean

# FFmpeg reports damaged files on stderr by itself; here they become one error each.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

# Processes decode side by side; on two cores a decoder with all threads did 1.2 times the work for the same frames.
_THREADS = 1
# In a row, after which a video counts as ended: as many as encoders leave between key frames.
_DAMAGED_PACKETS = 250


class UnreadableVideoError(UnreadableFileError):
    """A video, or a folder of frames, that cannot be decoded."""


class Video(ABC):
    """An open video, from which frames are taken in their order.

    Args:
        path: the file.

    Attributes:
        count: frames as the container has it, an estimate; 0 or less where it is unknown.
        rate: frames a second on average, 0 where it is unknown.
        width: pixels.
        height: pixels.

    Raises:
        UnreadableVideoError: at construction, the file cannot be opened.
    """

    count: int
    rate: float
    width: int
    height: int

    def __init__(self, path: str) -> None:
        self.path = path
        self.restart()

    @abstractmethod
    def restart(self) -> None:
        """Opens the file, again where it is open: the next frame is the first."""

    @abstractmethod
    def grab(self) -> bool:
        """Goes to the next frame without converting it; False at the end."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """When the grabbed frame is shown, from the beginning of the stream."""

    @abstractmethod
    def retrieve(self) -> NDArray[np.uint8]:
        """The grabbed frame: ``(H, W, 3)``, RGB, upright."""

    @abstractmethod
    def seek(self, seconds: float) -> None:
        """Goes near a time, nearly always before it; the timestamp of the frame that is then grabbed says where."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _OpenCVVideo(Video):
    """OpenCV with the FFmpeg in its wheel; ``path`` may also be a stream's address."""

    def restart(self) -> None:
        self._capture = cv2.VideoCapture(self.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, _THREADS])
        if not self._capture.isOpened():
            raise UnreadableVideoError(self.path, why_closed(self.path, "OpenCV"))
        numbers = (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        self.count, self.width, self.height = (int(self._capture.get(number)) for number in numbers)
        self.rate = self._capture.get(cv2.CAP_PROP_FPS)

    def grab(self) -> bool:
        # False is said of a damaged packet as of the end; a broken connection would be waited for each time.
        tries = 1 if "://" in self.path else _DAMAGED_PACKETS
        return any(self._capture.grab() for _ in range(tries))

    @property
    def seconds(self) -> float:
        return self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000

    def retrieve(self) -> NDArray[np.uint8]:
        done, frame = self._capture.retrieve()
        if not done:
            raise UnreadableVideoError(self.path, f"the frame at {self.seconds:.2f} s cannot be decoded")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)

    def seek(self, seconds: float) -> None:
        self._capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * seconds)

    def close(self) -> None:
        self._capture.release()


class _PyAVVideo(Video):
    """PyAV with the FFmpeg in its wheel."""

    _frame: Any

    def restart(self) -> None:
        av = _package("av", "pyav", "pip install 'frugal-vision[video]'")
        try:
            self._container = av.open(self.path, metadata_errors="ignore")
        except av.FFmpegError as error:
            raise UnreadableVideoError(self.path, why_closed(self.path, "PyAV")) from error
        if not self._container.streams.video:
            raise UnreadableVideoError(self.path, "no video stream")
        stream = self._stream = self._container.streams.video[0]
        # A stream in a codec that this FFmpeg lacks has no context.
        if stream.codec_context is None:
            raise UnreadableVideoError(self.path, why_closed(self.path, "PyAV"))
        stream.codec_context.thread_count = _THREADS
        self.rate = float(stream.guessed_rate or 0)
        duration = (self._container.duration or 0) / av.time_base
        self.count = stream.frames or round(duration * self.rate)
        self.width, self.height = stream.codec_context.width, stream.codec_context.height
        self._errors = av.FFmpegError
        self._frames, self._frame = self._decode(), None

    def _decode(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            # A damaged packet costs its own frames, not those behind it, as with OpenCV.
            try:
                packet = next(packets)
            except (StopIteration, self._errors):
                return
            try:
                frames = packet.decode()
            except self._errors:
                continue
            yield from frames

    def grab(self) -> bool:
        self._frame = next(self._frames, None)
        return self._frame is not None

    @property
    def seconds(self) -> float:
        pts = self._frame.pts if self._frame.pts is not None else (self._frame.dts or 0)
        return float((pts - (self._stream.start_time or 0)) * self._stream.time_base)

    def retrieve(self) -> NDArray[np.uint8]:
        frame: NDArray[np.uint8] = self._frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(frame, (self._frame.rotation // 90) % 4))

    def seek(self, seconds: float) -> None:
        offset = round(seconds / self._stream.time_base) + (self._stream.start_time or 0)
        try:
            self._container.seek(offset, stream=self._stream)
        except self._errors:
            self._frames = iter(())
        else:
            self._frames = self._decode()

    def close(self) -> None:
        self._container.close()


class _TorchCodecVideo(Video):
    """TorchCodec, which needs the libraries of an FFmpeg on the machine; it scans the file, so that it can count."""

    def restart(self) -> None:
        decoders = _package("torchcodec.decoders", "torchcodec", "pip install torchcodec")
        try:
            self._decoder = decoders.VideoDecoder(
                self.path, dimension_order="NHWC", num_ffmpeg_threads=_THREADS, seek_mode="exact"
            )
        except (RuntimeError, ValueError) as error:
            _check_libraries(error)
            raise UnreadableVideoError(self.path, why_closed(self.path, "TorchCodec")) from error
        about = self._decoder.metadata
        self.count, self.rate = about.num_frames or 0, about.average_fps or 0.0
        self.width, self.height = about.width or 0, about.height or 0
        self._begin = about.begin_stream_seconds or 0.0
        self._index, self._grabbed = -1, None

    def grab(self) -> bool:
        self._index, self._grabbed = self._index + 1, None
        return self._index < self.count

    def _frame(self) -> Any:
        if self._grabbed is None:
            try:
                self._grabbed = self._decoder.get_frame_at(self._index)
            except RuntimeError as error:
                raise UnreadableVideoError(self.path, f"frame {self._index} cannot be decoded") from error
        return self._grabbed

    @property
    def seconds(self) -> float:
        return float(self._frame().pts_seconds - self._begin)

    def retrieve(self) -> NDArray[np.uint8]:
        frame: NDArray[np.uint8] = self._frame().data.numpy()
        return frame

    def seek(self, seconds: float) -> None:
        self._index = min(int(seconds * self.rate), self.count) - 1

    def close(self) -> None:
        del self._decoder


_CLASSES: dict[str, type[Video]] = {"opencv": _OpenCVVideo, "pyav": _PyAVVideo, "torchcodec": _TorchCodecVideo}
DECODERS = tuple(_CLASSES)


def installed_decoders() -> list[str]:
    """The decoders that are installed and find their libraries, in the order of ``DECODERS``."""
    return [name for name in DECODERS if _works(name)]


def _works(decoder: str) -> bool:
    try:
        _CLASSES[decoder](os.devnull).close()
    except UnreadableVideoError:
        return True
    except InputError:
        return False
    return True


def open_video(path: str | Path, decoder: str, max_pixels: int) -> Video:
    """Opens a video file.

    Args:
        path: the file; its content counts, not its suffix.
        decoder: one of ``DECODERS``.
        max_pixels: videos with larger frames are refused before they are decoded.

    Raises:
        UnreadableVideoError: the file is missing, empty, damaged, no video, or has too large frames.
        InputError: there is no such decoder, or it is not installed.
    """
    if decoder not in _CLASSES:
        raise InputError(
            f"decoder: no decoder '{decoder}'{did_you_mean(decoder, _CLASSES)}; there are {', '.join(_CLASSES)}"
        )
    try:
        with Path(path).open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UnreadableVideoError(path, f"cannot be read ({error.strerror})") from error
    if empty:
        raise UnreadableVideoError(path, "empty file (0 bytes)")
    # Absolute, since FFmpeg takes what stands before a colon for a protocol.
    video = _CLASSES[decoder](os.path.abspath(path))  # noqa: PTH100 (resolve() follows links)
    if video.width * video.height > max_pixels:
        video.close()
        raise UnreadableVideoError(path, f"{video.width}x{video.height} is more than {max_pixels:,} pixels")
    return video


def open_stream(address: str) -> Video:
    """Opens what is sent over a network, ``rtsp://``, ``http://`` and the like, with OpenCV.

    Raises:
        UnreadableVideoError: there is no stream at the address.
    """
    return _OpenCVVideo(address)


def _package(name: str, decoder: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"decoder: {decoder} is not installed: {install}") from error
    except RuntimeError as error:
        _check_libraries(error)
        raise


def _check_libraries(error: Exception) -> None:
    if "libtorchcodec" in str(error):
        raise InputError(
            "decoder: torchcodec finds no libraries of FFmpeg; install FFmpeg (4 or later), or use opencv or pyav"
        ) from error
