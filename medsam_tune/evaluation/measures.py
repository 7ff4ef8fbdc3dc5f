"""What a case measures beside Dice: how far its surfaces are apart, how large its object is, in the units its files know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.base import VoxelSize
from medsam_tune.evaluation.figures import figures
from medsam_tune.metrics.distances import SurfaceDistances
from medsam_tune.metrics.overlap import CaseScores
from medsam_tune.metrics.surface import case_distances, case_instances, case_s_measure

_MM3_PER_ML = 1000.0
NSD_TOLERANCE = 2.0
"""Millimetres within which surfaces agree, by default; pixels where no file states a spacing. MedSAM's (Ma et al. 2024)."""

DISTANCES = ("hd", "hd95", "asd")
"""Figures that have a unit and are infinite where one of the two masks is missing."""
SHARES = ("nsd", "s_measure", "aji", "pixel_f")
"""Figures between 0 and 1."""


@dataclass(frozen=True)
class CaseMeasures:
    """Hold one row per case x label, in the order of ``CaseScores``; a figure is NaN where the row is excluded.

    Attributes:
        hd95: (R,) float64, 95th percentile of the Hausdorff distance; infinite where nothing was predicted, or nothing was
            there.
        distance_unit: R units, ``mm`` or ``px``.
        true_size: (R,) float64, over the slices that were tested, like ``predicted_size``.
        predicted_size: (R,) float64.
        size_unit: R units: ``ml`` of a volume, ``mm2`` of images, ``px`` where no file states a spacing.
        hd: (R,) float64, the Hausdorff distance, like ``hd95``.
        asd: (R,) float64, the average symmetric surface distance, like ``hd95``.
        nsd: (R,) float64, normalised surface Dice; 0 where one of the two masks is missing.
        tolerance: Of ``nsd``, in ``distance_unit``.
        s_measure: (R,) float64, mean over a case's images; NaN of a volume, whose slices are no images of their own.
        aji: (R,) float64, aggregated Jaccard index; NaN where no image shows several objects of the label, like ``pixel_f``.
        pixel_f: (R,) float64, of all objects joined.
        empty_slices: (R,) int64, tested slices that show nothing of the label.
        false_positive_slices: (R,) int64, those of them on which something was found. They count in a case's Dice as in all
            other figures, since its pixels are pooled.
    """

    hd95: NDArray[np.float64]
    distance_unit: tuple[str, ...]
    true_size: NDArray[np.float64]
    predicted_size: NDArray[np.float64]
    size_unit: tuple[str, ...]
    hd: NDArray[np.float64]
    asd: NDArray[np.float64]
    nsd: NDArray[np.float64]
    tolerance: float
    s_measure: NDArray[np.float64]
    aji: NDArray[np.float64]
    pixel_f: NDArray[np.float64]
    empty_slices: NDArray[np.int64]
    false_positive_slices: NDArray[np.int64]

    @property
    def size_difference(self) -> NDArray[np.float64]:
        """Return predicted minus true size (R,), in ``size_unit``."""
        return self.predicted_size - self.true_size


def measure_cases(scores: CaseScores, voxels: Mapping[int, VoxelSize], *, tolerance: float = NSD_TOLERANCE) -> CaseMeasures:
    """Measure each row of test scores; a case of several slices of one volume is measured as the volume that they make.

    Args:
        scores: Of an ``OutlineMetric``.
        voxels: Size of a voxel by case index; a case without one is measured in pixels.
        tolerance: Of the normalised surface Dice, in mm, or in pixels where a case knows no mm.
    """
    steps = {case: (voxel.slice_mm or 1.0, voxel.row_mm, voxel.column_mm) for case, voxel in voxels.items()}
    known = [voxels.get(int(case)) for case in scores.case_index]
    sizes = [_pixel_size(voxel) for voxel in known]
    factor = np.array([size for size, _ in sizes], np.float64)
    distances = case_distances(scores, steps)
    aji, pixel_f = case_instances(scores)
    empty, found = _empty_slices(scores)
    return CaseMeasures(
        hd95=_each(distances, lambda one: one.hd95),
        distance_unit=tuple("px" if voxel is None else "mm" for voxel in known),
        true_size=(scores.tp + scores.fn) * factor,
        predicted_size=(scores.tp + scores.fp) * factor,
        size_unit=tuple(unit for _, unit in sizes),
        hd=_each(distances, lambda one: one.hd),
        asd=_each(distances, lambda one: one.asd),
        nsd=_each(distances, lambda one: one.nsd(tolerance)),
        tolerance=tolerance,
        s_measure=np.array([case_s_measure(scores, row) for row in range(len(known))], np.float64),
        aji=aji,
        pixel_f=pixel_f,
        empty_slices=empty,
        false_positive_slices=found,
    )


