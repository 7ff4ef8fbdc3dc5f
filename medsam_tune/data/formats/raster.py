"""PNG, JPEG, TIFF, BMP, GIF, PPM and WebP files as arrays; whatever cannot be read exactly is refused with its path."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medsam_tune.data.formats.base import Format, VolumeHeader, image_header
from medsam_tune.data.formats.deep_png import read_deep_png
from medsam_tune.data.formats.present_values import present_values
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.data.shards.members import readable, stated_patient
from medsam_tune.errors import DataError
from medsam_tune.files import write_bytes

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".webp")
# By content and not by name: Pillow would start Ghostscript for an EPS file, whatever it is called.
_DECODERS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP")
# What Pillow's decoders raise on truncated or foreign bytes; a broken PNG chunk is a SyntaxError there.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, NotImplementedError, struct.error, zlib.error)
_SPACING = "spacing_mm"
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS = 258


class RasterFormat(Format):
    """Read image files as single slices; masks are written as PNG, which keeps every value up to 65535."""

    endings: tuple[str, ...] = ENDINGS

    def read_header(self, path: Path) -> VolumeHeader:
        """Read the size, and the spacing where this package wrote it: the dots per inch of other programs say nothing."""
        with opened(path) as image:
            spacing = stored_spacing(image, path)
            return replace(image_header(path, shown_size(image), spacing), patient_id=stated_patient(path))

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read (1, H, W) or (1, H, W, 3) as stored."""
        return check_grey_values(read_pixels(path), path)[None]

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read (1, H, W) label values."""
        return exact_labels(read_mask_values(path), path)[None]

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.png`` with the source's spacing."""
        column, row, _ = header.voxel_mm
        spacing = (row, column) if header.states_spacing else None
        return write_png(stem.with_name(f"{stem.name}.png"), labels[0], spacing_mm=spacing)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file; only its header is read until the pixels are asked for.

    Raises:
        DataError: If the file is truncated, is no image of these formats, is too large, or holds several frames.
    """
    try:
        with warnings.catch_warnings():
            # Half of what is refused below: large, but a picture.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(readable(path), formats=_DECODERS) as image:
                if getattr(image, "n_frames", 1) > 1:
                    frames = getattr(image, "n_frames", 1)
                    raise DataError(
                        f"{path}: holds {frames} frames, expected one image. Save each frame as a file of its own, or read "
                        "them as a volume: VolumeSource with format: TiffFormat."
                    )
                if image.format == "TIFF" and image.getexif().get(_EXIF_ORIENTATION, 1) > 4:
                    # Pillow 13 mixes rows and columns up when it turns such a file.
                    raise DataError(f"{path}: is a TIFF that lies on its side (orientation). Save it upright.")
                yield image
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: has more than 179 megapixels ({error}). Cut it into tiles, or reduce it, and its mask alike."
        ) from error
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory ({error}). Cut it into tiles, or reduce it.") from error
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error}). Replace or remove the file.") from error


def stored_spacing(image: Image.Image, path: Path) -> tuple[float, float] | None:
    """Return the (row, column) spacing in mm that ``write_png`` stored; None where it stored none.

    Raises:
        DataError: If it is no pair of numbers above 0.
    """
    text = image.info.get(_SPACING)
    if text is None:
        return None
    try:
        row, column = (float(word) for word in str(text).split())
    except ValueError:
        row = column = 0.0
    if not (0 < row < float("inf") and 0 < column < float("inf")):
        raise DataError(f"{path}: states {_SPACING} {text!r}, expected two numbers above 0. Prepare the data again.")
    return row, column


def encode_png(values: NDArray[Any], *, spacing_mm: tuple[float, float] | None = None) -> bytes:
    """Return (H, W) or (H, W, 3) of uint8, or (H, W) of uint16, as PNG with its (row, column) spacing and no other text.

    Without a spacing the file states none: who reads it then measures in pixels.
    """
    text = PngInfo()
    if spacing_mm is not None:
        text.add_text(_SPACING, f"{spacing_mm[0]!r} {spacing_mm[1]!r}")
    content = io.BytesIO()
    Image.fromarray(values).save(content, format="PNG", pnginfo=text)
    return content.getvalue()


def write_png(path: Path, values: NDArray[Any], *, spacing_mm: tuple[float, float] | None = None) -> Path:
    """Write what ``encode_png`` makes, whole or not at all.

    Raises:
        DataError: If the file cannot be written.
    """
    return write_bytes(path, encode_png(values, spacing_mm=spacing_mm))


def image_size(path: Path) -> tuple[int, int]:
    """Return (H, W) from the header, as the image is shown.

    Raises:
        DataError: If the file is no readable image.
    """
    with opened(path) as image:
        return shown_size(image)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return (H, W) as viewers and annotation tools show an image: turned by its EXIF orientation."""
    return (image.width, image.height) if _orientation(image) > 4 else (image.height, image.width)


def read_pixels(path: Path) -> NDArray[Any]:
    """Return the stored values as (H, W) or (H, W, 3), turned by the EXIF orientation; alpha is dropped, a palette becomes RGB.

    Raises:
        DataError: If the file cannot be read.
    """
    with opened(path) as image:
        # First, because Pillow decodes a PNG to tell its orientation, and then forgets how it is stored.
        deep = _deep_values(image, path) if _is_deep_colour(image) else None
        orientation = _orientation(image)
        return _turned(_stored_values(image, path) if deep is None else deep, orientation)


def _deep_values(image: Image.Image, path: Path) -> NDArray[Any]:
    """Return uint16 of colours with 16 bits a channel, which Pillow would cut to 8; alpha is dropped."""
    if image.format == "PNG":
        return read_deep_png(path)
    if image.format != "TIFF":
        raise DataError(f"{path}: has 16 bits a channel, which is read of PNG and TIFF alone. Save it as one of these.")
    import tifffile

    try:
        with tifffile.TiffFile(readable(path)) as file:
            # The first page whole; planes of channels are brought last.
            page: Any = file.pages[0]
            values = np.asarray(page.asarray())
            planes = page.axes.startswith("S")
    except (tifffile.TiffFileError, *_UNREADABLE) as error:
        raise DataError(f"{path}: cannot be read ({error}). Replace or remove the file.") from error
    values = np.moveaxis(values, 0, -1) if planes else values
    if values.dtype.byteorder not in ("=", "|"):
        values = values.astype(values.dtype.newbyteorder("="))
    return values[..., :3] if values.shape[-1] > 2 else values[..., 0]


def _stored_values(image: Image.Image, path: Path) -> NDArray[Any]:
    if image.mode in ("P", "PA", "RGBA", "RGBa"):
        return np.asarray(image.convert("RGBA"))[..., :3]
    if image.mode in ("LA", "La"):
        return np.asarray(image.convert("LA"))[..., 0]
    if image.mode in ("CMYK", "YCbCr"):
        return np.asarray(image.convert("RGB"))
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    return _plain(image, path)


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; of a TIFF Pillow has turned the pixels already."""
    stated = 1 if image.format == "TIFF" else image.getexif().get(_EXIF_ORIENTATION, 1)
    return stated if stated in range(1, 9) else 1


def _turned(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn (H, W, ...) as EXIF says: 2 to 4 mirror rows or columns, 5 to 8 exchange them first."""
    if orientation > 4:
        values = np.swapaxes(values, 0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


def read_mask_values(path: Path) -> NDArray[np.int32]:
    """Return the mask's stored values (H, W); a palette mask gives its indices, grey stored as RGB is accepted.

    Raises:
        DataError: If the file cannot be read, its colour channels differ, or a value is below 0.
    """
    with opened(path) as image:
        if image.mode in ("P", "1"):
            orientation = _orientation(image)
            return _turned(np.asarray(image).astype(np.int32), orientation)
    values = read_pixels(path)
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise DataError(
                f"{path}: is a colour image, a mask holds one value a pixel. It shows {show_colours(values)}. Name them in "
                "data.colours: {lumen: [255, 0, 0]}, or save the mask as a single-channel PNG."
            )
        values = values[..., 0]
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{path}: stores {values.dtype}; a mask holds integers. Save it as an 8 or 16-bit PNG.")
    return exact_labels(values, path)


def read_colours(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a mask's colours (H, W, 3), a palette's where there is one, and where it is fully transparent (H, W).

    Raises:
        DataError: If the file cannot be read, or stores more than 8 bits a channel.
    """
    with opened(path) as image:
        if _is_deep_colour(image) or image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise DataError(f"{path}: stores more than 8 bits a channel, so no colours. Remove data.colours, or convert it.")
        orientation = _orientation(image)
        values = _turned(np.asarray(image.convert("RGBA")), orientation)
    return values[..., :3], values[..., 3] == 0


def read_values_or_colours(path: Path) -> tuple[NDArray[np.int32], bool]:
    """Return what a mask stores (H, W): its values, or its colours as 0xRRGGBB and True; what is transparent is 0.

    Raises:
        DataError: If the file cannot be read.
    """
    pixels = read_pixels(path)
    if pixels.ndim == 2 or not (pixels != pixels[..., :1]).any():
        return read_mask_values(path), False
    with opened(path) as image:
        if image.mode == "P":
            return read_mask_values(path), False
    colours, transparent = read_colours(path)
    found, where, _ = colour_counts(colours)
    return np.where(transparent, 0, found[where].reshape(transparent.shape)).astype(np.int32), True


def read_foreground(path: Path) -> NDArray[np.int32]:
    """Return the values (H, W) of a mask that shows one thing alone, drawn in any one colour or by any one value.

    Raises:
        DataError: If the file cannot be read, or shows several colours.
    """
    values, in_colours = read_values_or_colours(path)
    if in_colours and len(present_values(values[values > 0])) > 1:
        return read_mask_values(path)  # which says what it shows
    return (values > 0).astype(np.int32) if in_colours else values


def colour_counts(colours: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the K colours of (..., 3) as 0xRRGGBB, the place (P,) of each pixel's among them, and their pixels (K,)."""
    codes = colours.reshape(-1, 3).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found, where, pixels = np.unique(codes, return_inverse=True, return_counts=True)
    return found, where.reshape(-1), pixels


def show_colours(colours: NDArray[np.uint8], *, count: int = 5) -> str:
    """Return the colours of (H, W, 3), most pixels first, for a message: ``[255, 0, 0] on 12 pixels, ...``."""
    found, _, pixels = colour_counts(colours)
    order = np.argsort(-pixels, kind="stable")
    shown = [f"[{found[k] >> 16}, {found[k] >> 8 & 255}, {found[k] & 255}] on {pixels[k]} pixels" for k in order[:count]]
    return ", ".join(shown) + (f" and {len(found) - count} more" if len(found) > count else "")


def is_lossy(path: Path) -> bool:
    """Tell whether a file is compressed with losses."""
    with opened(path) as image:
        return image.format in ("JPEG", "WEBP")


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
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, (8,))
    deep = any(";16" in raw for raw in raw_modes) or max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return image.mode in ("RGB", "RGBA", "LA") and deep
