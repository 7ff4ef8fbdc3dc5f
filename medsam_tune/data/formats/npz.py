"""MedSAM's ``.npz`` files, as its pre-processing and the challenge of CVPR 2024 use them.

Keys: ``imgs`` (H, W, 3), (H, W) or (D, H, W); ``gts`` of label ids (H, W) or (D, H, W); ``spacing`` of volumes, as SimpleITK
gives it: (x, y, z) in mm; ``boxes`` (K, 4) XYXY or, of a volume, (K, 6) as x1, y1, z1, x2, y2, z2. Only ``imgs`` is in every
file. Predictions are ``segs``, as the challenge wants them. Files of others are read too: ``image`` and ``label``,
as TransUNet's slices of Synapse have them, ``mask`` and ``seg``.

Layout: bowang-lab/MedSAM @ d71e8a1, ``pre_CT_MR.py``, and its LiteMedSAM branch.

Differs from the authors' code:
- Files never run code: pickled arrays are refused.
- 16-bit and floating-point images become grey levels by a rule for the whole volume; there they wrap when cast to 8 bits.
- All slices are kept, or those that a rule chooses; there only slices with an object.
- Other keys, such as MedSAM2's ``direction``, are not read: slices lie as they are stored.
"""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader, image_header, is_image_shape, slices_affine
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.errors import DataError
from medsam_tune.files import write_bytes

UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,  # an encrypted member; NotImplementedError, an unknown compression
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile were seen to raise on damaged bytes."""


IMAGE_KEYS = ("imgs", "image")
MASK_KEYS = ("gts", "label", "mask", "seg")
"""Names of the arrays; the first that a file has counts."""


class NpzFormat(Format):
    """Read ``.npz`` files that hold an image or a volume and perhaps its masks; masks are written as ``segs``."""

    endings = (".npz",)
    holds_labels = True

    def read_header(self, path: Path) -> VolumeHeader:
        """Read the shape of ``imgs`` and the spacing; without it, and for single images, a voxel is 1 mm wide.

        Raises:
            DataError: If the file cannot be read, has no ``imgs``, or one of another shape.
        """
        shapes = array_shapes(path)
        key = _key(shapes, IMAGE_KEYS)
        if key is None:
            raise DataError(f"{path}: has no imgs; its keys are {sorted(shapes)}. Add it or remove the file.")
        shape = shapes[key]
        if 0 in shape or not (is_image_shape(shape) or len(shape) == 3):
            raise DataError(f"{path}: {key} has shape {shape}, expected (H, W), (H, W, 3) or (D, H, W). Split the file.")
        if is_image_shape(shape):
            return image_header(path, (shape[0], shape[1]))
        spacing = _spacing(path) if "spacing" in shapes else (1.0, 1.0, 1.0)
        stored = (shape[0], shape[1], shape[2])
        return VolumeHeader(path, stored, slices_affine(spacing), states_spacing="spacing" in shapes)

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read ``imgs``; a single image gets a first axis of length 1."""
        key = _key(array_shapes(path), IMAGE_KEYS) or IMAGE_KEYS[0]
        values = check_grey_values(read_key(path, key), f"{path}: {key}")
        return values[None] if is_image_shape(values.shape) else values

    def read_label_header(self, path: Path) -> VolumeHeader | None:
        """Read the shape of ``gts``, or None where there are none."""
        shapes = array_shapes(path)
        key, of_image = _key(shapes, MASK_KEYS), _key(shapes, IMAGE_KEYS)
        if key is None:
            return None
        image, shape = shapes.get(of_image or "", ()), shapes[key]
        expected = image[:2] if is_image_shape(image) else image
        if shape != expected:
            raise DataError(f"{path}: {key} has shape {shape}, expected {expected}, as {of_image} {image}. Make them one size.")
        return self.read_header(path)

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read ``gts``; those of a single image get a first axis of length 1."""
        key = _key(array_shapes(path), MASK_KEYS) or MASK_KEYS[0]
        values = exact_labels(read_key(path, key), f"{path}: {key}")
        return values[None] if values.ndim == 2 else values

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.npz`` with ``segs`` and, for a volume, the source's ``spacing``."""
        arrays: dict[str, NDArray[Any]] = {"segs": labels if header.is_volume else labels[0]}
        if header.is_volume:
            arrays["spacing"] = np.array(header.voxel_mm)
        packed = io.BytesIO()
        np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
        return write_bytes(stem.with_name(f"{stem.name}.npz"), packed.getvalue())

    def holds_boxes(self, path: Path) -> bool:
        """Tell whether there are ``boxes``."""
        return "boxes" in array_shapes(path)

    def read_boxes(self, path: Path, header: VolumeHeader) -> NDArray[np.float32]:
        """Read the file's own boxes: (K, 4) XYXY of an image, (K, 6) as x1, y1, z1, x2, y2, z2 of a volume.

        Raises:
            DataError: If the file has no ``boxes``, they have another shape, lie outside the image, or end before they begin.
        """
        boxes = _box_rows(read_key(path, "boxes"), columns=6 if header.is_volume else 4, path=path)
        half = boxes.shape[1] // 2
        low, high = boxes[:, :half], boxes[:, half:]
        depth, height, width = header.stored_shape
        # A box may end at the image's edge, one beyond the last pixel.
        largest = np.array([width, height, depth][:half], np.float32)
        wrong = ((low > high) | (low < 0) | (high > largest) | ~np.isfinite(low + high)).any(axis=1)
        if wrong.any():
            raise DataError(
                f"{path}: box {boxes[wrong][0].tolist()} lies outside the image of {(height, width)} (H, W) "
                "or ends before it begins. Correct the file."
            )
        return boxes