def summarise_measures(scores: CaseScores, measures: CaseMeasures, patients: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a test beside Dice and IoU as JSON values.

    Args:
        scores: The scores.
        measures: Their measures.
        patients: Patient of each case index.

    Returns:
        ``hd``, ``hd95`` and ``asd`` as ``summarise_distances`` gives them; ``nsd`` with its ``tolerance`` and ``unit``, and
        ``s_measure``, ``aji`` and ``pixel_f`` where they are defined, over cases as Dice is; ``size_difference``: mean of
        predicted minus true size, ``mean_absolute`` and ``unit``.
    """
    found: dict[str, Any] = {name: summarise_distances(scores, measures, name) for name in DISTANCES}
    for name in SHARES:
        values, people = case_means(scores, getattr(measures, name), patients)
        if values.size:
            found[name] = {**figures(values, people), "n_cases": int(values.size)}
    if "nsd" in found:
        found["nsd"] |= {"tolerance": measures.tolerance, "unit": found["hd95"]["unit"]}
    difference = measures.size_difference[~scores.excluded]
    unit = _one_of(unit for unit, excluded in zip(measures.size_unit, scores.excluded, strict=True) if not excluded)
    if unit is not None:
        absolute = np.abs(difference)
        found["size_difference"] = {"mean": float(difference.mean()), "mean_absolute": float(absolute.mean()), "unit": unit}
    return found


def case_means(
    scores: CaseScores, values: NDArray[np.float64], patients: Sequence[str]
) -> tuple[NDArray[np.float64], list[str]]:
    """Return the mean over the labels of each case that has a value, and the patient of each such case.

    Args:
        scores: The scores.
        values: (R,) float64, one a row of ``scores``, NaN where there is none.
        patients: Patient of each case index.
    """
    kept = ~np.isnan(values)
    cases = np.unique(scores.case_index[kept])
    means = [values[kept & (scores.case_index == case)].mean() for case in cases]
    return np.array(means, np.float64), [patients[case] for case in cases]


def summarise_distances(scores: CaseScores, measures: CaseMeasures, name: str = "hd95") -> dict[str, Any]:
    """Return the distances over rows of case and label as JSON values.

    Args:
        scores: The scores.
        measures: Their measures.
        name: One of ``DISTANCES``.

    Returns:
        ``mean``, ``median`` and ``std`` of those that are finite, their number ``n`` and ``unit``; ``n_infinite`` counts the
        rows where one of the two masks is missing, which no mean can hold. None stands for what is undefined: all of it where
        some cases know millimetres and others do not.
    """
    kept = getattr(measures, name)[~scores.excluded]
    finite = kept[np.isfinite(kept)]
    unit = _one_of(unit for unit, excluded in zip(measures.distance_unit, scores.excluded, strict=True) if not excluded)
    comparable = unit is not None and finite.size > 0
    return {
        "mean": float(finite.mean()) if comparable else None,
        "median": float(np.median(finite)) if comparable else None,
        "std": float(finite.std(ddof=1)) if comparable and finite.size > 1 else None,
        "n": int(finite.size),
        "n_infinite": int(np.isinf(kept).sum()),
        "unit": unit,
    }


def _each(distances: Sequence[SurfaceDistances | None], figure: Callable[[SurfaceDistances], float]) -> NDArray[np.float64]:
    return np.array([np.nan if one is None else figure(one) for one in distances], np.float64)


def _empty_slices(scores: CaseScores) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each row how many of its slices show nothing, and on how many of these something was found."""
    slices = scores.slices
    empty = slices.tp + slices.fn == 0
    counts = np.zeros((2, len(scores.case_index)), np.int64)
    for row in range(len(scores.case_index)):
        inside = empty & (slices.case_index == scores.case_index[row]) & (slices.label == scores.label[row])
        counts[:, row] = inside.sum(), (inside & (slices.fp > 0)).sum()
    return counts[0], counts[1]


def _one_of(units: Iterable[str]) -> str | None:
    found = set(units)
    return found.pop() if len(found) == 1 else None


def _pixel_size(voxel: VoxelSize | None) -> tuple[float, str]:
    if voxel is None:
        return 1.0, "px"
    area = voxel.row_mm * voxel.column_mm
    return (area, "mm2") if voxel.slice_mm is None else (area * voxel.slice_mm / _MM3_PER_ML, "ml")
