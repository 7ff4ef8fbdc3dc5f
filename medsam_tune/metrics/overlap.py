"""Dice and IoU by case, with a written rule for empty masks.

The unit is case x label: pixels are pooled over a case's slices and objects, at the images' native resolution. A unit without
a foreground pixel in truth and prediction is excluded and counted, never scored 1. A unit with foreground in only one of them
scores 0. The headline is the mean over cases of the mean over the labels that a case has, so a patient with many slices or
labels weighs no more than another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

_COLUMNS = 7  # sample, case, label, object, tp, fp, fn
_SAMPLE, _CASE, _LABEL, _OBJECT = range(4)


def overlap_counts(prediction: Tensor, masks: Tensor) -> Tensor:
    """Count pixels of N objects: (N, 3) int64, true positive, false positive, false negative.

    Args:
        prediction: (N, H, W) bool.
        masks: (N, H, W) bool ground truth.

    Raises:
        ValueError: If the shapes differ or a tensor is not bool.

    Examples:
        >>> truth = torch.tensor([[[True, True], [False, False]]])
        >>> overlap_counts(truth.mT, truth)
        tensor([[1, 1, 1]])
    """
    if prediction.shape != masks.shape or prediction.dtype != torch.bool or masks.dtype != torch.bool:
        raise ValueError(
            "prediction and masks must be bool tensors (N, H, W) of one shape, got "
            f"{prediction.dtype} {tuple(prediction.shape)} and {masks.dtype} {tuple(masks.shape)}. Threshold logits at 0 first."
        )
    both, predicted, true = _areas(prediction & masks), _areas(prediction), _areas(masks)
    return torch.stack([both, predicted - both, true - both], dim=-1)


def _areas(masks: Tensor) -> Tensor:
    """Return the pixels (N,) int64 of masks (N, H, W) bool."""
    # Not sum: on the CPU it turns every pixel into 8 bytes first.
    counts = [mask.count_nonzero() for mask in masks]
    return torch.stack(counts) if counts else torch.zeros(0, dtype=torch.int64, device=masks.device)


@dataclass(frozen=True)
class SliceScores:
    """Hold one row per slice x label, ordered by slice and label.

    Attributes:
        sample_index: (R,) int64.
        case_index: (R,) int64.
        label: (R,) int64.
        tp: (R,) int64 pixels, like ``fp`` and ``fn``.
        fp: (R,) int64.
        fn: (R,) int64.
        dice: (R,) float64, NaN where excluded.
        iou: (R,) float64, NaN where excluded.
        excluded: (R,) bool: no foreground in truth and prediction.
    """

    sample_index: NDArray[np.int64]
    case_index: NDArray[np.int64]
    label: NDArray[np.int64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    dice: NDArray[np.float64]
    iou: NDArray[np.float64]
    excluded: NDArray[np.bool_]


@dataclass(frozen=True)
class CaseScores:
    """Hold one row per case x label, ordered by case and label.

    Attributes:
        case_index: (R,) int64.
        label: (R,) int64.
        tp: (R,) int64 pixels over all slices of the case, like ``fp`` and ``fn``.
        fp: (R,) int64.
        fn: (R,) int64.
        dice: (R,) float64, NaN where excluded.
        iou: (R,) float64, NaN where excluded.
        n_slices: (R,) int64, slices that have a row for this label.
        excluded: (R,) bool: no foreground in truth and prediction.
        slices: The same per slice.
        outlines: (P, 8) int32 runs of the masks' pixels, as ``OutlineMetric`` gathers them; None elsewhere.
        instances: (I, 8) int64 sample, case, label and the counts of ``instance_pixels``, for images that show several objects
            of a label; None elsewhere.
    """

    case_index: NDArray[np.int64]
    label: NDArray[np.int64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    dice: NDArray[np.float64]
    iou: NDArray[np.float64]
    n_slices: NDArray[np.int64]
    excluded: NDArray[np.bool_]
    slices: SliceScores
    object_dice: NDArray[np.float64]
    outlines: NDArray[np.int32] | None = None
    instances: NDArray[np.int64] | None = None

    def scored_cases(self) -> NDArray[np.int64]:
        """Return the sorted cases that have at least one label that is not excluded."""
        return np.unique(self.case_index[~self.excluded])

    def case_dice(self) -> NDArray[np.float64]:
        """Return each scored case's mean Dice over its labels, in the order of ``scored_cases``."""
        return self._case_means(self.dice)

    def case_iou(self) -> NDArray[np.float64]:
        """Return each scored case's mean IoU over its labels, in the order of ``scored_cases``."""
        return self._case_means(self.iou)

    def _case_means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        kept = ~self.excluded
        means = [values[kept & (self.case_index == case)].mean() for case in self.scored_cases()]
        return np.asarray(means, dtype=np.float64)


