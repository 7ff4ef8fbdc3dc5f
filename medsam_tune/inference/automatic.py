"""Automatic masks: what a promptable network finds in an image when a grid of points asks it.

Paper: Kirillov et al. 2023, Segment Anything, section 5 and appendix B. Authors' code:
https://github.com/facebookresearch/segment-anything @ dca509f, ``automatic_mask_generator.py``.

Differs from the authors' code:
- Only the whole image is asked (``crop_n_layers`` 0) and small regions stay (``min_mask_region_area`` 0): their defaults.
- Prompts are decoded a few at a time, and a mask whose predicted IoU is too low is dropped before it is upscaled. What the
  first decoder layer computes of the image alone is computed once. The kept masks and scores are the same.
- A mask without a pixel is dropped. Theirs keeps it where ``stability_score_thresh`` is 0, with NaN for a score.
- The image is resized as the backbone's weights expect, which for SAM's is the authors' way.
- Two options: ``low_res_stability`` measures stability on the decoder's grid, which is approximate; ``box_fractions`` asks with
  boxes, one mask each, for weights that have learnt boxes alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from segment_anything.utils.amg import batched_mask_to_box, build_point_grid, calculate_stability_score
from torch import Tensor
from torchvision.ops import nms  # type: ignore[import-untyped]

from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.candidates import Candidates
from medsam_tune.geometry import Frame, boxes_to_input, image_to_input, to_original
from medsam_tune.precompute.prior_settings import PriorSettings
from medsam_tune.types import AutomaticMasks, EncoderInput, ImageEmbeddings

MASK_THRESHOLD = 0.0
# On CPU a larger batch leaves the caches; on GPU it is the authors'.
CPU_PROMPTS_PER_BATCH = 4
GPU_PROMPTS_PER_BATCH = 64


class AutomaticMaskGenerator:
    """Find the masks of an image without a prompt.

    Args:
        backbone: Any backbone, on the device it works on; set it to ``eval()``.
        settings: Grid and thresholds; its ``weights`` and ``checkpoint`` are not read here.
        prompts_per_batch: Points or boxes decoded at once; None takes 4 on CPU and 64 elsewhere. It changes no mask.

    Raises:
        ValueError: If ``prompts_per_batch`` is less than 1.
    """

    def __init__(self, backbone: Backbone, settings: PriorSettings, *, prompts_per_batch: int | None = None) -> None:
        self.backbone, self.settings = backbone, settings
        self.device = backbone.no_mask_embedding().device
        default = CPU_PROMPTS_PER_BATCH if self.device.type == "cpu" else GPU_PROMPTS_PER_BATCH
        self.prompts_per_batch = default if prompts_per_batch is None else prompts_per_batch
        if self.prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch must be at least 1, got {prompts_per_batch}.")

    @torch.no_grad()
    def generate(self, image: Tensor, image_embeddings: ImageEmbeddings | None = None) -> AutomaticMasks:
        """Return the masks of an image (3, H, W) in 0..255, on the CPU, by falling predicted IoU.

        Args:
            image: The image.
            image_embeddings: Its embeddings where somebody has encoded it already.
        """
        image_in, frame = image_to_input(image.to(self.device, torch.float32), self.backbone.input_rule)
        if image_embeddings is None:
            image_embeddings = self.backbone.encode(EncoderInput(image_in[None], (frame,)))
        decode = self.backbone.prompt_decoder(image_embeddings, multimask_output=not self.settings.box_fractions)
        kept = [self._select(decode(sparse), frame) for sparse in self._prompts(frame)]
        return _without_duplicates(kept, frame.original_size, self.settings.box_nms_thresh)

    def _prompts(self, frame: Frame) -> Iterator[Tensor]:
        """Yield the sparse embeddings (n, T, C) of the grid's points, or of the boxes around them, a batch at a time."""
        # The authors place points in double precision; Apple's GPUs have none.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        grid = build_point_grid(self.settings.points_per_side)
        if self.settings.box_fractions:
            points = torch.from_numpy(grid * np.array([frame.original_size[::-1]]))
            boxes = boxes_to_input(boxes_around(points, frame.original_size, self.settings.box_fractions), frame)
            for batch in torch.split(boxes.to(self.device, dtype), self.prompts_per_batch):
                yield self.backbone.embed_prompts(len(batch), boxes=batch).sparse_embeddings
            return
        # The authors' grid are fractions of the image, no pixels, so it lies in the input frame as it is.
        points = torch.from_numpy(grid * np.array([frame.input_size[::-1]]))
        for batch in torch.split(points.to(self.device, dtype), self.prompts_per_batch):
            labels = torch.ones(len(batch), 1, device=self.device)
            yield self.backbone.embed_prompts(len(batch), points=(batch[:, None], labels)).sparse_embeddings

    def _select(self, candidates: Candidates, frame: Frame) -> _Kept:
        """Drop masks by predicted IoU, then by stability, upscaling only what is left each time."""
        settings, side = self.settings, self.backbone.input_rule.side
        ious = candidates.predicted_iou
        chosen = ious > settings.pred_iou_thresh if settings.pred_iou_thresh > 0 else torch.ones_like(ious, dtype=torch.bool)
        ious = ious[chosen]
        if not len(ious):
            return _kept(torch.zeros(0, *frame.original_size, dtype=torch.bool), ious, ious)
        low_res = candidates.logits_of(chosen)
        measured = _valid_part(low_res, frame, side) if settings.low_res_stability else _upscaled(low_res, frame, side)
        stability = calculate_stability_score(measured, MASK_THRESHOLD, settings.stability_score_offset)
        # Without a pixel even at the lower threshold the score is NaN, which no comparison lets pass.
        stable = stability >= settings.stability_score_thresh
        logits = _upscaled(low_res[stable], frame, side) if settings.low_res_stability else measured[stable]
        return _kept(logits > MASK_THRESHOLD, ious[stable], stability[stable])


