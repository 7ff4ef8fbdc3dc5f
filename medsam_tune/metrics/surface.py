"""Gather the outlines of a test's masks, and measure each case as one volume, or its images one by one.

The unit is case x label, as for Dice. What is kept of a mask is where its runs of pixels begin and end in each row, from which
it is put together again without loss: the slices of a volume are stacked at their places, so that a distance may lead to
another slice and a missed slice is as far as the next one that was found. Beyond the first and the last tested slice a volume
shows nothing; what lies between tested slices that are no neighbours is unknown. The images of a case that are no volume are
measured each for itself and their distances pooled. How empty masks count stands in ``medsam_tune.metrics.distances``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from medsam_tune.metrics.distances import SurfaceDistances, surface_distances
from medsam_tune.metrics.instances import InstancePixels
from medsam_tune.metrics.overlap import CaseScores, OverlapMetric
from medsam_tune.metrics.structure import s_measure

_CASE, _LABEL, _VOLUME, _PREDICTED, _SLICE, _ROW, _COLUMN, _LENGTH = range(8)
_COLUMNS = 8  # a run of no length holds the image's size as its row and column
_TRUE = 0
_INSTANCE_COLUMNS = 8  # sample, case, label, shared, joined, tp, fp, fn


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


@dataclass(frozen=True)
class CaseVolume:
    """Hold what the tested slices of one volume, or one image, show of a label.

    Attributes:
        predicted: (D, H, W) bool, cut to the rows and columns that either mask touches.
        true: (D, H, W) bool.
        positions: (D,) ascending places of the slices.
        corner: Row and column at which the cut begins.
        size: (H, W) of the whole slices.
    """

    predicted: NDArray[np.bool_]
    true: NDArray[np.bool_]
    positions: NDArray[np.int64]
    corner: tuple[int, int]
    size: tuple[int, int]

    def distances(self, voxel: tuple[float, float, float]) -> SurfaceDistances:
        """Measure the surfaces of a volume, or the outlines of a single slice.

        Args:
            voxel: Distance of slices, rows and columns.
        """
        if len(self.positions) == 1:
            return surface_distances(self.predicted[0], self.true[0], voxel[1:])
        return surface_distances(self.predicted, self.true, voxel, positions=self.positions)

    def whole(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the predicted and the true mask (D, H, W) of whole slices."""
        (top, left), (height, width) = self.corner, self.size
        depth, rows, columns = self.true.shape
        full = np.zeros((2, depth, height, width), np.bool_)
        full[:, :, top : top + rows, left : left + columns] = self.predicted, self.true
        return full[0], full[1]


