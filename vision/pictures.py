"""Pictures that explain a result, as arrays: uint8 ``(H, W, 3)`` RGB, for a logger or a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Picture = NDArray[np.uint8]
INK, MUTED, ACCENT, PAPER, GOOD, BAD = "#1f2933", "#7b8794", "#2563eb", "#ffffff", "#15803d", "#b91c1c"
MOST_LABELLED = 40  # classes up to which a confusion matrix carries names


def render(figure: Figure) -> Picture:
    """The pixels of a matplotlib figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()  # type: ignore[no-untyped-call]


def confusion_figure(matrix: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Counts ``(classes, classes)``, rows the true class: shaded by the share of the row, written where few."""
    classes = len(class_names)
    side = min(max(4.0, 0.48 * classes + 1.8), 12.0)
    figure = Figure(figsize=(side, side), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= MOST_LABELLED:
        axes.set_xticks(range(classes), class_names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(classes), class_names)
        for row, column in np.argwhere(matrix > 0) if classes <= MOST_LABELLED // 2 else ():
            colour = "white" if share[row, column] > 0.5 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def shortened(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, room: int
) -> str:
    """A text that fits into ``room`` pixels, cut off with an ellipsis where it is longer."""
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "…", font) > room:
        text = text[:-1].rstrip()
    return text + "…"


def contact_sheet(
    images: Sequence[Picture],
    captions: Sequence[Sequence[tuple[str, str]]],
    columns: int = 5,
    tile: int = 160,
) -> Picture:
    """Images in a grid, each scaled to fit a square tile, with lines of text below it.

    Args:
        images: uint8 RGB of any size.
        captions: for every image its lines, each (text, colour).
        columns: images in a row.
        tile: side of a tile in pixels.
    """
    font = ImageFont.load_default(13)
    line, pad = 18, 10
    lines = max((len(caption) for caption in captions), default=0)
    columns = max(1, min(columns, len(images)))
    cell = (tile + pad, tile + lines * line + pad)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + pad, rows * cell[1] + pad), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = pad + i % columns * cell[0], pad + i // columns * cell[1]
        picture = Image.fromarray(image)
        scale = tile / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
        sheet.paste(picture, (left + (tile - size[0]) // 2, top + (tile - size[1]) // 2))
        for number, (text, colour) in enumerate(caption):
            shown = shortened(draw, font, text, tile)
            draw.text((left, top + tile + number * line + 3), shown, fill=colour, font=font)
    return np.asarray(sheet)
