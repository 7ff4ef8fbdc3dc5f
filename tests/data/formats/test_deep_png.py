"""16-bit colour: every line filter, alpha beside it, and what Pillow makes of the same file as the reference."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from medsam_tune.data.formats import RasterFormat
from medsam_tune.data.formats.raster import read_colours, read_mask_values, read_pixels
from medsam_tune.errors import DataError

COLOUR_TYPE = {2: 4, 3: 2, 4: 6}
VALUES = np.random.default_rng(0).integers(0, 65536, (11, 7, 3), np.uint16)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def filtered(lines, kinds):
    """Filter lines of bytes (H, W, bytes of a pixel) as the standard writes each filter, byte by byte."""
    height, width, size = lines.shape
    found = bytearray()
    for y in range(height):
        found.append(kinds[y])
        for x in range(width):
            for byte in range(size):
                a = int(lines[y, x - 1, byte]) if x else 0
                b = int(lines[y - 1, x, byte]) if y else 0
                c = int(lines[y - 1, x - 1, byte]) if x and y else 0
                p = a + b - c
                paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
                found.append((int(lines[y, x, byte]) - (0, a, b, (a + b) // 2, paeth)[kinds[y]]) % 256)
    return bytes(found)


def write_deep(path, values, *, kinds=None, interlaced=0):
    """Write a PNG of 16 bits a channel, which Pillow cannot write."""
    height, width, channels = values.shape
    lines = values.astype(">u2").view(np.uint8).reshape(height, width, 2 * channels)
    rows = filtered(lines, kinds or [y % 5 for y in range(height)])
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPE[channels], 0, 0, interlaced)
    half = len(packed := zlib.compress(rows)) // 2
    body = [chunk(b"IHDR", header), chunk(b"IDAT", packed[:half]), chunk(b"IDAT", packed[half:]), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


@pytest.mark.parametrize("kind", range(5), ids=["none", "sub", "up", "average", "paeth"])
def test_each_line_filter_gives_the_stored_values(tmp_path, kind):
    write_deep(tmp_path / "a.png", VALUES, kinds=[kind] * len(VALUES))
    read = read_pixels(tmp_path / "a.png")
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, VALUES)


def test_high_bytes_are_what_pillow_reads(tmp_path):
    write_deep(tmp_path / "a.png", VALUES)
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(read_pixels(tmp_path / "a.png") >> 8, np.asarray(image))


def test_alpha_is_dropped_and_never_a_channel(tmp_path):
    alpha = np.full((11, 7, 1), 30000, np.uint16)
    write_deep(tmp_path / "rgba.png", np.concatenate([VALUES, alpha], axis=2))
    write_deep(tmp_path / "la.png", np.concatenate([VALUES[..., :1], alpha], axis=2))
    np.testing.assert_array_equal(read_pixels(tmp_path / "rgba.png"), VALUES)
    np.testing.assert_array_equal(read_pixels(tmp_path / "la.png"), VALUES[..., 0])
    assert RasterFormat().read_image(tmp_path / "rgba.png").shape == (1, 11, 7, 3)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_of_16_bit_colour_keeps_all_bits(tmp_path, planar):
    values = VALUES if planar == "contig" else np.moveaxis(VALUES, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", planarconfig=planar)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif"), VALUES)


def test_grey_mask_stored_as_16_bit_rgb_is_a_mask_and_colours_of_16_bits_are_none(tmp_path):
    write_deep(tmp_path / "a.png", np.repeat(VALUES[..., :1] % 3, 3, axis=2))
    np.testing.assert_array_equal(read_mask_values(tmp_path / "a.png"), VALUES[..., 0] % 3)
    with pytest.raises(DataError, match="stores more than 8 bits a channel, so no colours"):
        read_colours(tmp_path / "a.png")


def test_damage_is_told(tmp_path):
    path = tmp_path / "a.png"
    write_deep(path, VALUES)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"IDAT", b"IDAT", 1)[:-40])
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        read_pixels(path)
    path.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        read_pixels(path)
    write_deep(path, VALUES, interlaced=1)
    with pytest.raises(DataError, match=r"a\.png: is interlaced.*Save it again without interlacing"):
        read_pixels(path)
