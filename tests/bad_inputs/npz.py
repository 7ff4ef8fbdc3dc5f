"""MedSAM's npz files: archives that are damaged, lie about their arrays, or hold what is no picture."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np

from tests.bad_inputs.cases import NPZ, Case, wrote

FILE = "npz/n0.npz"


def held(**arrays):
    """Return what writes the file with other arrays; None leaves one out."""

    def hold():
        with np.load(FILE) as stored:
            kept = {name: stored[name] for name in stored.files}
        np.savez(FILE, **{name: array for name, array in {**kept, **arrays}.items() if array is not None})

    return hold


def header(text, content=b""):
    packed = text.encode().ljust(118)
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(packed)) + packed + content


def member(content, name="imgs.npy", **how):
    """Return what replaces one member by raw bytes."""

    def replace():
        with np.load(FILE) as stored:
            gts = stored["gts"]
        buffer = io.BytesIO()
        np.save(buffer, gts)
        with zipfile.ZipFile(FILE, "w", **how) as archive:
            archive.writestr(name, content)
            archive.writestr("gts.npy", buffer.getvalue())

    return replace


def of_shape(shape, descr="|u1"):
    return header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}")


def method_97():
    content = bytearray(Path(FILE).read_bytes())
    place = 0
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = 0
        while (place := content.find(mark, place)) >= 0:
            content[place + offset : place + offset + 2] = struct.pack("<H", 97)
            place += 4
    Path(FILE).write_bytes(bytes(content))


def encrypted():
    content = bytearray(Path(FILE).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = 0
        while (place := content.find(mark, place)) >= 0:
            content[place + offset] |= 1
            place += 4
    Path(FILE).write_bytes(bytes(content))


def bomb():
    """2 GB of zeros in 2 MB."""
    with zipfile.ZipFile(FILE, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("imgs.npy", "w", force_zip64=True) as file:
            file.write(of_shape("(2000000, 1000, 1)"))
            for _ in range(20):
                file.write(bytes(1_000_000))
        archive.writestr("gts.npy", of_shape("(2000000, 1000, 1)"))


def flipped():
    content = bytearray(Path(FILE).read_bytes())
    content[200] ^= 0xFF
    Path(FILE).write_bytes(bytes(content))


def cut(length):
    return lambda: Path(FILE).write_bytes(Path(FILE).read_bytes()[:length])


GREY = np.zeros((3, 8, 8))
OBJECTS = np.array([{"a": 1}], dtype=object)

CASES = [
    Case("file of no bytes", wrote(FILE, b""), NPZ, FILE),
    Case("file that is text", wrote(FILE, "hello"), NPZ, FILE),
    Case("file whose end is cut off", cut(300), NPZ, FILE),
    Case("byte changed", flipped, NPZ, FILE),
    Case("compression method 97", method_97, NPZ, FILE),
    Case("encrypted", encrypted, NPZ, FILE),
    Case("2 GB claimed, 20 MB of zeros packed", bomb, NPZ, FILE),
    Case("no image", held(imgs=None), NPZ, FILE),
    Case("no masks", held(gts=None), NPZ, FILE),
    Case("image of dates", held(imgs=GREY.astype("datetime64[s]")), NPZ, FILE),
    Case("image of words", held(imgs=np.full((3, 8, 8), "a")), NPZ, FILE),
    Case("image of objects", held(imgs=OBJECTS), NPZ, FILE),
    Case("image of complex numbers", held(imgs=GREY.astype(np.complex64)), NPZ, FILE),
    Case("image of named fields", held(imgs=np.zeros((3, 8, 8), [("a", "u1")])), NPZ, FILE),
    Case("image of NaN", held(imgs=GREY * np.nan), NPZ, FILE),
    Case("image of one axis", held(imgs=np.zeros(9)), NPZ, FILE),
    Case("image of five axes", held(imgs=np.zeros((1, 1, 3, 8, 8))), NPZ, FILE),
    Case("image without pixels", held(imgs=np.zeros((0, 8, 8)), gts=np.zeros((0, 8, 8), np.uint8)), NPZ, FILE),
    Case("masks of another shape", held(gts=np.zeros((3, 8, 9), np.uint8)), NPZ, FILE),
    Case("masks of fractions", held(gts=GREY + 0.5), NPZ, FILE),
    Case("masks of NaN", held(gts=GREY * np.nan), NPZ, FILE),
    Case("masks with a negative label", held(gts=np.full((3, 8, 8), -1)), NPZ, FILE),
    Case("masks with label 2^40", held(gts=np.full((3, 8, 8), 2**40)), NPZ, FILE),
    Case("masks of objects", held(gts=OBJECTS), NPZ, FILE),
    Case("spacing of two numbers", held(spacing=np.ones(2)), NPZ, FILE),
    Case("spacing of zero", held(spacing=np.zeros(3)), NPZ, FILE),
    Case("spacing of NaN", held(spacing=np.full(3, np.nan)), NPZ, FILE),
    Case("spacing that is negative", held(spacing=-np.ones(3)), NPZ, FILE),
    Case("claims (10^6, 10^6), has none", member(of_shape("(1000000, 1000000)")), NPZ, FILE),
    Case("claims (10^12, 10^12), has none", member(of_shape("(1000000000000, 1000000000000)")), NPZ, FILE),
    Case("claims a negative length", member(of_shape("(-3, 8, 8)")), NPZ, FILE),
    Case("claims a kind that there is not", member(of_shape("(3, 8, 8)", "|q9")), NPZ, FILE),
    Case("header that is no dictionary", member(header("(((((")), NPZ, FILE),
    Case("header with a line too many", member(header("{'descr': '|u1',\n '''")), NPZ, FILE),
    Case("member that is no array", member(b"hello"), NPZ, FILE),
    Case("member of no bytes", member(b""), NPZ, FILE),
]
