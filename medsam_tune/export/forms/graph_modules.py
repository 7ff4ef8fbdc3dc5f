"""A tuned network as the modules whose forward passes become ONNX graphs.

The encoder takes an image of the input frame as it is, (h, w, 3) in 0..255 with its longest side S, and normalises and pads
inside (the layout of samexporter, https://github.com/vietanhdev/samexporter). The decoder has the inputs of segment_anything's
own export.

Source: segment-anything @ dca509f, ``utils/onnx.py``, for the decoder's inputs and what they mean.

Differs from the authors' code:
- The single mask that was tuned comes back, never one of the three candidates.
- Upscaling to the original size stands behind the graph that is traced (``graph_tail.py``): traced, the sizes of the example
  would be baked into it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.sam import SamBackbone
from medsam_tune.geometry import Frame
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import PromptEmbeddings, Queries, SegmentationBatch

# segment_anything's labels of a point: background, foreground, and the two corners of a box; -1 is padding.
_POINT_LABELS = range(4)
_PADDING = -1


def batch_of(input_image: Tensor, side: int, n_masks: int) -> SegmentationBatch:
    """Return the batch of one image (h, w, 3) in 0..255 of the input frame, padded to S; nothing is asked of it."""
    image = input_image.permute(2, 0, 1)[None]
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, side - width, 0, side - height))
    rows = torch.zeros(1, dtype=torch.int64)
    queries = Queries(torch.zeros(n_masks, dtype=torch.int64), torch.arange(1, n_masks + 1))
    frame = Frame((height, width), (height, width))
    return SegmentationBatch(padded, queries, (frame,), rows, rows, ("image",), ("image",), ((1.0, 1.0),))


class EncoderGraph(nn.Module):
    """Map an image to the embedding that is decoded."""

    def __init__(self, segmenter: SamSegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, input_image: Tensor) -> Tensor:
        """Map (h, w, 3) in 0..255 to (1, C, g, g)."""
        batch = batch_of(input_image, self.segmenter.input_rule.side, 1)
        return self.segmenter.image_embeddings(batch).main


class DecoderGraph(nn.Module):
    """Map an embedding and prompts to low-res masks; boxes are two points labelled 2 and 3."""

    def __init__(self, backbone: SamBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(
        self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor, has_mask_input: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return predicted IoU (1, 1) and logits (1, 1, 4g, 4g).

        Args:
            image_embeddings: (1, C, g, g).
            point_coords: (1, P, 2) (x, y) pixels of the input frame.
            point_labels: (1, P) float: 1 foreground, 0 background, 2 and 3 the corners of a box, -1 padding.
            mask_input: (1, 1, 4g, 4g) logits.
            has_mask_input: (1,) 1 where ``mask_input`` counts, else 0.
        """
        network: Any = self.backbone.prompt_encoder
        sparse = self._points(point_coords, point_labels)
        has_mask = has_mask_input.reshape(-1, 1, 1, 1)
        dense = has_mask * network.mask_downscaling(mask_input) + (1 - has_mask) * self.backbone.no_mask_embedding()
        index = torch.zeros(1, dtype=torch.int64)
        tokens, product = self.backbone._run_decoder(image_embeddings, index, PromptEmbeddings(sparse, dense))
        masks = product(self.backbone._filters(tokens, range(1)))
        return self.backbone.mask_decoder.iou_prediction_head(tokens[:, 0])[:, :1], masks

    def _points(self, coords: Tensor, labels: Tensor) -> Tensor:
        network: Any = self.backbone.prompt_encoder
        # A point names a pixel and means its centre.
        embedded = network.pe_layer._pe_encoding((coords + 0.5) / self.backbone.input_rule.side)
        labels = labels.unsqueeze(-1)
        padding = (labels == _PADDING).to(embedded.dtype)
        embedded = embedded * (1 - padding) + network.not_a_point_embed.weight * padding
        for number in _POINT_LABELS:
            embedded = embedded + network.point_embeddings[number].weight * (labels == number).to(embedded.dtype)
        return cast(Tensor, embedded)


class WholeGraph(nn.Module):
    """Map an image to masks in one pass, for a network that takes no prompt: AutoSAM, SAMed, a task network."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, input_image: Tensor) -> tuple[Tensor, ...]:
        """Map (h, w, 3) in 0..255 to logits (1, 1, h', w'), or class scores (1, 1 + K, h', w'), and predicted IoU if any."""
        segmenter = self.segmenter
        batch = batch_of(input_image, segmenter.input_rule.side, segmenter.masks_per_image())
        said = segmenter(batch)
        if said.class_logits is not None:
            return (said.class_logits,)
        return (said.low_res_masks,) if said.iou_predictions is None else (said.low_res_masks, said.iou_predictions)
