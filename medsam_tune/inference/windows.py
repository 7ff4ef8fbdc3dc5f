"""A volume in windows of D slices: every slice is answered in each window that holds it, and the probabilities are averaged.

MA-SAM predicts so with windows one slice apart (Chen et al. 2024, arXiv 2309.08842). Averaged are probabilities at the
decoder's resolution: a sigmoid's of each object, or a softmax's over classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from medsam_tune.inference.flipped_views import seen_in_views
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.types import MaskPrediction, SegmentationBatch

# Keeps logits of averaged probabilities finite.
_LEAST_PROBABILITY = 1e-7


def window_starts(n_slices: int, length: int, stride: int) -> list[int]:
    """Return the first slices of the windows that cover a volume; the last window ends with the volume.

    Args:
        n_slices: Of the volume; where there are fewer than ``length``, one window takes all.
        length: Slices of a window.
        stride: Slices from one window to the next, at most ``length``.

    Examples:
        >>> window_starts(8, 5, 2), window_starts(3, 5, 1)
        ([0, 2, 3], [0])
    """
    last = max(0, n_slices - length)
    return sorted({*range(0, last + 1, stride), last})


def slice_parts(batch: SegmentationBatch) -> Iterator[SegmentationBatch]:
    """Yield a volume's slices ``chunk_length`` at a time, each slice once."""
    for start in range(0, batch.n_images, batch.chunk_length):
        yield window_of(batch, start)


def window_of(batch: SegmentationBatch, start: int) -> SegmentationBatch:
    """Return the window of a volume that begins with slice ``start``, as one chunk."""
    part = batch.part(start, min(start + batch.chunk_length, batch.n_images))
    return replace(part, window_stride=0, chunk_index=torch.zeros_like(part.sample_index))


def answer_windows(segmenter: Segmenter, batch: SegmentationBatch) -> MaskPrediction:
    """Return what a segmenter predicts for the slices of a volume, in their order.

    A network that mixes no slices answers each slice once.

    Args:
        segmenter: The network.
        batch: Slices of one volume in order; windows have ``chunk_length`` slices and are ``window_stride`` slices apart.
    """
    if not segmenter.mixes_slices():
        return joined([seen_in_views(segmenter, part) for part in slice_parts(batch)])
    starts = window_starts(batch.n_images, batch.chunk_length, batch.window_stride)
    if len(starts) == 1:
        return seen_in_views(segmenter, window_of(batch, 0))
    masks, ious, classes = _Mean(batch.n_objects), _Mean(batch.n_objects), _Mean(batch.n_images)
    for start in starts:
        part = window_of(batch, start)
        prediction = seen_in_views(segmenter, part)
        images = torch.arange(start, start + part.n_images, device=batch.images.device)
        objects = torch.isin(batch.image_index, images).nonzero()[:, 0]
        if prediction.class_logits is None:
            masks.add(prediction.low_res_masks.float().sigmoid(), objects)
        else:
            classes.add(prediction.class_logits.float().softmax(dim=1), images)
        if prediction.iou_predictions is not None:
            ious.add(prediction.iou_predictions.float(), objects)
    scores = classes.value()
    if scores is not None:
        return class_prediction(scores)
    found = masks.value()
    if found is None:
        raise ValueError("a volume must have at least one slice, got none.")
    return MaskPrediction(logit_of(found), ious.value())


def mean_prediction(parts: Sequence[MaskPrediction]) -> MaskPrediction:
    """Return what several windows answer about the same objects: probabilities and predicted IoU are averaged.

    Args:
        parts: At least one, of the same shapes.
    """
    if len(parts) == 1:
        return parts[0]
    classes = [part.class_logits.float().softmax(dim=1) for part in parts if part.class_logits is not None]
    smallest = parts[0].smallest_part
    if classes:
        return replace(class_prediction(torch.stack(classes).mean(dim=0)), smallest_part=smallest)
    ious = [part.iou_predictions.float() for part in parts if part.iou_predictions is not None]
    probs = torch.stack([part.low_res_masks.float().sigmoid() for part in parts]).mean(dim=0)
    return MaskPrediction(logit_of(probs), torch.stack(ious).mean(dim=0) if ious else None, smallest_part=smallest)


def class_prediction(probs: Tensor) -> MaskPrediction:
    """Return the prediction whose softmax is ``probs`` (B, 1 + K, h, w)."""
    from medsam_tune.segmenters.semantic import class_margins

    class_logits = probs.clamp(min=_LEAST_PROBABILITY).log()
    return MaskPrediction(class_margins(class_logits)[:, 1:].flatten(0, 1)[:, None], class_logits=class_logits)


def logit_of(probs: Tensor) -> Tensor:
    """Return the logits whose sigmoid is ``probs``, kept finite."""
    return torch.logit(probs, eps=_LEAST_PROBABILITY)


def joined(parts: Sequence[MaskPrediction]) -> MaskPrediction:
    """Return the predictions of parts of a batch as one."""
    ious = [part.iou_predictions for part in parts if part.iou_predictions is not None]
    classes = [part.class_logits for part in parts if part.class_logits is not None]
    return MaskPrediction(
        torch.cat([part.low_res_masks for part in parts]),
        torch.cat(ious) if ious else None,
        torch.cat(classes) if classes else None,
    )


class _Mean:
    """Average rows that are added several at a time."""

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self._sum: Tensor | None = None
        self._count: Tensor | None = None

    def add(self, values: Tensor, rows: Tensor) -> None:
        if self._sum is None or self._count is None:
            self._sum = values.new_zeros((self._n_rows, *values.shape[1:]))
            self._count = values.new_zeros(self._n_rows)
        self._sum.index_add_(0, rows, values)
        self._count.index_add_(0, rows, torch.ones_like(rows, dtype=values.dtype))

    def value(self) -> Tensor | None:
        if self._sum is None or self._count is None:
            return None
        return self._sum / self._count.clamp(min=1).view(-1, *[1] * (self._sum.ndim - 1))
