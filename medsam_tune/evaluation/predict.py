"""From low-res logits to masks of the original frame and their pixel counts; validation and test share it."""

from __future__ import annotations

import torch
from torch import Tensor

from medsam_tune.geometry import to_original
from medsam_tune.metrics.overlap import OverlapMetric, overlap_counts
from medsam_tune.segmenters.semantic import class_rows
from medsam_tune.types import MaskPrediction, SegmentationBatch


def predict_original(prediction: MaskPrediction, batch: SegmentationBatch, side: int) -> list[Tensor]:
    """Bring the first mask of every object to its image's original frame.

    Where the network labels pixels, the scores of the classes are brought there and compared there, so that each pixel goes to
    the class with the largest score at the original resolution.

    Args:
        prediction: Logits (N, M, h, w); mask 0 of the M candidates is taken.
        batch: Says which image an object belongs to, and the frames.
        side: S, the side of the input frame in pixels.

    Returns:
        B tensors (n_b, H, W) of float32 logits, in the order of ``batch.original_masks``.
    """
    if prediction.class_logits is not None:
        return [class_rows(prediction.class_logits[row], frame, side) for row, frame in enumerate(batch.frames)]
    return [_first_mask(prediction.low_res_masks[batch.image_index == row], batch, row, side) for row in range(batch.n_images)]


def update_metric(metric: OverlapMetric, batch: SegmentationBatch, prediction: MaskPrediction, side: int) -> None:
    """Threshold once, at logit 0 in the original frame, and add the batch's pixel counts to ``metric``."""
    logits = predict_original(prediction, batch, side)
    for row, (image_logits, masks) in enumerate(zip(logits, batch.original_masks, strict=True)):
        n_objects = masks.shape[0]
        metric.update(
            batch.sample_index[row].expand(n_objects),
            batch.case_index[row].expand(n_objects),
            batch.labels[batch.image_index == row],
            torch.arange(n_objects, device=masks.device),
            overlap_counts(image_logits > 0, masks),
        )


def _first_mask(low_res_masks: Tensor, batch: SegmentationBatch, row: int, side: int) -> Tensor:
    frame = batch.frames[row]
    if low_res_masks.shape[0] == 0:
        return low_res_masks.new_zeros((0, *frame.original_size), dtype=torch.float32)
    return to_original(low_res_masks[:, :1].float(), frame, side)[:, 0]
