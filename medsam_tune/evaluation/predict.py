"""Count what a network's masks have in common with the truth; validation, test and baselines share it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.inference.stitching import AskedImage, asked_images, known_pixels, mask_chunks, true_masks
from medsam_tune.metrics.instances import instance_pixels
from medsam_tune.metrics.overlap import OverlapMetric, overlap_counts
from medsam_tune.metrics.surface import OutlineMetric, OutlinePlace
from medsam_tune.types import MaskPrediction, SegmentationBatch


def predict_masks(prediction: MaskPrediction, batch: SegmentationBatch, side: int) -> list[Tensor]:
    """Bring the first mask of every object to its image's original frame and threshold it once, at logit 0.

    Args:
        prediction: Logits (N, M, h, w); mask 0 of the M candidates is taken.
        batch: Says which image an object belongs to, and the frames.
        side: S, the side of the input frame in pixels.

    Returns:
        One tensor (n, H, W) bool for each of ``asked_images(batch)``, one row an object.
    """
    return [torch.cat(list(mask_chunks(prediction, batch, image, side))) for image in asked_images(batch)]


def update_metric(metric: OverlapMetric, batch: SegmentationBatch, prediction: MaskPrediction, side: int) -> None:
    """Add the pixel counts of the batch's predicted masks to ``metric``; pixels that nobody annotated do not count.

    Tiles are joined first, so that an image is scored whole. An ``OutlineMetric`` gets the outlines too, of all objects of a
    label together.
    """
    for image in asked_images(batch):
        known, masks = known_pixels(batch, image), true_masks(batch, image)
        labels = image.labels
        counts, start, shown = [], 0, _Shown(labels)
        for predicted in mask_chunks(prediction, batch, image, side):
            predicted = predicted if known is None else predicted & known.to(predicted.device)
            rows = slice(start, start + len(predicted))
            true = masks.dense(rows).to(predicted.device)
            counts.append(overlap_counts(predicted, true))
            if isinstance(metric, OutlineMetric):
                shown.add(labels[rows], predicted, true)
            start += len(predicted)
        if isinstance(metric, OutlineMetric):
            shown.hand_over(metric, batch, image)
        metric.update(
            torch.full((len(masks),), image.sample_index),
            torch.full((len(masks),), image.case_index),
            labels,
            torch.arange(len(masks)),
            torch.cat(counts),
        )


class _Shown:
    """Join the objects of each label on one image, predicted and true, a few objects at a time."""

    def __init__(self, labels: Tensor) -> None:
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}
        names, counts = torch.unique(labels, return_counts=True)
        # Only of several objects with one label is it a question which answer is whose.
        self._instances: dict[int, tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]] = {
            label: ([], []) for label in names[counts > 1].tolist()
        }

    def add(self, labels: Tensor, predicted: Tensor, true: Tensor) -> None:
        for row, label in enumerate(labels.tolist()):
            if label in self._instances:
                for places, mask in zip(self._instances[label], (predicted[row], true[row]), strict=True):
                    places.append(np.flatnonzero(mask.cpu().numpy()))
        for label in torch.unique(labels).tolist():
            rows = labels == label
            now = (predicted[rows].any(dim=0), true[rows].any(dim=0))
            before = self._masks.get(label, now)
            self._masks[label] = (before[0] | now[0], before[1] | now[1])

    def hand_over(self, metric: OutlineMetric, batch: SegmentationBatch, image: AskedImage) -> None:
        """Add them to the metric; an image without a place in a volume is one of its own."""
        row = image.rows[0]
        volume = image.sample_index if batch.volume_index is None else int(batch.volume_index[row])
        position = 0 if batch.slice_index is None else int(batch.slice_index[row])
        for label, (predicted, true) in self._masks.items():
            metric.add_outlines(OutlinePlace(image.case_index, label, volume, position), predicted, true)
        for label, (found, objects) in self._instances.items():
            metric.add_instances(image.sample_index, image.case_index, label, instance_pixels(found, objects))
