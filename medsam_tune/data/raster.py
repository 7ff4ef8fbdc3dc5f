"""Read PNG, JPEG, TIFF and BMP files as arrays; whatever cannot be read exactly is refused with its path."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam_tune.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
# What Pillow's decoders raise on truncated or foreign bytes; a broken PNG chunk is a SyntaxError there.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; only its header is read until the pixels are asked for.

    Raises:
        DataError: If the file is truncated, is no image, or holds several frames.
    """
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                frames = getattr(image, "n_frames", 1)
                raise DataError(f"{path}: holds {frames} frames, expected one image. Save each frame as a file of its own.")
            yield image
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}). Replace or remove the file.") from error


def image_size(path: Path) -> tuple[int, int]:
    """Return (H, W) from the header, as stored: an EXIF orientation is not applied.

    Raises:
        DataError: If the file is no readable image.
    """
    with opened(path) as image:
        return image.height, image.width


def read_pixels(path: Path) -> NDArray[Any]:
    """Return the stored values as (H, W) or (H, W, 3); alpha is dropped, a palette becomes RGB.

    Raises:
        DataError: If the file cannot be read, or stores more than 8 bits a channel in colour, which Pillow would cut to 8.
    """
    with opened(path) as image:
        if _is_deep_colour(image):
            raise DataError(f"{path}: 16-bit colour is not supported. Save it with 8 bits a channel, or as 16-bit grey.")
        if image.mode in ("P", "PA", "RGBA", "RGBa"):
            return np.asarray(image.convert("RGBA"))[..., :3]
        if image.mode in ("LA", "La"):
            return np.asarray(image.convert("LA"))[..., 0]
        if image.mode in ("CMYK", "YCbCr"):
            return np.asarray(image.convert("RGB"))
        if image.mode == "1":
            return np.asarray(image.convert("L"))
        return _plain(image, path)


def read_mask_values(path: Path) -> NDArray[Any]:
    """Return the mask's stored values as integers (H, W); a palette mask gives its indices, grey stored as RGB is accepted.

    Raises:
        DataError: If the file cannot be read, or its colour channels differ.
    """
    with opened(path) as image:
        if image.mode in ("P", "1"):
            return np.asarray(image).astype(np.uint8)
    values = read_pixels(path)
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise DataError(f"{path}: is a colour image; a mask holds one value a pixel. Save it as a single-channel PNG.")
        values = values[..., 0]
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{path}: stores {values.dtype}; a mask holds integers. Save it as an 8 or 16-bit PNG.")
    return values


def _plain(image: Image.Image, path: Path) -> NDArray[Any]:
    if image.mode not in ("L", "RGB", "I", "F") and not image.mode.startswith("I;16"):
        raise DataError(f"{path}: has the colour mode {image.mode}, expected grey, RGB or RGBA. Convert the file.")
    values: NDArray[Any] = np.asarray(image)
    if values.dtype.byteorder not in ("=", "|"):
        values = values.astype(values.dtype.newbyteorder("="))
    if image.mode == "F" and not np.isfinite(values).all():
        raise DataError(f"{path}: {int((~np.isfinite(values)).sum())} pixels are NaN or infinite. Repair or remove the file.")
    return values


def _is_deep_colour(image: Image.Image) -> bool:
    # The decoder's raw mode tells what the file stores; the image's own mode says RGB for 8 and for 16 bits alike.
    raw_modes = (str(tile[3]) for tile in getattr(image, "tile", []))
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in raw for raw in raw_modes)
