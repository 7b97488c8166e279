"""Image files of every kind that a folder of photographs may hold."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.decoding import UnreadableImageError, read_image


@pytest.fixture
def picture() -> Image.Image:
    """A smooth picture, so that JPEG changes little: red grows to the right, blue to the bottom."""
    y, x = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([x * 4, np.full_like(x, 90), y * 6], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "jpg", "gif"])
def test_formats_are_read_as_pillow_reads_them(tmp_path, picture, suffix):
    picture.save(tmp_path / f"p.{suffix}")
    with Image.open(tmp_path / f"p.{suffix}") as file:
        expected = np.asarray(file.convert("RGB")).astype(int)
    # Two readers of one JPEG may round differently.
    assert np.abs(read_image(tmp_path / f"p.{suffix}") - expected).max() <= (3 if suffix == "jpg" else 0)


def test_content_counts_not_the_suffix(tmp_path, picture):
    picture.save(tmp_path / "p.png")
    (tmp_path / "p.png").rename(tmp_path / "p.jpg")
    assert np.array_equal(read_image(tmp_path / "p.jpg"), np.asarray(picture))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "p.jpg", exif=exif, quality=95)
    upright = {
        1: picture,
        2: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: picture.transpose(Image.Transpose.ROTATE_180),
        4: picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: picture.transpose(Image.Transpose.TRANSPOSE),
        6: picture.transpose(Image.Transpose.ROTATE_270),
        7: picture.transpose(Image.Transpose.TRANSVERSE),
        8: picture.transpose(Image.Transpose.ROTATE_90),
    }[orientation]
    read = read_image(tmp_path / "p.jpg").astype(int)
    assert read.shape == np.asarray(upright).shape
    assert np.abs(read - np.asarray(upright)).mean() < 4


def test_grey_palette_and_cmyk_become_rgb(tmp_path, picture):
    grey = picture.convert("L")
    grey.save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.asarray(grey.convert("RGB")))
    palette = picture.quantize(16)
    palette.save(tmp_path / "palette.gif")
    assert np.array_equal(read_image(tmp_path / "palette.gif"), np.asarray(palette.convert("RGB")))
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - np.asarray(picture)).mean() < 4


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    cv2.imwrite(str(tmp_path / "deep.png"), values)
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 0], values >> 8)


def test_transparency_is_laid_on_white(tmp_path, picture):
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, :20], alpha[:, 20:40] = 255, 128
    picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "alpha.png")
    read = read_image(tmp_path / "alpha.png").astype(int)
    colour = np.asarray(picture)[..., :3].astype(int)
    assert np.array_equal(read[:, :20], colour[:, :20])
    assert np.abs(read[:, 20:40] - (colour[:, 20:40] + 255) / 2).max() <= 2
    assert (read[:, 40:] == 255).all()


def _bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 30000 x 30000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9000))) + chunk(b"IEND", b"")
    )


def broken_files(folder, picture: Image.Image) -> dict[str, str]:
    """Broken images by file name, and a word of what is said of each."""
    picture.save(folder / "whole.jpg")
    picture.save(folder / "whole.png")
    for kind in ("jpg", "png"):
        data = (folder / f"whole.{kind}").read_bytes()
        (folder / f"truncated.{kind}").write_bytes(data[: len(data) // 2])
        (folder / f"whole.{kind}").unlink()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("Dear diary, today I was named .jpg.")
    (folder / "bomb.png").write_bytes(_bomb())
    return {
        "truncated.jpg": "truncated",
        "truncated.png": "truncated",
        "empty.jpg": "empty",
        "text.jpg": "not an image",
        "bomb.png": "pixels",
    }


def test_broken_files_are_named_with_the_reason(tmp_path, picture, capfd):
    for name, word in broken_files(tmp_path, picture).items():
        with pytest.raises(UnreadableImageError, match=word) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(UnreadableImageError, match="No such file"):
        read_image(tmp_path / "missing.jpg")
    assert capfd.readouterr().err == ""


def test_the_limit_of_pixels_is_the_callers(tmp_path, picture):
    picture.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png", max_pixels=2400).shape == (40, 60, 3)
    with pytest.raises(UnreadableImageError, match="60x40 is more than 2,399"):
        read_image(tmp_path / "p.png", max_pixels=2399)
