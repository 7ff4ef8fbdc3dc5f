"""Read NIfTI volumes in RAS order, and refuse what would put masks on the wrong voxels."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.intensity import to_grey_levels
from medsam_tune.errors import DataError

ENDINGS = (".nii", ".nii.gz")
_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


@dataclass(frozen=True)
class VolumeHeader:
    """Hold what a NIfTI header says, without its voxels.

    Attributes:
        path: The file.
        stored_shape: Shape as stored.
        affine: (4, 4), stored voxel index to mm.
        shape: (X, Y, Z) in RAS order.
        voxel_mm: Voxel size (x, y, z) in mm, in RAS order.
    """

    path: Path
    stored_shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]

    def to_stored(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Turn a RAS volume (X, Y, Z) into the order of the file, so that it fits the file's affine."""
        from nibabel import orientations

        ras = orientations.axcodes2ornt(("R", "A", "S"))
        turn = orientations.ornt_transform(ras, orientations.io_orientation(self.affine))
        turned: NDArray[Any] = np.ascontiguousarray(orientations.apply_orientation(volume, turn))
        return turned


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        yield
    except (OSError, EOFError, TypeError, ValueError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise DataError(f"{path}: cannot be read as NIfTI ({error}). Replace or remove the file.") from error


def _load(path: Path) -> Any:  # noqa: ANN401 - nibabel is not typed
    import nibabel

    with _readable(path):
        image = nibabel.load(path)
        shape = tuple(image.shape)
        if len(shape) > 3 and set(shape[3:]) == {1}:
            image = image.slicer[(..., *(0,) * (len(shape) - 3))]
    if len(image.shape) != 3:
        raise DataError(f"{path}: has shape {shape}, expected a volume of 3 axes. Save each channel or time point as a file.")
    return image


def read_header(path: Path) -> VolumeHeader:
    """Read shape, affine and voxel size.

    Raises:
        DataError: If the file is no NIfTI volume of three axes.
    """
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import io_orientation

    image = _load(path)
    order = io_orientation(image.affine)
    if np.isnan(order).any():
        raise DataError(f"{path}: its affine has a zero axis, so the orientation is unknown. Repair the header.")
    # io_orientation gives, for each stored axis, the RAS axis it runs along.
    stored_axis = [int(np.flatnonzero(order[:, 0] == axis)[0]) for axis in range(3)]
    mm = _MM_PER_UNIT.get(image.header.get_xyzt_units()[0], 1.0)
    zooms = [float(size) * mm for size in voxel_sizes(image.affine)]
    shape = tuple(int(length) for length in image.shape)
    return VolumeHeader(
        path,
        (shape[0], shape[1], shape[2]),
        np.asarray(image.affine, np.float64),
        (shape[stored_axis[0]], shape[stored_axis[1]], shape[stored_axis[2]]),
        (zooms[stored_axis[0]], zooms[stored_axis[1]], zooms[stored_axis[2]]),
    )


def check_same_grid(image: VolumeHeader, mask: VolumeHeader) -> None:
    """Refuse a mask that does not lie on its image's voxels.

    Raises:
        DataError: If shape, spacing or affine differ; the message has both values.
    """
    if mask.stored_shape != image.stored_shape:
        raise DataError(
            f"{mask.path}: mask shape {mask.stored_shape} differs from image shape {image.stored_shape}. "
            "Resample the mask or remove the case."
        )
    if not np.allclose(mask.voxel_mm, image.voxel_mm, rtol=1e-3):
        raise DataError(
            f"{mask.path}: mask spacing {_rounded(mask.voxel_mm)} mm differs from image spacing {_rounded(image.voxel_mm)} mm. "
            "Resample the mask or remove the case."
        )
    # A hundredth of a voxel at the far corner is rounding in the header, not another position.
    corners = np.array([[0, 0, 0, 1], [*image.stored_shape, 1]], np.float64)
    shift = float(np.abs((corners @ (mask.affine - image.affine).T)[:, :3]).max())
    if shift > 0.01 * min(image.voxel_mm):
        raise DataError(
            f"{mask.path}: mask affine differs from the image's by {shift:.3g} mm. "
            "Resample the mask onto the image, or copy the image's header if you know that the voxels match."
        )


def read_grey_levels(path: Path, *, window: tuple[float, float] | None, percentiles: tuple[float, float]) -> NDArray[np.uint8]:
    """Read a volume (X, Y, Z) in RAS order as grey levels 0..255, rounded to 8 bits.

    Args:
        path: The file.
        window: Fixed lower and upper value, or None.
        percentiles: Used without a window: percentiles of all voxels of this volume.

    Raises:
        DataError: If the file cannot be read, or holds NaN or infinite values.
    """
    values = _voxels(path)
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        raise DataError(f"{path}: {n_bad} of {values.size} voxels are NaN or infinite. Repair the volume or remove the case.")
    low, high = window or (float(v) for v in np.percentile(values, percentiles))
    return np.rint(to_grey_levels(values, low, high)).astype(np.uint8)


def read_label_values(path: Path) -> NDArray[np.int32]:
    """Read a label volume (X, Y, Z) in RAS order.

    Raises:
        DataError: If the file cannot be read, or a value is not a whole number of 0 or more.
    """
    values = _voxels(path)
    wrong = ~np.isfinite(values) | (values < 0) | (values != np.rint(np.nan_to_num(values)))
    if wrong.any():
        examples = [float(value) for value in np.unique(values[wrong])[:4]]
        raise DataError(
            f"{path}: {int(wrong.sum())} label values are no whole numbers of 0 or more, such as {examples}. "
            "Resample label maps with nearest neighbour and save them as integers."
        )
    return values.astype(np.int32)


def _voxels(path: Path) -> NDArray[np.float32]:
    import nibabel

    image = _load(path)
    with _readable(path):
        values: NDArray[np.float32] = np.asarray(nibabel.as_closest_canonical(image).dataobj, dtype=np.float32)
    return values


def _rounded(sizes: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(size, 4) for size in sizes)
