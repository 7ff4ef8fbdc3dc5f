"""An image that another program holds in memory, as a file that models are shown: by the rules for files, and no others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats import Format, VolumeHeader
from medsam_tune.data.formats.base import image_header
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.new_files import NewFile

_PLACE = Path("image")
_DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
ORIENTATION = "SPL"
"""Of a DICOM series in most programs: slices run to the head, rows to the back, columns to the patient's left."""


def held_image(
    values: NDArray[Any], *, orientation: str = ORIENTATION, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> NewFile:
    """Return an array as a file that ``SlicedFile`` shows.

    Args:
        values: (D, H, W) grey or (D, H, W, 3) colours, whose axes run as ``orientation`` says. With D = 1 it is a single image,
            shown as it lies, and has no orientation.
        orientation: Where each axis runs: one letter each of R or L, A or P, S or I.
        spacing_mm: Size of a voxel along each axis.

    Raises:
        DataError: If the values are no image.
        RecipeError: If the orientation is none.
    """
    if values.ndim not in (3, 4) or 0 in values.shape or (values.ndim == 4 and values.shape[3] != 3):
        raise DataError(f"the image must have shape (D, H, W) or (D, H, W, 3), got {values.shape}.")
    if values.dtype.kind not in "buif":
        raise DataError(f"the image must hold real numbers, got {values.dtype}.")
    if not np.isfinite(values).all():
        n_faulty = int((~np.isfinite(values)).sum())
        raise DataError(f"the image holds {n_faulty} values that are NaN or infinite. Replace them first.")
    first, second, third = values.shape[:3]
    affine = _affine(orientation, spacing_mm)
    header = VolumeHeader(_PLACE, (first, second, third), affine)
    if first == 1:
        header = image_header(_PLACE, (second, third), (float(spacing_mm[1]), float(spacing_mm[2])))
    return NewFile(_PLACE, _PLACE.name, _Held(header, _plain(values)))


class _Held(Format):
    """Read the one image that is held; there is no file behind it."""

    endings = ("",)

    def __init__(self, header: VolumeHeader, values: NDArray[Any]) -> None:
        self._header, self._values = header, values

    def read_header(self, path: Path) -> VolumeHeader:
        """Return the header that was made for the image."""
        return self._header

    def read_image(self, path: Path) -> NDArray[Any]:
        """Return the image."""
        return self._values

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Refuse: an image that is held brings no masks.

        Raises:
            DataError: Always.
        """
        raise DataError(f"{path}: is held in memory and has no masks.")

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Refuse: the masks go back to the program that holds the image.

        Raises:
            DataError: Always.
        """
        raise DataError(f"{stem}: the image is held in memory, so no file says how its masks are written.")


def check_orientation(orientation: str) -> None:
    """Refuse what names no orientation.

    Raises:
        RecipeError: Saying what is expected.
    """
    axes = [_DIRECTIONS[letter][0] for letter in orientation if letter in _DIRECTIONS]
    if len(orientation) != 3 or sorted(axes) != [0, 1, 2]:
        raise RecipeError(
            f"--orientation: expected one letter each of R or L, A or P, S or I, got {orientation}. "
            f"{ORIENTATION} is a DICOM series: slices to the head (S), rows to the back (P), columns to the left (L)."
        )


def _affine(orientation: str, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    check_orientation(orientation)
    if len(spacing_mm) != 3 or not all(math.isfinite(size) and size > 0 for size in spacing_mm):
        raise DataError("the image's spacing must be three numbers above 0, in mm. Leave it out if it is unknown.")
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, letter in enumerate(orientation):
        row, direction = _DIRECTIONS[letter]
        affine[row, axis] = direction * spacing_mm[axis]
    return affine


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return the values in a type in which percentiles neither overflow nor fail, in this machine's order of bytes."""
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