def boxes_around(points: Tensor, size: tuple[int, int], fractions: Sequence[float]) -> Tensor:
    """Return boxes (F * n, 4) XYXY around n points (x, y), cut at the image's border; both corners are inside.

    Args:
        points: (n, 2) positions in the original frame, (0, 0) and (W, H) being its corners.
        size: (H, W) of the image.
        fractions: F box sizes as fractions of the image's sides.

    Examples:
        >>> boxes_around(torch.tensor([[2.0, 5.0]]), (10, 20), [0.5])
        tensor([[0.0000, 2.5000, 6.0000, 6.5000]])
    """
    sides = points.new_tensor([size[1], size[0]])
    half = [fraction * sides / 2 for fraction in fractions]
    corners = torch.stack([torch.cat([points - h for h in half]), torch.cat([points + h - 1 for h in half])], dim=1)
    return corners.clamp(min=0).minimum(sides - 1).flatten(1)


@dataclass(frozen=True)
class _Kept:
    """Hold k masks, eight pixels a byte: all points together may keep thousands before duplicates are dropped."""

    packed: Tensor
    boxes: Tensor
    predicted_iou: Tensor
    stability_score: Tensor


def _kept(masks: Tensor, predicted_iou: Tensor, stability_score: Tensor) -> _Kept:
    """Pack those of the masks (k, H, W) that have a pixel."""
    found = masks.flatten(1).any(dim=1)
    masks, ious, stability = masks[found].cpu(), predicted_iou[found].cpu(), stability_score[found].cpu()
    packed = torch.from_numpy(np.packbits(masks.flatten(1).numpy(), axis=1))
    return _Kept(packed, batched_mask_to_box(masks).float(), ious, stability)


def _without_duplicates(kept: list[_Kept], size: tuple[int, int], box_nms_thresh: float) -> AutomaticMasks:
    """Join the batches and keep, of masks whose boxes overlap too much, the one of the highest predicted IoU."""
    boxes, ious, stability, packed = (
        torch.cat([getattr(batch, name) for batch in kept]) for name in ("boxes", "predicted_iou", "stability_score", "packed")
    )
    rows = nms(boxes, ious, box_nms_thresh)
    bits = np.unpackbits(packed[rows].numpy(), axis=1, count=math.prod(size))
    return AutomaticMasks(torch.from_numpy(bits).bool().reshape(-1, *size), ious[rows], stability[rows])


def _upscaled(low_res: Tensor, frame: Frame, side: int) -> Tensor:
    """Bring logits (k, 4g, 4g) to the original size (k, H, W)."""
    return to_original(low_res[:, None], frame, side)[:, 0]


def _valid_part(low_res: Tensor, frame: Frame, side: int) -> Tensor:
    """Cut the padding off logits (k, 4g, 4g); a cell that shows any of the image stays."""
    height, width = (math.ceil(length * low_res.shape[-1] / side) for length in frame.input_size)
    return low_res[:, :height, :width]
