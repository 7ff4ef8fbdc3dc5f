"""NIfTI volumes: headers that lie, geometry that cannot be, values that no mask may hold."""

import gzip
from pathlib import Path

import nibabel
import numpy as np

from tests.bad_inputs.cases import VOLUMES, Case, nothing, wrote

IMAGE = "volumes/images/v0.nii.gz"
LABEL = "volumes/labels/v0.nii.gz"
PLAIN = "volumes/images/v0.nii"


def stored(path, values, affine=None, **fields):
    """Return what writes a volume with fields of its header set to what nibabel would not write."""

    def store():
        image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine, dtype=values.dtype)
        content = bytearray(image.to_bytes())
        header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
        for name, value in fields.items():
            header[name] = value
        content[:348] = header.binaryblock
        Path(path).write_bytes(gzip.compress(bytes(content), mtime=0))

    return store


def both(*steps):
    return lambda: [step() for step in steps]


def cube(dtype, high=90):
    values = np.zeros((8, 8, 3), dtype)
    values[2:6, 2:5] = high
    return values


def claims(shape, dtype=4, packed=True):
    """A header of that shape with a kilobyte of zeros behind it."""
    header = nibabel.Nifti1Header()
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["datatype"], header["bitpix"] = dtype, 16
    header["pixdim"][1:4] = 1
    header["sform_code"], header["vox_offset"] = 1, 352
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(4)[:3]
    header["magic"] = b"n+1"
    content = header.binaryblock + bytes(4) + bytes(1024)
    return gzip.compress(content) if packed else content


def unpacked_that_claims(shape):
    def write():
        Path(IMAGE).unlink()
        Path(PLAIN).write_bytes(claims(shape, packed=False))
        Path(LABEL).write_bytes(claims(shape))

    return write


def bomb():
    """1.5 GB of zeros in 1.5 MB."""
    header = claims((1500, 1000, 1000), dtype=2, packed=False)[:352]
    with gzip.open(IMAGE, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(1500 // 100):
            file.write(bytes(1_000_000))
    Path(LABEL).write_bytes(Path(IMAGE).read_bytes())


def with_tail():
    """A volume behind which 100 MB of zeros follow."""
    content = gzip.decompress(Path(IMAGE).read_bytes())
    Path(IMAGE).write_bytes(gzip.compress(content) + gzip.compress(bytes(100_000_000), 1))


def bits_rotten():
    content = bytearray(Path(IMAGE).read_bytes())
    content[-6] ^= 0xFF
    Path(IMAGE).write_bytes(bytes(content))


def cut(path, length):
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:length])


NAN = np.full((4, 4), np.nan)
SINGULAR = np.diag([1.0, 1.0, 0.0, 1.0])
NO_FORM = {"qform_code": 0, "sform_code": 0}

