"""Pictures as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

LONGEST_SIDE = 1600
JPEG_QUALITY = 86


class Embedded(NamedTuple):
    """A picture within the page."""

    uri: str
    width: int
    height: int


def _decoded(image: Path | str | NDArray[np.uint8]) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"picture: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        return Image.fromarray(image)
    with Image.open(image) as file:
        return ImageOps.exif_transpose(file).convert("RGBA" if file.has_transparency_data else "RGB")


def embed(image: Path | str | NDArray[np.uint8]) -> Embedded:
    """Encodes a picture anew, so that its metadata stays out of the page, at no more than 1600 pixels a side."""
    picture = _decoded(image)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if not isinstance(image, np.ndarray) and Path(image).suffix.lower() in (".jpg", ".jpeg"):
        kind = "jpeg"
        picture.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    else:
        kind = "png"
        picture.save(buffer, "PNG", optimize=True)
    return Embedded(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", *picture.size)
