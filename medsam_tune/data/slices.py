"""Slices of a volume: which positions are used, and how a slice is turned for display.

Volumes are in RAS order: the array's axes run to the patient's right, to the front, and up. Slices are shown as radiologists
see them: axial with the front up and the patient's right on the left, coronal with the head up and the patient's right on the
left, sagittal with the head up and the front on the left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import RecipeError

Axis = Literal["sagittal", "coronal", "axial"]
AXIS_NUMBER: dict[str, int] = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class SliceRule:
    """Choose slice positions from the length of the axis alone; no label is ever read.

    Attributes:
        count: This many positions, evenly spaced: the middles of equal parts of the range. All of them where there are fewer.
        step: Every ``step``-th position, from the first of the range on; not together with ``count``.
        range: Part of the axis that is used, as fractions of its length.
    """

    count: int | None = None
    step: int | None = None
    range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.count is not None and self.step is not None:
            raise RecipeError(
                f"data.source.slices or train_slices: count {self.count} and step {self.step} exclude each other. Keep one."
            )
        for name, value in (("count", self.count), ("step", self.step)):
            if value is not None and value < 1:
                raise RecipeError(f"data.source.slices.{name} or train_slices.{name}: expected at least 1, got {value}.")
        low, high = self.range
        if not 0 <= low < high <= 1:
            raise RecipeError(
                f"data.source.slices.range or train_slices.range: expected 0 <= low < high <= 1, got {low}, {high}."
            )

    def positions(self, n_slices: int) -> list[int]:
        """Return the chosen positions of an axis with ``n_slices`` slices, ascending; at least one.

        Examples:
            >>> SliceRule(count=3).positions(12)
            [2, 6, 10]
            >>> SliceRule(step=4, range=(0.25, 1.0)).positions(12)
            [3, 7, 11]
        """
        first = min(math.floor(self.range[0] * n_slices), n_slices - 1)
        last = max(first + 1, math.ceil(self.range[1] * n_slices))
        if self.count is None:
            return list(range(first, last, self.step or 1))
        count = min(self.count, last - first)
        return [first + math.floor((part + 0.5) * (last - first) / count) for part in range(count)]


ALL_SLICES = SliceRule()


def take_slice(volume: NDArray[Any], axis: str, position: int) -> NDArray[Any]:
    """Cut the slice (H, W) at ``position`` out of a RAS volume (X, Y, Z), turned for display; an axis of colours stays."""
    cut = np.take(volume, position, axis=AXIS_NUMBER[axis])
    # Rows go down from the head (or the front), columns from the patient's right (or the front).
    return np.ascontiguousarray(np.swapaxes(cut, 0, 1)[::-1, ::-1])


def put_slice(volume: NDArray[Any], axis: str, position: int, values: NDArray[Any]) -> None:
    """Write a slice (H, W), turned for display, back to its place in a RAS volume (X, Y, Z), in place."""
    index: list[int | slice] = [slice(None)] * 3
    index[AXIS_NUMBER[axis]] = position
    volume[tuple(index)] = values[::-1, ::-1].T


def slice_place(shape: tuple[int, int, int], axis: str, voxel: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return position, column and row at which ``take_slice`` shows a voxel of a RAS volume of this shape.

    Examples:
        >>> slice_place((4, 5, 6), "axial", (0, 0, 2))
        (2, 3, 4)
    """
    across, up = (number for number in range(3) if number != AXIS_NUMBER[axis])
    return voxel[AXIS_NUMBER[axis]], shape[across] - 1 - voxel[across], shape[up] - 1 - voxel[up]


def slice_spacing(voxel_mm: tuple[float, float, float], axis: str) -> tuple[float, float]:
    """Return (row, column) spacing in mm of a slice, from the voxel size (x, y, z) in mm of the RAS volume."""
    across, up = (size for number, size in enumerate(voxel_mm) if number != AXIS_NUMBER[axis])
    return up, across