class OverlapMetric(Metric):
    """Gather pixel counts over batches and processes and score them by case; the rule stands in the module's docstring.

    A row seen twice (the same sample, label and object, as padded distributed samplers make) counts once.

    Args:
        gather: Join the rows of all processes; False where one process scores alone while the others do something else.

    Examples:
        >>> metric = OverlapMetric()
        >>> one = torch.tensor([0])
        >>> metric.update(one, one, torch.tensor([1]), one, torch.tensor([[2, 1, 1]]))
        >>> round(metric.compute()["dice"].item(), 4)
        0.6667
    """

    full_state_update = False
    higher_is_better = True
    rows: list[Tensor]

    def __init__(self, *, gather: bool = True) -> None:
        super().__init__(sync_on_compute=gather)
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        # A process that sees no object must still take part in the gathering, with the right shape and type.
        self.rows.append(torch.zeros(0, _COLUMNS, dtype=torch.int64, device=self.device))

    def update(self, sample_index: Tensor, case_index: Tensor, labels: Tensor, object_index: Tensor, counts: Tensor) -> None:
        """Add R objects.

        Args:
            sample_index: (R,) position of the slice in its source.
            case_index: (R,) position of the case in the sorted list of cases.
            labels: (R,).
            object_index: (R,) position of the object within its slice.
            counts: (R, 3) from ``overlap_counts``.
        """
        named = torch.stack([column.to(self.device) for column in (sample_index, case_index, labels, object_index)], dim=1)
        self.rows.append(torch.cat([named, counts.to(self.device)], dim=1).long())

    def compute(self) -> dict[str, Tensor]:
        """Return scalars: ``dice`` and ``iou`` by case, ``slice_dice``, ``n_cases`` scored, ``n_excluded`` case x label units.

        Means over nothing are NaN.
        """
        scores = self._scores()
        values = {
            "dice": _mean(scores.case_dice()),
            "iou": _mean(scores.case_iou()),
            "slice_dice": _mean(scores.slices.dice[~scores.slices.excluded]),
            "n_cases": float(len(scores.scored_cases())),
            "n_excluded": float(scores.excluded.sum()),
        }
        return {name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in values.items()}

    def scores(self) -> CaseScores:
        """Return all rows by case x label and by slice x label; every process of a distributed run must call this."""
        with self.sync_context(should_sync=self._to_sync and not self._is_synced):
            return self._scores()

    def _scores(self) -> CaseScores:
        rows = _unique_rows(dim_zero_cat(self.rows).cpu().numpy())
        slice_units, slice_counts, _ = _pool(rows, (_SAMPLE, _CASE, _LABEL))
        slice_rows = np.concatenate([slice_units, slice_counts], axis=1)
        case_units, case_counts, n_slices = _pool(slice_rows, (1, 2))
        (sample, case_of_slice, label_of_slice), (tp, fp, fn) = slice_units.T, slice_counts.T
        slices = SliceScores(sample, case_of_slice, label_of_slice, tp, fp, fn, *_ratios(slice_counts))
        (case, label), (tp, fp, fn) = case_units.T, case_counts.T
        dice, iou, excluded = _ratios(case_counts)
        object_dice, _, empty = _ratios(rows[:, -3:])
        return CaseScores(case, label, tp, fp, fn, dice, iou, n_slices, excluded, slices, object_dice[~empty])


def _unique_rows(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first = np.unique(rows[:, (_SAMPLE, _LABEL, _OBJECT)], axis=0, return_index=True)
    return rows[first]


def _pool(rows: NDArray[np.int64], unit: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sum the last three columns over equal units: units (U, k), counts (U, 3) and rows pooled (U,)."""
    units, which, n_rows = np.unique(rows[:, unit], axis=0, return_inverse=True, return_counts=True)
    counts = np.zeros((len(units), 3), dtype=np.int64)
    np.add.at(counts, which.reshape(-1), rows[:, -3:])
    return units, counts, n_rows


def _ratios(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return Dice, IoU and the excluded flag of counts (U, 3)."""
    tp, wrong = counts[:, 0].astype(np.float64), counts[:, 1:].sum(axis=1)
    excluded = counts.sum(axis=1) == 0
    union = np.where(excluded, np.nan, tp + wrong)
    return 2 * tp / (union + tp), tp / union, excluded


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
