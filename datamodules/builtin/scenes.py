"""A small set of pictures with labels of four tasks, made so that the answers are known: shapes on photographs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from datamodules.builtin.photographs import PART, has_contrast, photographs, test_places, train_places

TASKS: dict[str, Any] = {
    "level": {"classes": ["little", "some", "much"], "ordinal": True},
    "useful": ["no", "yes"],
    "kind": ["circle", "cross", "none", "triangle"],
    "type": ["cat", "flower", "galaxies", "other", "retina", "temple", "tissue"],
}
"""The tasks: how much of the picture is covered by shapes, whether any is, of which kind they are, and which
photograph is behind them."""

NUMBERS = {"train": 2400, "dev": 300, "test": 800}
BLANK = 0.3
SIDE = 64
OTHERS = ("astronaut", "coffee", "motorcycle", "rocket")
OTHER_SHARE = 0.55
# The colour (RGB) of the light on each photograph but the others, and how much of it there is.
LIGHT = {
    "cat": (230, 200, 40),
    "flower": (230, 60, 170),
    "galaxies": (60, 60, 230),
    "retina": (230, 90, 30),
    "temple": (60, 190, 230),
    "tissue": (130, 230, 60),
}
STRENGTH = (0.2, 0.4)
# The covered shares leave a gap between one level and the next, so that an eye can tell them apart.
SHARES = {"little": (0.09, 0.12), "some": (0.18, 0.26), "much": (0.38, 0.6)}
EMPTY = 0.25  # share of the pictures without shapes; their level is little
LEVELS = {"little": 0.2, "some": 0.3, "much": 0.25}  # of the pictures with shapes
LEAST_AREA = 360  # pixels of a shape: a disc of 21 across
MOST_RADIUS = 34
MOST_SHAPES = 4
OVERLAP = 0.2  # share of a shape that the next ones may hide
FINE = 4  # pictures are drawn at four times their size, so that edges are smooth
INK = (24, 24, 24)

Row = dict[str, str]
Points = NDArray[np.float64]


def _ring(corners: int) -> Points:
    turns = 2 * math.pi / corners * np.arange(corners)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1)


def _cross() -> Points:
    arm = np.array([[1.0, -0.3], [1.0, 0.3], [0.3, 0.3]]) / math.hypot(1.0, 0.3)
    quarter = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter, turn) for turn in range(4)])


# Outlines, their corners at most 1 from the middle.
OUTLINES = {"circle": _ring(64), "cross": _cross(), "triangle": _ring(3)}


def write_scenes(folder: Path) -> None:
    """Writes tables in MEDIC's layout, and their pictures (64x64, JPEG and PNG) below ``data``.

    ``train.tsv`` (2400 rows) and ``dev.tsv`` (300) lack 30 % of each task's labels, chosen at random;
    ``train_full.tsv`` is ``train.tsv`` with all labels, and ``test.tsv`` (800) has all. The photographs behind the
    shapes of the test pictures are areas that no training or development picture touches.
    """
    rng = np.random.default_rng(0)
    rows = {split: [_write_picture(rng, folder, split, i) for i in range(n)] for split, n in NUMBERS.items()}
    _write_table(folder / "train_full.tsv", rows["train"])
    for split in ("train", "dev"):
        for task in TASKS:
            for i in rng.permutation(len(rows[split]))[: round(BLANK * len(rows[split]))]:
                rows[split][i] = {**rows[split][i], task: ""}
    for split in NUMBERS:
        _write_table(folder / f"{split}.tsv", rows[split])


def _write_table(file: Path, rows: list[Row]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_picture(rng: np.random.Generator, folder: Path, split: str, number: int) -> Row:
    """One picture, and its row of the table with all labels."""
    photograph, picture = _background(rng, split)
    level, kind = "little", "none"
    if rng.random() >= EMPTY:
        level = _choice(rng, LEVELS)
        kind = _choice(rng, dict.fromkeys(OUTLINES, 1.0))
        picture = _with_shapes(rng, picture, OUTLINES[kind], *SHARES[level])
    path = Path("data", photograph, f"{split}_{number:04d}.{'png' if number % 8 == 0 else 'jpg'}")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(picture).save(folder / path, quality=95)
    return {
        "image_id": f"{split}_{number:04d}",
        "event_name": photograph,
        "image_path": path.as_posix(),
        "level": level,
        "useful": "no" if kind == "none" else "yes",
        "kind": kind,
        "type": "other" if photograph in OTHERS else photograph,
    }


def _choice(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    weights = np.array(list(shares.values()))
    return list(shares)[rng.choice(len(weights), p=weights / weights.sum())]


def _background(rng: np.random.Generator, split: str) -> tuple[str, NDArray[np.uint8]]:
    """A photograph's name, and a part of it that has contrast: uint8 ``(64, 64, 3)``."""
    names = OTHERS if rng.random() < OTHER_SHARE else [name for name in TASKS["type"] if name != "other"]
    name = names[rng.integers(len(names))]
    picture = photographs()[name]
    places = _places(name, split == "test")
    while True:
        top, left = places[rng.integers(len(places))] + rng.integers(PART - SIDE + 1, size=2)
        part = picture[top : top + SIDE, left : left + SIDE]
        if has_contrast(part):
            return name, _lit(rng, part, name)


