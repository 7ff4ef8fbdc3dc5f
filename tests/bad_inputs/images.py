"""Images and masks as files: cut off, of no size, of another kind, or not what their names say."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_inputs.cases import RUN, Case, nothing, wrote

IMAGE = "images/images/c0_0.png"
MASK = "images/masks/c0_0.png"


def saved(path, pixels):
    return lambda: Image.fromarray(np.asarray(pixels)).save(path)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, content=b"", depth=8, colour=0):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def cut(path, length):
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:length])


def flipped(path):
    def flip():
        content = bytearray(Path(path).read_bytes())
        content[len(content) // 2] ^= 0xFF
        Path(path).write_bytes(bytes(content))

    return flip


def replaced(path, make):
    def replace():
        Path(path).unlink()
        make(Path(path))

    return replace


def patients_behind_a_link():
    for folder in ("images", "masks"):
        root = Path("images", folder)
        (Path("elsewhere") / folder).mkdir(parents=True)
        for path in root.glob("c0_*"):
            path.rename(Path("elsewhere") / folder / path.name)
        (root / "c0").symlink_to(Path("../../elsewhere", folder).resolve() / "gone")


def folder_that_is_a_file():
    Path("images/images").rename("moved")
    Path("images/images").write_text("x")


def as_tiff(path, pixels):
    def write():
        Path(path).unlink()
        Image.fromarray(pixels).save(Path(path).with_suffix(".tiff"))

    return write


def repeated(values, dtype=np.uint8):
    return np.resize(np.array(values, dtype), (16, 20))


RGB = np.dstack([repeated([0, 90]), repeated([0, 30]), repeated([0, 60])])
TIFF_OF_NO_SIZE = b"II*\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00"
DDS = b"DDS " + struct.pack("<I", 124) + bytes(72) + struct.pack("<II4s", 32, 4, b"ABCD") + bytes(40)

CASES = [
    Case("image of no bytes", wrote(IMAGE, b""), RUN, IMAGE),
    Case("image that is text", wrote(IMAGE, "hello"), RUN, IMAGE),
    Case("image whose end is cut off", cut(IMAGE, 150), RUN, IMAGE),
    Case("image cut off in its header", cut(IMAGE, 20), RUN, IMAGE),
    Case("image with a byte changed", flipped(IMAGE), RUN, IMAGE),
    Case("image that claims 60000 x 60000 pixels", wrote(IMAGE, png(60000, 60000)), RUN, IMAGE),
    Case("image that claims 2 x 10^9 rows", wrote(IMAGE, png(1, 2_000_000_000)), RUN, IMAGE),
    Case("image of no width", wrote(IMAGE, png(0, 16)), RUN, IMAGE),
    Case("image of 200 million zeros in 200 kB", wrote(IMAGE, png(14000, 14000, bytes(14001) * 100)), RUN, IMAGE),
    Case("image of one pixel, mask larger", saved(IMAGE, repeated([7])[:1, :1]), RUN, MASK),
    Case("image that is a web page", wrote(IMAGE, "<!DOCTYPE html><html>404</html>"), RUN, IMAGE),
    Case("image that is a TIFF without a size", wrote(IMAGE, TIFF_OF_NO_SIZE), RUN, IMAGE),
    Case("image that is a DDS of an unknown kind", wrote(IMAGE, DDS), RUN, IMAGE),
    Case("image that is PostScript", wrote(IMAGE, "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), RUN, IMAGE),
    Case("image that is a folder", replaced(IMAGE, Path.mkdir), RUN, "c0_0"),
    Case("image that is a FIFO", replaced(IMAGE, os.mkfifo), RUN, IMAGE),
    Case("image and mask that are FIFOs", lambda: [replaced(path, os.mkfifo)() for path in (IMAGE, MASK)], RUN, "c0_0.png"),
    Case("image that is a link to nothing", replaced(IMAGE, lambda path: path.symlink_to("gone.png")), RUN, IMAGE),
    Case("image that is a link to itself", replaced(IMAGE, lambda path: path.symlink_to(path.name)), RUN, IMAGE),
    Case("patient's folder that is a link to nothing", patients_behind_a_link, RUN, "images/c0"),
    Case("two images of one name and two endings", lambda: Image.open(IMAGE).save(IMAGE[:-3] + "bmp"), RUN, "c0_0"),
    Case("folder of images that is empty", lambda: [path.unlink() for path in Path("images/images").iterdir()], RUN, "images"),
    Case("folder of images that is a file", folder_that_is_a_file, RUN, "images/images"),
    Case("folder of data that is a file", nothing, (*RUN, "--data.root=tiny.yaml"), "tiny.yaml"),
    Case("mask of no bytes", wrote(MASK, b""), RUN, MASK),
    Case("mask whose end is cut off", cut(MASK, 40), RUN, MASK),
    Case("mask of another size", saved(MASK, repeated([0, 255])[:8]), RUN, MASK),
    Case("mask turned on its side", saved(MASK, repeated([0, 255]).T), RUN, MASK),
    Case("mask of three values for one object", saved(MASK, repeated([0, 1, 2])), RUN, MASK),
    Case("mask that is grey everywhere", saved(MASK, repeated(range(200))), RUN, MASK),
    Case("mask with a negative value", as_tiff(MASK, repeated([0, -1], np.int32)), RUN, "masks/c0_0.tiff"),
    Case("mask of fractions", as_tiff(MASK, repeated([0, 0.5], np.float32)), RUN, "masks/c0_0.tiff"),
    Case("mask of NaN", as_tiff(MASK, repeated([0, np.nan], np.float32)), RUN, "masks/c0_0.tiff"),
    Case("image of NaN", as_tiff(IMAGE, repeated([0, np.nan], np.float32)), RUN, "images/c0_0.tiff"),
    Case("mask in colours", saved(MASK, RGB), RUN, MASK),
    Case("mask missing", lambda: Path(MASK).unlink(), RUN, "c0_0"),
    Case("image missing", lambda: Path(IMAGE).unlink(), RUN, "c0_0"),
    Case("masks all empty", lambda: [saved(path, repeated([0]))() for path in Path("images/masks").iterdir()], RUN, "images"),
    Case("threshold of masks below 0", nothing, (*RUN, "--data.source.mask_threshold=-1"), "mask_threshold"),
    Case("threshold of masks that none reaches", nothing, (*RUN, "--data.source.mask_threshold=255"), "images"),
    Case("label of a negative value", nothing, (*RUN, "--data.source.labels={a: [-1, 255]}"), "data.source.labels"),
    Case("label of a fraction", nothing, (*RUN, "--data.source.labels={a: [1.5]}"), "data.source.labels"),
    Case("label of no value", nothing, (*RUN, "--data.source.labels={a: []}"), "data.source.labels"),
    Case("case pattern that is no expression", nothing, (*RUN, "--data.source.case_pattern=("), "data.source.case_pattern"),
    Case("case pattern that fits no name", nothing, (*RUN, "--data.source.case_pattern=^(x)"), "case_pattern"),
    Case("case pattern without a group", nothing, (*RUN, "--data.source.case_pattern=c"), "case_pattern"),
]