CASES = [
    Case("volume of no bytes", wrote(IMAGE, b""), VOLUMES, IMAGE),
    Case("volume that is text", wrote(IMAGE, "hello"), VOLUMES, IMAGE),
    Case("volume whose end is cut off", cut(IMAGE, 90), VOLUMES, IMAGE),
    Case("volume cut off in its header", cut(IMAGE, 40), VOLUMES, IMAGE),
    Case("gzip with a wrong checksum", bits_rotten, VOLUMES, IMAGE),
    Case("gzip that is none", wrote(IMAGE, b"\x1f\x8b" + bytes(90)), VOLUMES, IMAGE),
    Case("header of zeros", wrote(IMAGE, gzip.compress(bytes(400))), VOLUMES, IMAGE),
    Case(
        "claims 1200^3 voxels, has none",
        both(wrote(IMAGE, claims((1200, 1200, 1200))), wrote(LABEL, claims((1200, 1200, 1200)))),
        VOLUMES,
        IMAGE,
    ),
    Case(
        "claims 30000^3 voxels, has none",
        both(wrote(IMAGE, claims((30000, 30000, 30000))), wrote(LABEL, claims((30000, 30000, 30000)))),
        VOLUMES,
        IMAGE,
    ),
    Case("claims 30000^3 voxels, unpacked", unpacked_that_claims((30000, 30000, 30000)), VOLUMES, PLAIN),
    Case("claims 1.5 GB, has 15 MB of zeros", bomb, VOLUMES, IMAGE),
    Case("100 MB behind its voxels", with_tail, VOLUMES, IMAGE),
    Case("axis without voxels", stored(IMAGE, cube(np.int16), dim=[3, 0, 8, 3, 1, 1, 1, 1]), VOLUMES, IMAGE),
    Case("axis of negative length", stored(IMAGE, cube(np.int16), dim=[3, -8, 8, 3, 1, 1, 1, 1]), VOLUMES, IMAGE),
    Case("nine axes", stored(IMAGE, cube(np.int16), dim=[9, 8, 8, 3, 1, 1, 1, 1]), VOLUMES, IMAGE),
    # One slice may come with two axes; its mask has three slices.
    Case("two axes", stored(IMAGE, cube(np.int16)[..., 0]), VOLUMES, LABEL, "differs from image shape (8, 8, 1)"),
    Case("four axes", stored(IMAGE, np.zeros((8, 8, 3, 2), np.int16)), VOLUMES, IMAGE),
    Case("unknown kind of values", stored(IMAGE, cube(np.int16), datatype=777), VOLUMES, IMAGE),
    Case(
        "voxels of no size, qform alone",
        stored(IMAGE, cube(np.int16), pixdim=[1, 0, 0, 0, 0, 0, 0, 0], sform_code=0, qform_code=1),
        VOLUMES,
        IMAGE,
    ),
    Case("voxels of no size, no form at all", stored(IMAGE, cube(np.int16), pixdim=[0] * 8, **NO_FORM), VOLUMES, IMAGE),
    Case("voxels of negative size", stored(IMAGE, cube(np.int16), pixdim=[1, -1, 1, 1, 0, 0, 0, 0], **NO_FORM), VOLUMES, IMAGE),
    Case("affine of NaN", stored(IMAGE, cube(np.int16), srow_x=[np.nan] * 4), VOLUMES, IMAGE),
    Case("affine of infinity", stored(IMAGE, cube(np.int16), srow_y=[np.inf] * 4), VOLUMES, IMAGE),
    Case("affine of zeros", stored(IMAGE, cube(np.int16), srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4), VOLUMES, IMAGE),
    Case("affine that folds an axis away", stored(IMAGE, cube(np.int16), srow_z=[0, 0, 0, 1]), VOLUMES, IMAGE),
    Case("slope of infinity", stored(IMAGE, cube(np.int16), scl_slope=np.inf, scl_inter=0), VOLUMES, IMAGE),
    Case("intercept of infinity", stored(IMAGE, cube(np.int16), scl_slope=1, scl_inter=-np.inf), VOLUMES, IMAGE),
    Case("complex image", stored(IMAGE, cube(np.complex64)), VOLUMES, IMAGE),
    Case("complex mask", stored(LABEL, cube(np.complex64, 1)), VOLUMES, LABEL),
    Case("image with NaN", stored(IMAGE, cube(np.float32, np.nan)), VOLUMES, IMAGE),
    Case("image with infinity", stored(IMAGE, cube(np.float32, np.inf)), VOLUMES, IMAGE),
    Case("image of one value", stored(IMAGE, cube(np.int16, 0)), (*VOLUMES, "--data.source.window=[0, 0]"), "window"),
    Case("mask with NaN", stored(LABEL, cube(np.float32, np.nan)), VOLUMES, LABEL),
    Case("mask of fractions", stored(LABEL, cube(np.float32, 0.5)), VOLUMES, LABEL),
    Case("mask with a negative label", stored(LABEL, cube(np.int16, -1)), VOLUMES, LABEL),
    Case("mask with label 2^40", stored(LABEL, cube(np.int64, 2**40)), VOLUMES, LABEL),
    Case("mask with label 3 x 10^9", stored(LABEL, cube(np.uint32, 3_000_000_000)), VOLUMES, LABEL),
    Case("mask of floating point beyond its whole numbers", stored(LABEL, cube(np.float32, 2**25)), VOLUMES, LABEL),
    Case("mask of another shape", stored(LABEL, cube(np.uint8, 1)[:7]), VOLUMES, LABEL),
    Case("mask elsewhere in space", stored(LABEL, cube(np.uint8, 1), np.diag([2.0, 2, 2, 1])), VOLUMES, LABEL),
    Case("mask missing", lambda: Path(LABEL).unlink(), VOLUMES, "v0"),
    Case("folder of masks missing", nothing, (*VOLUMES, "--data.source.masks=none"), "volumes/none"),
    Case("axis of that name unknown", nothing, (*VOLUMES, "--data.source.axis=oblique"), "data.source.axis"),
    Case("window turned round", nothing, (*VOLUMES, "--data.source.window=[400, -100]"), "window"),
    Case("window of NaN", nothing, (*VOLUMES, "--data.source.window=[.nan, 100]"), "window"),
    Case("percentiles beyond 100", nothing, (*VOLUMES, "--data.source.percentiles=[1, 140]"), "percentiles"),
    Case("slices of a range turned round", nothing, (*VOLUMES, "--data.source.slices.range=[0.9, 0.1]"), "slices"),
    Case("every 0th slice", nothing, (*VOLUMES, "--data.source.slices.step=0"), "slices.step"),
]