def _lit(rng: np.random.Generator, part: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    if name in OTHERS:
        return part
    strength = rng.uniform(*STRENGTH)
    return np.asarray((1 - strength) * part + strength * np.array(LIGHT[name]), dtype=np.uint8)


@cache
def _places(name: str, testing: bool) -> NDArray[np.intp]:
    return (test_places if testing else train_places)(*photographs()[name].shape[:2])


def _with_shapes(
    rng: np.random.Generator, picture: NDArray[np.uint8], outline: Points, least: float, most: float
) -> NDArray[np.uint8]:
    """The picture with one to four shapes of one kind, which cover a share between ``least`` and ``most`` of it."""
    while True:
        shapes = _shapes(rng, outline, rng.uniform(least, most) * SIDE**2)
        masks = np.stack([cv2.fillPoly(np.zeros((SIDE * FINE,) * 2, np.uint8), [shape], 1) for shape in shapes]) > 0
        if least <= masks.any(axis=0).mean() <= most and _hidden(masks) <= OVERLAP:
            break
    fine = picture.repeat(FINE, axis=0).repeat(FINE, axis=1)
    for shape in shapes:
        hue, saturation, value = rng.integers(180), rng.integers(170, 256), rng.integers(220, 256)
        colour = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
        cv2.fillPoly(fine, [shape], colour.tolist())
        cv2.polylines(fine, [shape], isClosed=True, color=INK, thickness=FINE)
    return np.asarray(cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _hidden(masks: NDArray[np.bool_]) -> float:
    """The largest share of a shape that those drawn after it hide; masks ``(shapes, H, W)``."""
    return max(float((mask & masks[i + 1 :].any(axis=0)).sum() / mask.sum()) for i, mask in enumerate(masks))


def _shapes(rng: np.random.Generator, outline: Points, area: float) -> list[NDArray[np.int32]]:
    """Polygons that would cover ``area`` pixels if they lay apart: their corners on the fine grid."""
    unit = cv2.contourArea(outline.astype(np.float32))
    most = min(MOST_SHAPES, int(area / LEAST_AREA))
    fewest = min(most, math.ceil(area / (unit * MOST_RADIUS**2)))
    number = int(rng.integers(max(fewest, 1), max(most, 1) + 1))
    parts = rng.dirichlet(np.full(number, 4.0)) * max(0.0, area - number * LEAST_AREA) + LEAST_AREA
    shapes = []
    for part in parts:
        radius = min(math.sqrt(part / unit), MOST_RADIUS)
        edge = min(0.85 * radius, SIDE / 2)
        centre = rng.uniform(edge, SIDE - edge, size=2)
        turn = rng.uniform(0, 2 * math.pi)
        turned = outline @ np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        points = centre + radius * turned
        shapes.append((points * FINE).round().astype(np.int32))
    return shapes