class OutlineMetric(OverlapMetric):
    """Gather the outlines of true and predicted masks too, from which the distances of a test follow."""

    outlines: list[Tensor]
    instances: list[Tensor]

    def __init__(self, *, gather: bool = True) -> None:
        super().__init__(gather=gather)
        self.add_state("outlines", default=[], dist_reduce_fx="cat")
        self.add_state("instances", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all rows and outlines."""
        super().reset()
        if hasattr(self, "instances"):  # the base class resets before there are any
            # A process without an outline must still take part in the gathering, with the right shape and type.
            self.outlines.append(torch.zeros(0, _COLUMNS, dtype=torch.int32, device=self.device))
            self.instances.append(torch.zeros(0, _INSTANCE_COLUMNS, dtype=torch.int64, device=self.device))

    def add_outlines(self, place: OutlinePlace, predicted: Tensor, true: Tensor) -> None:
        """Add what one slice shows of one label.

        Args:
            place: Whose it is.
            predicted: (H, W) bool.
            true: (H, W) bool.
        """
        for number, mask in enumerate((true, predicted)):
            found = outline(mask.cpu().numpy())
            rows = torch.empty(len(found) + 1, _COLUMNS, dtype=torch.int32)
            rows[:, :_ROW] = torch.tensor([place.case, place.label, place.volume, number, place.slice], dtype=torch.int32)
            rows[:-1, _ROW:] = torch.from_numpy(found)
            # That the slice was tested, which an empty mask says in no other way.
            rows[-1, _ROW:] = torch.tensor([*mask.shape, 0], dtype=torch.int32)
            self.outlines.append(rows.to(self.device))

    def add_instances(self, sample: int, case: int, label: int, counted: InstancePixels) -> None:
        """Add what the answers to several objects of one label on an image share with them.

        Args:
            sample: Position of the image in its source.
            case: Case index.
            label: Label.
            counted: Of ``instance_pixels``.
        """
        values = [sample, case, label, counted.shared_px, counted.joined_px, *counted.pixels]
        self.instances.append(torch.tensor([values], dtype=torch.int64, device=self.device))

    def _scores(self) -> CaseScores:
        # An image that a padded distributed sampler shows twice counts once.
        outlines, instances = (np.unique(dim_zero_cat(each).cpu().numpy(), axis=0) for each in (self.outlines, self.instances))
        return replace(super()._scores(), outlines=outlines, instances=instances)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return where the runs of a mask (H, W) lie: (R, 3) row, first column and length, row by row.

    Example:
        >>> outline(np.array([[True, True, False, True], [False] * 4, [False, True, True, True]])).tolist()
        [[0, 0, 2], [0, 3, 1], [2, 1, 3]]
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.zeros((0, 3), np.int32)
    top, left = rows[0], columns[0]
    steps = np.diff(np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], ((0, 0), (1, 1))).astype(np.int8), axis=1)
    begins, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    found: NDArray[np.int32] = np.column_stack([begins + np.array([top, left]), ends[:, 1] - begins[:, 1]]).astype(np.int32)
    return found


def case_distances(scores: CaseScores, voxels: Mapping[int, tuple[float, float, float]]) -> list[SurfaceDistances | None]:
    """Return the surface distances of each row of ``scores``; None where the row is excluded.

    Args:
        scores: Of an ``OutlineMetric``.
        voxels: Distance of slices, rows and columns by case index, in the unit of the result; 1 where a case has no entry.

    Raises:
        ValueError: If ``scores`` hold no outlines.
    """
    found: list[SurfaceDistances | None] = []
    for row in range(len(scores.case_index)):
        if scores.excluded[row]:
            found.append(None)
            continue
        voxel = voxels.get(int(scores.case_index[row]), (1.0, 1.0, 1.0))
        found.append(SurfaceDistances.join(volume.distances(voxel) for volume in case_volumes(scores, row)))
    return found


def case_instances(scores: CaseScores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the aggregated Jaccard index and pixel F of each row of ``scores``, over the images of its case.

    Returns:
        Two arrays (R,) float64: NaN where no image shows several objects of the label, whose masks are then no instances.
    """
    aji, pixel_f = np.full((2, len(scores.case_index)), np.nan)
    if scores.instances is None or not len(scores.instances):
        return aji, pixel_f
    slices = scores.slices
    together = {(int(row[0]), int(row[2])): row[3:] for row in scores.instances}
    keys = list(zip(slices.sample_index.tolist(), slices.label.tolist(), strict=True))
    alone = np.stack([slices.tp, slices.tp + slices.fp + slices.fn, slices.tp, slices.fp, slices.fn], axis=1)
    counts = np.array([together.get(key, own) for key, own in zip(keys, alone, strict=True)], np.int64)
    several = np.array([key in together for key in keys])
    for row in np.flatnonzero(~scores.excluded):
        inside = (slices.case_index == scores.case_index[row]) & (slices.label == scores.label[row])
        if several[inside].any():
            shared, joined, tp, fp, fn = counts[inside].sum(axis=0).tolist()
            aji[row], pixel_f[row] = shared / joined, 2 * tp / (2 * tp + fp + fn)
    return aji, pixel_f


def case_s_measure(scores: CaseScores, row: int) -> float:
    """Return the mean S-measure over the images of a row that show something, in truth or prediction.

    It is NaN without such an image, and of a volume, whose slices are no images of their own.
    """
    volumes = list(case_volumes(scores, row))
    if any(len(volume.positions) > 1 for volume in volumes):
        return float("nan")
    found = [
        s_measure(predicted[0], true[0])
        for predicted, true in (volume.whole() for volume in volumes)
        if predicted.any() or true.any()
    ]
    return float(np.mean(found)) if found else float("nan")


def case_volumes(scores: CaseScores, row: int) -> Iterator[CaseVolume]:
    """Yield what each volume, or image, of a case shows of a label.

    Args:
        scores: Of an ``OutlineMetric``.
        row: A row of ``scores``.

    Raises:
        ValueError: If ``scores`` hold no outlines.
    """
    if scores.outlines is None:
        raise ValueError("scores hold no outlines. Gather them with an OutlineMetric.")
    # Sorted by case and label first, as np.unique left them.
    case, label = int(scores.case_index[row]), int(scores.label[row])
    low, high = (np.searchsorted(scores.outlines[:, _CASE], case, side=side) for side in ("left", "right"))
    ours = scores.outlines[low:high]
    ours = ours[ours[:, _LABEL] == label]
    for volume in np.unique(ours[:, _VOLUME]):
        yield _stacked(ours[ours[:, _VOLUME] == volume])


def _stacked(rows: NDArray[np.int32]) -> CaseVolume:
    """Put the masks of one volume together from their runs."""
    runs, sizes = rows[rows[:, _LENGTH] > 0].astype(np.int64), rows[rows[:, _LENGTH] == 0]
    positions = np.unique(sizes[:, _SLICE]).astype(np.int64)
    if len(runs):
        top, left = int(runs[:, _ROW].min()), int(runs[:, _COLUMN].min())
        height = int(runs[:, _ROW].max()) + 1 - top
        width = int((runs[:, _COLUMN] + runs[:, _LENGTH]).max()) - left
    else:
        top = left = height = width = 0
    masks = []
    for kind in (1 - _TRUE, _TRUE):
        own = runs[runs[:, _PREDICTED] == kind]
        places = np.searchsorted(positions, own[:, _SLICE])
        begins = (places * height + own[:, _ROW] - top) * width + own[:, _COLUMN] - left
        steps = np.zeros(len(positions) * height * width + 1, np.int8)
        # A run may end where the next one begins, so both are added and none assigned.
        np.add.at(steps, begins, 1)
        np.add.at(steps, begins + own[:, _LENGTH], -1)
        masks.append(np.cumsum(steps[:-1], dtype=np.int8).astype(np.bool_).reshape(len(positions), height, width))
    size = int(sizes[0, _ROW]), int(sizes[0, _COLUMN])
    return CaseVolume(masks[0], masks[1], positions, (top, left), size)
