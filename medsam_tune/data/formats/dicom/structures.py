"""RT structure sets: regions as polygons on the slices of a series."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import VolumeHeader
from medsam_tune.data.formats.dicom.placing import stack_layers
from medsam_tune.data.formats.dicom.polygons import fill_polygons
from medsam_tune.data.formats.dicom.reading import read_dataset, readable
from medsam_tune.errors import DataError

# What encloses an area; points and open lines do not.
_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# Part of the distance of slices by which a contour may lie off its slice: rounding in the headers.
_ROUNDING = 0.1


@dataclass(frozen=True)
class StructureSet:
    """Hold the regions of a file.

    Attributes:
        path: The file.
        names: Region number to name, of those that have an area.
        contours: Region number to polygons, (N, 3) in RAS millimetres.
    """

    path: Path
    names: dict[int, str]
    contours: dict[int, list[NDArray[np.float64]]]


def read_structures(path: Path) -> StructureSet:
    """Read the regions of a structure set.

    Raises:
        DataError: If a contour is no row of points.
    """
    dataset = read_dataset(path)
    contours: dict[int, list[NDArray[np.float64]]] = {}
    with readable(path):
        names = {int(item.ROINumber): str(item.get("ROIName", "")) for item in dataset.get("StructureSetROISequence", [])}
        for item in dataset.get("ROIContourSequence", []):
            number = int(item.ReferencedROINumber)
            areas = [_points(found, path) for found in item.get("ContourSequence") or [] if _is_area(found)]
            if areas and number < 1:
                raise DataError(f"{path}: numbers a region {number}, expected numbers above 0. Save the regions again.")
            if areas:
                contours[number] = areas
    return StructureSet(path, {number: names.get(number, "") for number in sorted(contours)}, contours)


def read_regions(found: StructureSet, image: VolumeHeader) -> NDArray[np.int32]:
    """Fill the contours on an image's slices: its ``stored_shape``, with a last axis of layers where regions overlap.

    A pixel belongs to a region if its centre lies inside an odd number of its contours on that slice, so that a contour inside
    another is a hole. Contours beyond the first and last slice are left out.

    Raises:
        DataError: If a contour lies between slices or across them.
    """
    size = image.stored_shape[1:]
    places: dict[int, NDArray[np.int64]] = {}
    for number in found.contours:
        flat = [
            position * size[0] * size[1] + np.flatnonzero(fill_polygons(polygons, size))
            for position, polygons in _on_slices(found, number, image).items()
        ]
        if flat:
            places[number] = np.concatenate(flat)
    return stack_layers(places, image.stored_shape)


def beyond_image(found: StructureSet, image: VolumeHeader) -> int:
    """Return how many contours lie beyond the first or last slice.

    Raises:
        DataError: As ``read_regions``.
    """
    kept = sum(len(polygons) for number in found.contours for polygons in _on_slices(found, number, image).values())
    return sum(len(contours) for contours in found.contours.values()) - kept


def _on_slices(found: StructureSet, number: int, image: VolumeHeader) -> dict[int, list[NDArray[np.float64]]]:
    """Return the contours of a region by slice, as (row, column)."""
    by_slice: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    to_voxels = np.linalg.inv(image.affine)
    for points in found.contours[number]:
        voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        depth = float(voxels[:, 0].mean())
        position = round(depth)
        off = float(np.abs(voxels[:, 0] - position).max())
        if not -0.5 <= depth <= image.stored_shape[0] - 0.5 and np.ptp(voxels[:, 0]) < 1:
            continue
        if off > _ROUNDING:
            raise DataError(
                f"{found.path}: a contour of region {number} lies {off:.2g} slices off slice {position + 1} of the image. "
                "Take the series on which it was drawn."
            )
        by_slice[position].append(voxels[:, 1:])
    return by_slice


def _is_area(item: Any) -> bool:  # noqa: ANN401
    return str(item.get("ContourGeometricType", "")) in _AREAS and bool(item.get("ContourData"))


def _points(item: Any, path: Path) -> NDArray[np.float64]:  # noqa: ANN401
    values = np.array([float(value) for value in item.ContourData], np.float64)
    if values.size % 3 or not np.isfinite(values).all():
        raise DataError(f"{path}: a contour has {values.size} numbers, expected three finite ones a point. Replace the file.")
    points: NDArray[np.float64] = values.reshape(-1, 3) * np.array([-1.0, -1.0, 1.0])
    return points
