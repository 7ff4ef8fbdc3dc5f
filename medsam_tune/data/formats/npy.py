"""Plain ``.npy`` arrays, one image or one mask a file, as MedSAM's own training reads them.

Layout: bowang-lab/MedSAM @ d71e8a1, ``pre_CT_MR.py`` and ``pre_grey_rgb.py``: images (1024, 1024, 3) float in 0..1, masks
(1024, 1024) of label ids. 8-bit images of any size are read too, so a folder need not hold 24 MB a slice.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader, image_header, is_image_shape
from medsam_tune.data.formats.npz import UNREADABLE
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.errors import DataError
from medsam_tune.files import write_bytes

# A cubic resize of values in 0..1 leaves that range by a little.
_OVERSHOOT = 1e-3


class NpyFormat(Format):
    """Read (H, W) or (H, W, 3), floating point in 0..1 or uint8; anything else is refused. Masks hold label ids."""

    endings = (".npy",)
    holds_grey_levels = True

    def read_header(self, path: Path) -> VolumeHeader:
        """Read the shape; an array states no spacing, so a pixel is 1 mm wide.

        Raises:
            DataError: If the file is no plain array of an image's shape.
        """
        shape = _read(path, mapped=True).shape
        if not is_image_shape(shape):
            raise DataError(f"{path}: has shape {shape}, expected (H, W) or (H, W, 3). Save each slice as a file of its own.")
        return image_header(path, (shape[0], shape[1]))

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read an image (1, H, W) or (1, H, W, 3) in 0..255: uint8 as stored, floating point in 0..1 times 255."""
        return _image_levels(_read(path), path)[None]

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read label ids (1, H, W)."""
        return exact_labels(_read(path), path)[None]

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.npy`` of (H, W)."""
        content = io.BytesIO()
        np.save(content, labels[0], allow_pickle=False)
        return write_bytes(stem.with_name(f"{stem.name}.npy"), content.getvalue())


def _read(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read an array without running any code it may hold; ``mapped`` leaves the values on the disk until they are used."""
    try:
        # Mapping compares the claimed size with the file's before anything is allocated.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (*UNREADABLE, OverflowError) as error:
        raise DataError(f"{path}: cannot be read as a plain array ({error}). Replace or remove the file.") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: is an archive of arrays, not one array. Rename it to .npz and use MedsamNpz.")
    return array if mapped else np.array(array)


def _image_levels(values: NDArray[Any], path: Path) -> NDArray[Any]:
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{path}: stores {values.dtype}, expected uint8 or floating point in 0..1. Scale it, do not cast it.")
    values = check_grey_values(values, path)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        raise DataError(f"{path}: holds {low:.6g} to {high:.6g}, expected 0..1 for {values.dtype}. Scale it by a fixed window.")
    levels: NDArray[np.float32] = (np.clip(values, 0, 1) * 255).astype(np.float32)
    return levels
