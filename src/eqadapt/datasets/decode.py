"""From the bytes of an image file to pixels, by one stated rule.

The first frame; turned upright as its EXIF orientation says; transparency composited on white;
16-bit grey divided by 257; then RGB, or grey (ITU-R 601 luma) where the data set is grey. Resizing
brings the short side to the asked size (bicubic with antialiasing) and keeps the centre.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from eqadapt.errors import UserError

RULE = (
    "first frame, EXIF orientation applied, alpha on white, 16-bit grey / 257, "
    "RGB or (grey data sets) ITU-R 601 luma; resized, if at all: short side, bicubic, then centre"
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".pgm", ".ppm", ".bmp", ".gif", ".tif", ".tiff")

T = TypeVar("T")

_TRANSPARENT = {"RGBA", "LA", "PA", "La", "RGBa"}
_WIDE_GREY = {"I", "I;16", "I;16L", "I;16B", "I;16N"}


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(H, W) of an image as it will be decoded, from its header."""

    def measure(image: Image.Image) -> tuple[int, int]:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)

    return _open(data, where, measure)


def decode(data: bytes, where: str, channels: int, size: int | None = None) -> np.ndarray:
    """Pixels of an image file.

    Args:
        data: The whole file.
        where: Its name, for errors.
        channels: 1 or 3.
        size: Side of the square to return; None keeps the image's size.

    Returns:
        uint8 (H, W, channels).

    Raises:
        UserError: The file is not an image, is truncated, or holds values that are not 8 or 16 bit.
    """

    def pixels(image: Image.Image) -> np.ndarray:
        if getattr(image, "n_frames", 1) > 1:
            image.seek(0)
        ImageOps.exif_transpose(image, in_place=True)
        plain = _eight_bit(image).convert("L" if channels == 1 else "RGB")
        if size is not None:
            plain = _square(plain, size)
        return np.asarray(plain).reshape(plain.height, plain.width, channels)

    return _open(data, where, pixels)


def _open(data: bytes, where: str, use: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return use(image)
    except Exception as error:  # Pillow's decoders raise whatever their format makes them raise
        raise UserError(
            f"the image cannot be decoded ({_reason(error)})",
            where=where,
            fix="replace or remove the file, then download and verify again; of an archive, get a "
            "whole copy",
        ) from error


def _reason(error: Exception) -> str:
    """Pillow's own words, but for those with an address in memory, which differ each run."""
    if isinstance(error, UnidentifiedImageError):
        return "no kind of image that is known"
    return str(error) or type(error).__name__


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_GREY:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values are not 16 bit")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its values are floating point")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image


def _square(image: Image.Image, size: int) -> Image.Image:
    """Short side to ``size``, then the centre ``size`` x ``size``."""
    short = min(image.size)
    if short != size:
        width, height = (max(size, round(side * size / short)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
