"""How far apart two outlines are: the 95th percentile of the Hausdorff distance, by case, with a written rule for empty masks.

The unit is case x label, as for Dice. The outline of a mask is its pixels that touch the background or the image's border, in
the plane of the slice; the slices of a volume stand at their true distance, so that a pixel's nearest neighbour may lie on
another slice. The images of a case that are no volume are measured each for itself and their distances pooled. A unit without
foreground in truth and prediction has no distance. An outline pixel whose image or volume shows nothing of the other mask is
infinitely far from it: nothing predicted is infinitely wrong, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from medsam_tune.metrics.overlap import CaseScores, OverlapMetric

_PERCENTILE = 95
_CASE, _LABEL, _VOLUME, _PREDICTED, _FIRST_COORDINATE = range(5)
_COLUMNS = 7  # case, label, volume, predicted or true, slice, row, column


@dataclass(frozen=True)
class OutlinePlace:
    """Say whose outline it is.

    Attributes:
        case: Case index.
        label: Label.
        volume: Number of the volume, or of the single image.
        slice: Position of the slice in it.
    """

    case: int
    label: int
    volume: int
    slice: int


class OutlineMetric(OverlapMetric):
    """Gather the outlines of true and predicted masks too, from which distances in millimetres follow; made for a test."""

    outlines: list[Tensor]

    def __init__(self, *, gather: bool = True) -> None:
        super().__init__(gather=gather)
        self.add_state("outlines", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all rows and outlines."""
        super().reset()
        if hasattr(self, "outlines"):  # the base class resets before there are any
            # A process without an outline must still take part in the gathering, with the right shape and type.
            self.outlines.append(torch.zeros(0, _COLUMNS, dtype=torch.int32, device=self.device))

    def add_outlines(self, place: OutlinePlace, predicted: Tensor, true: Tensor) -> None:
        """Add what one slice shows of one label.

        Args:
            place: Whose it is.
            predicted: (H, W) bool.
            true: (H, W) bool.
        """
        for number, mask in enumerate((true, predicted)):
            pixels = torch.from_numpy(outline(mask.cpu().numpy()))
            rows = torch.empty(len(pixels), _COLUMNS, dtype=torch.int32)
            rows[:, :_FIRST_COORDINATE] = torch.tensor([place.case, place.label, place.volume, number], dtype=torch.int32)
            rows[:, _FIRST_COORDINATE] = place.slice
            rows[:, _FIRST_COORDINATE + 1 :] = pixels
            # An empty one too: processes that gather must have as many rows as columns to say how many they have.
            self.outlines.append(rows.to(self.device))

    def _scores(self) -> CaseScores:
        rows = dim_zero_cat(self.outlines).cpu().numpy()
        # An image that a padded distributed sampler shows twice counts once.
        return replace(super()._scores(), outlines=np.unique(rows, axis=0))


def outline(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the (row, column) of a mask's pixels that have a side in common with the background or with the image's border.

    Example:
        >>> outline(np.ones((3, 3), bool)).tolist()
        [[0, 0], [0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [2, 2]]
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.zeros((0, 2), np.int32)
    top, left = rows[0], columns[0]
    cut = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    within = cut[:-2, 1:-1] & cut[2:, 1:-1] & cut[1:-1, :-2] & cut[1:-1, 2:]
    found: NDArray[np.int32] = (np.argwhere(cut[1:-1, 1:-1] & ~within) + np.array([top, left])).astype(np.int32)
    return found


def hausdorff95(scores: CaseScores, voxels: dict[int, tuple[float, float, float]]) -> NDArray[np.float64]:
    """Return the 95th percentile of the Hausdorff distance of each row of ``scores``.

    It is the larger of two: of the distances from the true outline to the predicted one, and back.

    Args:
        scores: Of an ``OutlineMetric``.
        voxels: Distance of slices, rows and columns by case index, in the unit of the result; 1 where a case has no entry.

    Returns:
        (R,) float64: NaN where the row is excluded, infinite where more than one pixel in twenty has nothing to be near to.

    Raises:
        ValueError: If ``scores`` hold no outlines.
    """
    if scores.outlines is None:
        raise ValueError("scores hold no outlines. Gather them with an OutlineMetric.")
    found = np.full(len(scores.case_index), np.nan)
    for row in np.flatnonzero(~scores.excluded):
        case = int(scores.case_index[row])
        ours = (scores.outlines[:, _CASE] == case) & (scores.outlines[:, _LABEL] == scores.label[row])
        distances = list(_distances(scores.outlines[ours], np.array(voxels.get(case, (1.0, 1.0, 1.0)))))
        found[row] = max((_percentile(np.concatenate(way)) for way in zip(*distances, strict=True)), default=np.nan)
    return found


def _distances(rows: NDArray[np.int32], voxel: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """Yield the distances of each volume: from truth to prediction, and back."""
    for volume in np.unique(rows[:, _VOLUME]):
        inside = rows[rows[:, _VOLUME] == volume]
        true, predicted = (inside[inside[:, _PREDICTED] == way][:, _FIRST_COORDINATE:] * voxel for way in (0, 1))
        yield _nearest(true, predicted), _nearest(predicted, true)


def _nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each of ``points`` (P, 3) is from the nearest of ``others``."""
    from scipy.spatial import KDTree

    if not len(points) or not len(others):
        return np.full(len(points), np.inf)
    return np.asarray(KDTree(others).query(points)[0], np.float64)


def _percentile(distances: NDArray[np.float64]) -> float:
    """Return the percentile between the two nearest ranks; infinite where one of them is, 0 of nothing."""
    if not distances.size:
        return 0.0
    ordered = np.sort(distances)
    rank = _PERCENTILE / 100 * (len(ordered) - 1)
    low, high = ordered[int(np.floor(rank))], ordered[int(np.ceil(rank))]
    # Infinity minus itself is no number.
    return float(high) if np.isinf(high) else float(low + (high - low) * (rank % 1))
