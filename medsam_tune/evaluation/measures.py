"""What a case measures: how far its outlines are apart, and how large its object is, in the units that its files know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.base import VoxelSize
from medsam_tune.metrics.overlap import CaseScores
from medsam_tune.metrics.surface import hausdorff95

_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class CaseMeasures:
    """Hold one row per case x label, in the order of ``CaseScores``.

    Attributes:
        hd95: (R,) float64, NaN where the row is excluded, infinite where nothing was predicted, or nothing was there.
        distance_unit: R units, ``mm`` or ``px``.
        true_size: (R,) float64, over the slices that were tested, like ``predicted_size``.
        predicted_size: (R,) float64.
        size_unit: R units: ``ml`` of a volume, ``mm2`` of images, ``px`` where no file states a spacing.
    """

    hd95: NDArray[np.float64]
    distance_unit: tuple[str, ...]
    true_size: NDArray[np.float64]
    predicted_size: NDArray[np.float64]
    size_unit: tuple[str, ...]


def measure_cases(scores: CaseScores, voxels: Mapping[int, VoxelSize]) -> CaseMeasures:
    """Measure each row of test scores.

    Args:
        scores: Of an ``OutlineMetric``.
        voxels: Size of a voxel by case index; a case without one is measured in pixels.
    """
    steps = {case: (voxel.slice_mm or 1.0, voxel.row_mm, voxel.column_mm) for case, voxel in voxels.items()}
    known = [voxels.get(int(case)) for case in scores.case_index]
    sizes = [_pixel_size(voxel) for voxel in known]
    factor = np.array([size for size, _ in sizes], np.float64)
    return CaseMeasures(
        hd95=hausdorff95(scores, steps),
        distance_unit=tuple("px" if voxel is None else "mm" for voxel in known),
        true_size=(scores.tp + scores.fn) * factor,
        predicted_size=(scores.tp + scores.fp) * factor,
        size_unit=tuple(unit for _, unit in sizes),
    )


def summarise_distances(scores: CaseScores, measures: CaseMeasures) -> dict[str, Any]:
    """Return the distances over rows of case and label as JSON values.

    Returns:
        ``mean``, ``median`` and ``std`` of those that are finite, their number ``n`` and ``unit``; ``n_infinite`` counts the
        rows where one of the two masks is missing, which no mean can hold. None stands for what is undefined: all of it where
        some cases know millimetres and others do not.
    """
    kept = measures.hd95[~scores.excluded]
    finite = kept[np.isfinite(kept)]
    units = {unit for unit, excluded in zip(measures.distance_unit, scores.excluded, strict=True) if not excluded}
    comparable = len(units) == 1 and finite.size > 0
    return {
        "mean": float(finite.mean()) if comparable else None,
        "median": float(np.median(finite)) if comparable else None,
        "std": float(finite.std(ddof=1)) if comparable and finite.size > 1 else None,
        "n": int(finite.size),
        "n_infinite": int(np.isinf(kept).sum()),
        "unit": units.pop() if len(units) == 1 else None,
    }


def _pixel_size(voxel: VoxelSize | None) -> tuple[float, str]:
    if voxel is None:
        return 1.0, "px"
    area = voxel.row_mm * voxel.column_mm
    return (area, "mm2") if voxel.slice_mm is None else (area * voxel.slice_mm / _MM3_PER_ML, "ml")
