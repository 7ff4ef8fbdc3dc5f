"""From low-res logits to masks of the original frame and their pixel counts; validation, test and prediction share it.

An object of the original frame takes 4 bytes a pixel as logits, so a few are brought there at a time, thresholded once, and
kept as bool, or counted and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medsam_tune.geometry import Frame, to_original
from medsam_tune.metrics.overlap import OverlapMetric, overlap_counts
from medsam_tune.metrics.surface import OutlineMetric, OutlinePlace
from medsam_tune.segmenters.semantic import class_rows
from medsam_tune.types import MaskPrediction, SegmentationBatch

_PIXELS_AT_ONCE = 2**24  # 64 MB of float32


def predict_masks(prediction: MaskPrediction, batch: SegmentationBatch, side: int) -> list[Tensor]:
    """Bring the first mask of every object to its image's original frame and threshold it once, at logit 0.

    Where the network labels pixels, the scores of the classes are brought there and compared there, so that each pixel goes to
    the class with the largest score at the original resolution.

    Args:
        prediction: Logits (N, M, h, w); mask 0 of the M candidates is taken.
        batch: Says which image an object belongs to, and the frames.
        side: S, the side of the input frame in pixels.

    Returns:
        B tensors (n_b, H, W) bool, in the order of ``batch.original_masks``.
    """
    return [torch.cat(list(mask_chunks(prediction, batch, row, side))) for row in range(batch.n_images)]


def mask_chunks(prediction: MaskPrediction, batch: SegmentationBatch, row: int, side: int) -> Iterator[Tensor]:
    """Yield what ``predict_masks`` returns for image ``row``, a few objects at a time: (c, H, W) bool, at least one tensor."""
    frame = batch.frames[row]
    if prediction.class_logits is not None:
        yield class_rows(prediction.class_logits[row], frame, side)
        return
    low_res_masks = prediction.low_res_masks[batch.image_index == row, :1]
    step = _objects_at_once(frame, side)
    for start in range(0, max(1, len(low_res_masks)), step):
        yield _thresholded(low_res_masks[start : start + step], frame, side)


def update_metric(metric: OverlapMetric, batch: SegmentationBatch, prediction: MaskPrediction, side: int) -> None:
    """Add the pixel counts of the batch's predicted masks to ``metric``; pixels that nobody annotated do not count.

    An ``OutlineMetric`` gets the outlines too, of all objects of a label together.
    """
    for row, masks in enumerate(batch.original_masks):
        known = ~batch.original_ignored[row] if batch.original_ignored else None
        labels = batch.labels[batch.image_index == row]
        counts, start, shown = [], 0, _Shown()
        for predicted in mask_chunks(prediction, batch, row, side):
            predicted = predicted if known is None else predicted & known.to(predicted.device)
            rows = slice(start, start + len(predicted))
            true = masks[rows].to(predicted.device)
            counts.append(overlap_counts(predicted, true))
            if isinstance(metric, OutlineMetric):
                shown.add(labels[rows], predicted, true)
            start += len(predicted)
        if isinstance(metric, OutlineMetric):
            shown.hand_over(metric, batch, row)
        n_objects = masks.shape[0]
        metric.update(
            batch.sample_index[row].expand(n_objects),
            batch.case_index[row].expand(n_objects),
            labels,
            torch.arange(n_objects, device=batch.labels.device),
            torch.cat(counts),
        )


class _Shown:
    """Join the objects of each label on one image, predicted and true, a few objects at a time."""

    def __init__(self) -> None:
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, labels: Tensor, predicted: Tensor, true: Tensor) -> None:
        for label in labels.unique().tolist():
            rows = labels == label
            now = (predicted[rows].any(dim=0), true[rows].any(dim=0))
            before = self._masks.get(label, now)
            self._masks[label] = (before[0] | now[0], before[1] | now[1])

    def hand_over(self, metric: OutlineMetric, batch: SegmentationBatch, row: int) -> None:
        """Add them to the metric; an image without a place in a volume is one of its own."""
        volume = int((batch.sample_index if batch.volume_index is None else batch.volume_index)[row])
        position = 0 if batch.slice_index is None else int(batch.slice_index[row])
        for label, (predicted, true) in self._masks.items():
            metric.add_outlines(OutlinePlace(int(batch.case_index[row]), label, volume, position), predicted, true)


def _objects_at_once(frame: Frame, side: int) -> int:
    height, width = frame.original_size
    return max(1, _PIXELS_AT_ONCE // max(height * width, side * side))


def _thresholded(low_res_masks: Tensor, frame: Frame, side: int) -> Tensor:
    if low_res_masks.shape[0] == 0:
        return low_res_masks.new_zeros((0, *frame.original_size), dtype=torch.bool)
    return to_original(low_res_masks.float(), frame, side)[:, 0] > 0
