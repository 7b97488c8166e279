"""Clips of hung photographs that move, where only the order of the frames tells which way; and single views of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from datamodules.builtin.photographs import PART, has_contrast, photographs, test_places, train_places

Pixels = NDArray[np.uint8]

CLASSES = (
    *("pan left", "pan right", "pan up", "pan down"),
    *("zoom in", "zoom out"),
    *("turn clockwise", "turn counterclockwise"),
)
"""In pairs: the clips of one class are those of its neighbour played backwards."""

CLIPS = {"train": 2048, "val": 256, "test": 512}
VIEWS = {"train": 4096, "test": 512}
FRAMES = 8
FPS = 8
SIDE = 64
FINE = 2  # frames are drawn at twice their size, so that edges are smooth
# What a clip starts from, whatever moves: so no single frame says what does.
SIZE = (26.0, 36.0)  # pixels, a side of the picture
OFFSET = 7.0  # pixels from the middle, at most, in both directions
TILT = 30.0  # degrees, at most
# How far it goes, from the first frame to the last.
WAY = (12.0, 20.0)  # pixels
GROWTH = (1.35, 1.7)  # times the size
TURN = (35.0, 60.0)  # degrees


class Pose(NamedTuple):
    """Where a picture hangs: its middle, in pixels from the frame's; its side, in pixels; its clockwise degrees."""

    x: float
    y: float
    size: float
    angle: float


def _wall(rng: np.random.Generator) -> Pixels:
    """A smooth background of a few colours."""
    coarse = rng.integers(40, 216, (3, 3, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (SIDE * FINE, SIDE * FINE), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 255).astype(np.uint8)


def _part(rng: np.random.Generator, picture: Pixels, testing: bool) -> Pixels:
    """A square of a photograph in which there is something to see; test squares touch no training square."""
    places = (test_places if testing else train_places)(*picture.shape[:2])
    while True:
        top, left = places[rng.integers(len(places))]
        part = picture[top : top + PART, left : left + PART]
        if has_contrast(part):
            return part


def _start(rng: np.random.Generator) -> Pose:
    x, y = rng.uniform(-OFFSET, OFFSET, 2)
    return Pose(float(x), float(y), float(rng.uniform(*SIZE)), float(rng.uniform(-TILT, TILT)))


def draw(wall: Pixels, part: Pixels, pose: Pose) -> Pixels:
    """A frame, uint8 RGB ``(64, 64, 3)``: the part of a photograph on the wall."""
    scale = FINE * pose.size / PART
    turned = math.radians(pose.angle)
    cos, sin = scale * math.cos(turned), scale * math.sin(turned)
    middle = FINE * SIDE / 2
    # y points down, so that a positive angle turns clockwise
    matrix = np.array([[cos, -sin, 0], [sin, cos, 0]])
    matrix[:, 2] = (middle + FINE * pose.x, middle + FINE * pose.y) - matrix[:, :2] @ (PART / 2, PART / 2)
    size = (SIDE * FINE, SIDE * FINE)
    shown = cv2.warpAffine(part, matrix, size, flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(np.ones(part.shape[:2], np.float32), matrix, size, flags=cv2.INTER_LINEAR)[..., None]
    frame = (1 - mask) * wall + mask * shown
    return np.rint(cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA)).astype(np.uint8)


def poses(rng: np.random.Generator, kind: str) -> list[Pose]:
    """The poses of a clip of a class: around a middle pose, the same for a class and its pair but for the order."""
    middle, steps = _start(rng), np.linspace(-0.5, 0.5, FRAMES)
    way, growth, turn = rng.uniform(*WAY), math.log(rng.uniform(*GROWTH)), rng.uniform(*TURN)
    moved: list[Pose] = []
    for step in steps if kind in CLASSES[1::2] else steps[::-1]:
        # The second of each pair goes this way: right, down, out, counterclockwise.
        if kind in ("pan left", "pan right"):
            moved.append(middle._replace(x=middle.x + way * step))
        elif kind in ("pan up", "pan down"):
            moved.append(middle._replace(y=middle.y + way * step))
        elif kind in ("zoom in", "zoom out"):
            moved.append(middle._replace(size=middle.size * math.exp(-growth * step)))
        else:
            moved.append(middle._replace(angle=middle.angle - turn * step))
    return moved


def clip(rng: np.random.Generator, kind: str, testing: bool) -> Pixels:
    """The frames of a clip of a class, uint8 RGB ``(8, 64, 64, 3)``."""
    pictures = photographs()
    name = list(pictures)[rng.integers(len(pictures))]
    part, wall = _part(rng, pictures[name], testing), _wall(rng)
    return np.stack([draw(wall, part, pose) for pose in poses(rng, kind)])


def write_motion(folder: Path) -> None:
    """Writes ``{train,val,test}/<class>/*.mp4``: 2048, 256 and 512 clips of 8 frames of 64x64 pixels.

    A part of a photograph hangs on a smooth wall and moves: it pans, grows, shrinks or turns. A class and its pair have
    the same sets of frames, in opposite orders, so neither a single frame nor a bag of frames tells them apart. The
    photographs of the test clips are areas that no training or validation clip shows.
    """
    rng = np.random.default_rng(0)
    for split, number in CLIPS.items():
        for kind in CLASSES:
            (folder / split / kind).mkdir(parents=True)
        for i in range(number):
            kind = CLASSES[i % len(CLASSES)]
            _write_video(folder / split / kind / f"{i // len(CLASSES):03d}.mp4", clip(rng, kind, split == "test"))


def _write_video(file: Path, frames: Pixels) -> None:
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (SIDE, SIDE))
    if not writer.isOpened():
        raise OSError(0, "OpenCV cannot write MPEG-4 videos here")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def write_views(folder: Path) -> None:
    """Writes ``{train,test}/<photograph>/*.jpg``: single views of the hung photographs, 64x64 pixels.

    What an image network learns on before it sees a clip: which photograph hangs there, wherever and however it does.
    """
    rng = np.random.default_rng(1)
    pictures = photographs()
    for split, number in VIEWS.items():
        for name in pictures:
            (folder / split / name).mkdir(parents=True)
        for i in range(number):
            name = list(pictures)[i % len(pictures)]
            frame = draw(_wall(rng), _part(rng, pictures[name], split == "test"), _start(rng))
            PILImage.fromarray(frame).save(folder / split / name / f"{i // len(pictures):03d}.jpg", quality=95)
