"""Image files to arrays, whatever their format, orientation, depth and colour model."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageOps

from vision.errors import InputError

# OpenCV reports damaged files on stderr by itself; here they become one error each.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

PILImage.init()  # registers every reader; by default only some are known before the first failure

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2")
MAX_PIXELS = 100_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")


class UnreadableFileError(InputError):
    """A file of the data that cannot be decoded; ``reason`` says why, without the path."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class UnreadableImageError(UnreadableFileError):
    """An image file that cannot be decoded."""


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decodes an image file as a person would see it.

    The EXIF orientation is applied; grey, palette and CMYK images become RGB; 16-bit values keep their upper
    eight bits; transparent parts are laid on white; of an animation the first frame is taken.

    Args:
        path: the file; its content counts, not its suffix.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        uint8 ``(H, W, 3)``, RGB.

    Raises:
        UnreadableImageError: the file is missing, empty, truncated, no image, or larger than ``max_pixels``.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImageError(path, f"cannot be read ({error.strerror})") from error
    return decode_image(data, str(path), max_pixels)


def decode_image(data: bytes, path: str | Path, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The same for the bytes of a file; ``path`` is what errors call it."""
    if not data:
        raise UnreadableImageError(path, "empty file (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
            header = PILImage.open(io.BytesIO(data), formats=_FORMATS)
    except PILImage.DecompressionBombError as error:
        raise UnreadableImageError(path, f"more than {max_pixels:,} pixels") from error
    # Pillow's readers fail in many ways on a damaged header.
    except Exception as error:
        raise UnreadableImageError(path, "not an image of a known format, or its header is damaged") from error
    width, height = header.size
    if width * height > max_pixels:
        raise UnreadableImageError(path, f"{width}x{height} is more than {max_pixels:,} pixels")
    if header.has_transparency_data:
        return _on_white(header, path)
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        decoded = None
    if decoded is None:
        raise UnreadableImageError(path, f"the {header.format} data is truncated, damaged or of an unsupported kind")
    return decoded.astype(np.uint8, copy=False)


def _on_white(image: PILImage.Image, path: str | Path) -> NDArray[np.uint8]:
    try:
        rgba = ImageOps.exif_transpose(image).convert("RGBA")
    except Exception as error:
        raise UnreadableImageError(path, f"the {image.format} data is truncated or damaged") from error
    white = PILImage.new("RGBA", rgba.size, "white")
    return np.asarray(PILImage.alpha_composite(white, rgba).convert("RGB"))