def array_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array from its header, without unpacking the values.

    Raises:
        DataError: If the file is no archive of arrays, or an array claims more bytes than the archive says it has.
    """
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(file)
                name = member.filename.removesuffix(".npy")
                claimed = math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and claimed > member.file_size:
                    raise DataError(
                        f"{path}: {name} claims {claimed} bytes for {shape}, but has {member.file_size}. Replace the file."
                    )
                shapes[name] = tuple(shape)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as .npz ({error}). Replace or remove the file.") from error
    return shapes


def read_key(path: Path, key: str) -> NDArray[Any]:
    """Read one array of an archive, whose checksum is compared.

    Raises:
        DataError: If there is none of that name, or it is damaged or pickled.
    """
    shapes = array_shapes(path)
    if key not in shapes:
        raise DataError(f"{path}: has no {key}; its keys are {sorted(shapes)}. Add it or remove the file.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            array: NDArray[Any] = archive[key]
    except MemoryError as error:
        raise DataError(f"{path}: {key} does not fit into memory ({error}). Split the file.") from error
    except UNREADABLE as error:
        raise DataError(f"{path}: {key} cannot be read as a plain array ({error}). Replace or remove the file.") from error
    return array


def _key(shapes: Mapping[str, tuple[int, ...]], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in shapes), None)


def _box_rows(boxes: NDArray[Any], *, columns: int, path: Path) -> NDArray[np.float32]:
    if boxes.ndim != 2 or boxes.shape[1] != columns:
        raise DataError(f"{path}: boxes has shape {tuple(boxes.shape)}, expected (K, {columns}). Correct the file.")
    return boxes.astype(np.float32)


def _spacing(path: Path) -> tuple[float, float, float]:
    values = read_key(path, "spacing")
    if values.shape != (3,) or values.dtype.kind not in "iuf" or not (np.isfinite(values).all() and (values > 0).all()):
        raise DataError(f"{path}: spacing is {values.tolist()}, expected three sizes above 0 in mm as (x, y, z). Correct it.")
    return float(values[0]), float(values[1]), float(values[2])
