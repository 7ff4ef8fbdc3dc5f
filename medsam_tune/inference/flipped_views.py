"""An image seen several times in a test: as it lies and flipped, the answers flipped back and averaged as probabilities.

Differs from the usual flips of a whole input: the padding stays at the right and at the bottom, where every network expects it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.geometry import Frame
from medsam_tune.segmenters.base import Segmenter, ViewsAtTest
from medsam_tune.segmenters.semantic import class_margins
from medsam_tune.segmenters.task import mean_probability_logits
from medsam_tune.types import MaskPrediction, SegmentationBatch

Axes = tuple[int, ...]

VIEWS: dict[ViewsAtTest, tuple[Axes, ...]] = {"one": ((),), "mirror": ((), (-1,)), "flips": ((), (-1,), (-2,), (-1, -2))}
"""Axes along which each view is flipped; the first is the image as it lies."""


def seen_in_views(segmenter: Segmenter, batch: SegmentationBatch) -> MaskPrediction:
    """Return what a segmenter predicts for a batch, averaged over the views that its ``views_at_test`` names.

    A batch that asks for one view, or brings prompts, is seen once. Of an image whose embedding the batch brings, the other
    views are encoded all the same.

    Returns:
        Of one view the segmenter's own answer; of several, logits (N, 1, S, S) whose probability is the mean of the views'.
    """
    views = VIEWS[segmenter.views_at_test]
    if len(views) == 1 or batch.one_view or batch.queries.kinds():
        one: MaskPrediction = segmenter(batch)
        return one
    side = segmenter.input_rule.side
    seen = [_flipped_back(segmenter(flipped_batch(batch, axes)), batch, axes, side) for axes in views]
    ious = [each.iou_predictions for each in seen if each.iou_predictions is not None]
    iou = torch.stack(ious).mean(dim=0)[:, :1] if ious else None
    scores = [each.class_logits for each in seen if each.class_logits is not None]
    if scores:
        joined = mean_log_probability(scores)
        return MaskPrediction(class_margins(joined)[:, 1:].flatten(0, 1)[:, None], iou, joined)
    return MaskPrediction(mean_probability_logits(*(each.low_res_masks[:, :1] for each in seen)), iou)


def flipped_batch(batch: SegmentationBatch, axes: Axes) -> SegmentationBatch:
    """Return the batch with its images and priors flipped, each within its valid area, and without truth and embeddings.

    Along no axis it stays as it is.
    """
    if not axes:
        return batch
    priors = None if batch.priors is None else flip_valid(batch.priors, batch.frames, axes)
    images = flip_valid(batch.images, batch.frames, axes)
    return replace(batch, images=images, priors=priors, image_embeddings=None, encoder_prefix=None, truth=None)


def flip_valid(maps: Tensor, frames: Sequence[Frame], axes: Axes) -> Tensor:
    """Flip maps (B, C, S, S) of the input frame within the valid area; the padding stays where and what it is.

    Examples:
        >>> flip_valid(torch.tensor([[[[1, 2, 0], [3, 4, 0], [0, 0, 0]]]]), [Frame((2, 2), (2, 2))], (-1,)).tolist()
        [[[[2, 1, 0], [4, 3, 0], [0, 0, 0]]]]
    """
    flipped = maps.clone()
    for row, frame in enumerate(frames):
        height, width = frame.input_size
        flipped[row, :, :height, :width] = maps[row, :, :height, :width].flip(axes)
    return flipped


def mean_log_probability(scores: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of softmax probabilities, from scores (B, 1 + K, h, w) of equally many classes.

    Examples:
        >>> one, other = torch.tensor([0.0, 0.0]).view(1, 2, 1, 1), torch.tensor([1.0, 3.0]).log().view(1, 2, 1, 1)
        >>> mean_log_probability([one, other]).exp().flatten()
        tensor([0.3750, 0.6250])
    """
    stacked = torch.stack([each.float().log_softmax(dim=1) for each in scores])
    return stacked.logsumexp(dim=0) - torch.log(torch.tensor(float(len(scores))))


def _flipped_back(prediction: MaskPrediction, batch: SegmentationBatch, axes: Axes, side: int) -> MaskPrediction:
    """Return a prediction at S, where the valid area ends between two pixels, with its maps as the image lies."""
    rows = [batch.frames[image] for image in batch.image_index.tolist()]
    classes = prediction.class_logits
    return MaskPrediction(
        flip_valid(_at_side(prediction.low_res_masks, side), rows, axes),
        prediction.iou_predictions,
        None if classes is None else flip_valid(_at_side(classes, side), batch.frames, axes),
    )


def _at_side(maps: Tensor, side: int) -> Tensor:
    maps = maps.float()
    return maps if maps.shape[-2:] == (side, side) else F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
