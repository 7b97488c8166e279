"""Recognition on a stream, each frame encoded once however the windows overlap."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from vision.errors import InputError
from vision.vivit.model import FactorisedViViT


class Window(NamedTuple):
    """What a window of the stream was answered with.

    Attributes:
        first: index of the window's first frame in the stream.
        last: of its last one.
        logits: ``(num_classes,)``.
    """

    first: int
    last: int
    logits: Tensor


class StreamingRecogniser:
    """Feeds a network frame by frame at constant cost and memory.

    A tubelet is encoded by the spatial transformer when it is complete, and its summary kept in a ring as long as some
    window needs it. Positions in time belong to a window, so the adapter and the temporal transformer, the small part,
    run once a window. Equal to running the network on the same frames.

    Args:
        network: in evaluation mode.
        stride: frames of the stream from one frame of a window to the next.
        hop: tubelets from one window to the next.

    Raises:
        InputError: a number below 1, or a network that picks frames of a clip itself.
    """

    def __init__(self, network: FactorisedViViT, stride: int = 1, hop: int = 1) -> None:
        for name, value in (("stride", stride), ("hop", hop)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if (network.config.sampled_frames or network.config.frames) < network.config.frames:
            raise InputError("a network that samples frames of its clips cannot run on a stream: it needs whole clips")
        self.network, self.stride, self.hop = network, stride, hop
        self.length, self.tubelet = network.config.tubelets, network.config.tubelet
        self._ring: deque[Tensor] = deque(maxlen=self.length)
        self._pending: list[Tensor] = []
        self._frames = 0
        self._tubelets = 0

    def push(self, frame: Tensor) -> Window | None:
        """Takes the next frame of the stream.

        Args:
            frame: ``(3, H, W)``, uint8 in [0, 255] RGB, or float and normalised.

        Returns:
            A window's answer where this frame completes one, else None.
        """
        windows = self.extend(frame[None])
        return windows[0] if windows else None

    @torch.no_grad()
    def extend(self, frames: Tensor) -> list[Window]:
        """Takes several frames ``(n, 3, H, W)`` at once, which are encoded together; the windows that they complete."""
        wanted = -self._frames % self.stride
        number, self._frames = self._frames + wanted, self._frames + len(frames)
        self._pending += list(frames[wanted :: self.stride])
        complete = len(self._pending) // self.tubelet
        if not complete:
            return []
        clip = torch.stack(self._pending[: complete * self.tubelet])[None]
        before = len(self._pending) - len(frames[wanted :: self.stride])
        self._pending = self._pending[complete * self.tubelet :]
        summaries = self.network.spatial(clip, self.network.adapter.summarise)
        windows = []
        for i in range(complete):
            self._ring.append(summaries[:, i])
            self._tubelets += 1
            behind = self._tubelets - self.length
            if behind < 0 or behind % self.hop:
                continue
            logits = self.network.read(torch.stack(list(self._ring), dim=1))[0]
            last = number + ((i + 1) * self.tubelet - 1 - before) * self.stride
            windows.append(Window(behind * self.tubelet * self.stride, last, logits))
        return windows
