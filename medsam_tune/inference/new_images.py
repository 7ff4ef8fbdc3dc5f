"""New images, as arrays, into the batch that a segmenter takes: nobody knows their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medsam_tune.data.intensity import Intensity, apply_intensity, to_grey_levels
from medsam_tune.fusion.samaug import priors_to_input, render_priors
from medsam_tune.geometry import image_to_input
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.types import AutomaticMasks, Queries, SegmentationBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

GreyLevels = Intensity | tuple[float, float] | None
"""How stored values become 0..255: a rule, the (low, high) that become 0 and 255, or None for uint8 as it is."""


def image_tensor(image: NDArray[np.generic], *, intensity: GreyLevels = None) -> Tensor:
    """Turn (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA into (3, H, W) float32 in 0..255; alpha is dropped.

    Args:
        image: uint8, or any real type together with ``intensity``.
        intensity: How values become 0..255; values beyond are clipped.

    Raises:
        ValueError: If the shape or type does not fit, or a value is NaN or infinite.
        DataError: If the values do not fit the rule.
    """
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise ValueError(f"image must have shape (H, W), (H, W, 3) or (H, W, 4), got {image.shape}. Move channels last.")
    if intensity is None and image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 in 0..255, got {image.dtype}. "
            "Scale it as the training data was, or pass intensity=(low, high), the values that become 0 and 255."
        )
    values = image[..., :3] if image.ndim == 3 else image
    if not np.isfinite(values).all():
        n_faulty = int((~np.isfinite(values)).sum())
        raise ValueError(f"image holds {n_faulty} values that are NaN or infinite. Replace them first.")
    pixels = torch.from_numpy(_grey_levels(values, intensity))
    return pixels.expand(3, -1, -1).clone() if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _grey_levels(values: NDArray[np.generic], intensity: GreyLevels) -> NDArray[np.float32]:
    if intensity is None:
        return np.array(values, dtype=np.float32)
    if isinstance(intensity, Intensity):
        return apply_intensity(values, intensity, "image")
    low, high = intensity
    if not low < high:
        raise ValueError(f"intensity must be (low, high) with low < high, got ({low}, {high}).")
    return to_grey_levels(values, low, high)


def new_batch(images: Sequence[Tensor], segmenter: Segmenter) -> SegmentationBatch:
    """Collate images (3, H, W) in 0..255 that nobody has labelled: one object or K classes an image are asked for."""
    rule, n_masks, classes = segmenter.input_rule, segmenter.masks_per_image(), segmenter.classes()
    inputs = [image_to_input(image, rule) for image in images]
    rows = torch.arange(len(images))
    ids = tuple(f"image_{row}" for row in range(len(images)))
    queries = Queries(rows.repeat_interleave(n_masks), torch.arange(1, n_masks + 1).repeat(len(images)), classes * len(images))
    return SegmentationBatch(
        images=torch.stack([image for image, _ in inputs]),
        queries=queries,
        frames=tuple(frame for _, frame in inputs),
        sample_index=rows,
        case_index=rows,
        image_ids=ids,
        case_ids=ids,
        spacing_mm=((1.0, 1.0),) * len(images),
    )


def with_priors(batch: SegmentationBatch, found: AutomaticMasks) -> SegmentationBatch:
    """Return the batch of one image with the automatic masks that its fusion reads.

    Raises:
        ValueError: If the masks have another size than the image.
    """
    frame = batch.frames[0]
    if tuple(found.masks.shape[-2:]) != frame.original_size:
        raise ValueError(
            f"priors must be masks of the image's size {frame.original_size}, got {tuple(found.masks.shape[-2:])}. "
            "Find them in this very image."
        )
    priors = priors_to_input(render_priors(found), frame, batch.images.shape[-1])
    return replace(batch, priors=priors[None].to(batch.images.device))
