"""What a recognition of videos looks like: the frames with the answers on them, and the answers over time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from scripts.quiet import native_errors_hidden
from vision.errors import InputError
from vision.pictures import ACCENT, INK, MUTED, PAPER, Picture, shortened

LEAST_SIDE, MOST_SIDE = 320, 720  # pixels of the shown frame's width, so that the words can be read
LINE = 26
LINES = 3


def annotated(frame: Picture, seconds: float, answers: Sequence[tuple[str, float]]) -> Picture:
    """A frame with the best answers and their probabilities below it; even sides, as video codecs need them."""
    factor = min(max(LEAST_SIDE / frame.shape[1], 1.0), MOST_SIDE / frame.shape[1])
    width, height = (max(2, round(side * factor)) // 2 * 2 for side in (frame.shape[1], frame.shape[0]))
    how = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    canvas = Image.new("RGB", (width, height + LINE * (LINES + 1)), PAPER)
    canvas.paste(Image.fromarray(frame).resize((width, height), how), (0, 0))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    draw.text((8, height + 6), f"{seconds:.1f} s", fill=MUTED, font=font)
    for line, (name, share) in enumerate(answers[:LINES]):
        top = height + LINE * (line + 1)
        draw.rectangle((8, top + 18, 8 + round((width - 16) * share), top + 21), fill=ACCENT if line == 0 else MUTED)
        said = f"{share:.0%}"
        draw.text((8, top), shortened(draw, font, name, width - 70), fill=INK if line == 0 else MUTED, font=font)
        draw.text((width - 8 - draw.textlength(said, font), top), said, fill=INK if line == 0 else MUTED, font=font)
    return np.asarray(canvas)


def write_video(file: Path, frames: Iterator[Picture], rate: float) -> None:
    """Writes frames of one size as WebM (VP8), which browsers play too.

    Raises:
        InputError: OpenCV cannot write it here.
    """
    writer = None
    try:
        for frame in frames:
            if writer is None:
                size = (frame.shape[1], frame.shape[0])
                # It tells that WebM files have no codes of codecs, which is as it should be.
                with native_errors_hidden():
                    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"VP80"), max(rate, 1.0), size)
                if not writer.isOpened():
                    raise InputError(f"--out: {file} cannot be written (OpenCV has no encoder for it here)")
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    finally:
        if writer is not None:
            writer.release()


def timeline(times: Sequence[float], scores: Sequence[dict[str, float]], most: int = 6) -> Figure:
    """The probabilities of the classes that come to the most, over the windows' middles in seconds."""
    total: dict[str, float] = {}
    for of in scores:
        for name, share in of.items():
            total[name] = total.get(name, 0.0) + share
    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name in sorted(total, key=lambda name: -total[name])[:most]:
        axes.plot(times, [of.get(name, 0.0) for of in scores], marker="o" if len(times) < 40 else None, label=name)
    axes.set_xlabel("seconds")
    axes.set_ylabel("probability")
    axes.set_ylim(0, 1)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure
