"""PNG files with 16 bits a channel in colour or beside alpha, which Pillow cuts to 8.

Source: Portable Network Graphics Specification (W3C, third edition), sections 5 (chunks), 7 (scanlines) and 9 (filters).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Channels by colour type: grey, RGB, grey and alpha, RGB and alpha.
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_LARGEST_PIXELS = 178_956_970  # Pillow's own limit
_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)


def read_deep_png(path: Path) -> NDArray[np.uint16]:
    """Read (H, W) or (H, W, 3) uint16 of a PNG with 16 bits a channel; alpha is dropped.

    Raises:
        DataError: If the file is damaged, interlaced, or of another depth.
    """
    chunks = list(_chunks(path.read_bytes(), path))
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
    if depth != 16 or colour not in _CHANNELS or interlaced:
        kind = "is interlaced" if interlaced else f"has {depth} bits a channel and colour type {colour}"
        raise DataError(f"{path}: {kind}, expected a plain PNG of 16 bits a channel. Save it again without interlacing.")
    if width * height > _LARGEST_PIXELS:
        raise DataError(f"{path}: has more than 179 megapixels. Cut it into tiles, or reduce it, and its mask alike.")
    channels = _CHANNELS[colour]
    stride = 2 * channels
    packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
    wanted = height * (1 + stride * width)
    try:
        lines = zlib.decompressobj().decompress(packed, wanted)
    except zlib.error as error:
        raise DataError(f"{path}: cannot be read ({error}). Replace or remove the file.") from error
    if len(lines) < wanted:
        raise DataError(f"{path}: cannot be read (its pixels are cut off). Replace or remove the file.")
    rows = np.frombuffer(lines, np.uint8).reshape(height, 1 + stride * width)
    values = _unfiltered(rows[:, 0], rows[:, 1:].reshape(height, width, stride), path)
    pixels = values.reshape(height, width, channels, 2).astype(np.uint16)
    joined: NDArray[np.uint16] = pixels[..., 0] * np.uint16(256) + pixels[..., 1]
    return joined[..., 0] if channels < 3 else joined[..., :3]


def _chunks(content: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each chunk, each compared with its checksum."""
    place = len(_SIGNATURE)
    while content.startswith(_SIGNATURE) and place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        stated = content[place + 8 + length : place + 12 + length]
        if len(stated) < 4 or int.from_bytes(stated, "big") != zlib.crc32(kind + body):
            break
        yield kind, body
        if kind == b"IEND":
            return
        place += 12 + length
    raise DataError(f"{path}: cannot be read (a chunk is cut off or its checksum is wrong). Replace or remove the file.")


def _unfiltered(filters: NDArray[np.uint8], lines: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Undo the filter of each line of bytes (H, W, bytes of a pixel).

    Each pixel needs those to its left, above, and above to the left, so all pixels of one anti-diagonal are undone at once.
    """
    height, width, _ = lines.shape
    if filters.max(initial=0) > _PAETH:
        raise DataError(f"{path}: cannot be read (line filter {filters.max()}). Replace or remove the file.")
    # A border of zeros stands for what lies outside.
    found = np.zeros((height + 1, width + 1, lines.shape[2]), np.int16)
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, above, corner = found[y + 1, x], found[y, x + 1], found[y, x]
        kind = filters[y, None]
        guess = np.select(
            [kind == _SUB, kind == _UP, kind == _AVERAGE, kind == _PAETH],
            [left, above, (left + above) // 2, _paeth(left, above, corner)],
            0,
        )
        found[y + 1, x + 1] = (lines[y, x] + guess) % 256
    return found[1:, 1:].astype(np.uint8)


def _paeth(left: NDArray[Any], above: NDArray[Any], corner: NDArray[Any]) -> NDArray[Any]:
    """Return whichever neighbour lies nearest to left + above - corner; ties go to left, then above."""
    guess = left + above - corner
    by_left, by_above, by_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    nearest = np.where(by_above <= by_corner, above, corner)
    return np.where((by_left <= by_above) & (by_left <= by_corner), left, nearest)
