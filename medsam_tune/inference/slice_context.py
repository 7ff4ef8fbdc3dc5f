"""The slices of a new volume, each with what a network that mixes slices makes of it in every window that holds it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medsam_tune.data.intensity import AS_STORED
from medsam_tune.inference.new_images import image_tensor, new_batch
from medsam_tune.inference.windows import window_starts
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.types import SegmentationBatch

if TYPE_CHECKING:
    from medsam_tune.inference.sliced_file import SlicedFile


class SliceContext:
    """Encode windows of a volume's slices, each window once while slices are asked for one after the other.

    Args:
        segmenter: Mixes the slices of a chunk.
        slices: The volume; what the model was trained on says how many slices a window has, and how far windows are apart.
    """

    def __init__(self, segmenter: Segmenter, slices: SlicedFile) -> None:
        self._segmenter, self._slices = segmenter, slices
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def batch(self, position: int) -> SegmentationBatch:
        """Return one slice as a new image, with the embeddings (W, C, g, g) of it in the W windows that hold it.

        Raises:
            DataError: If a slice cannot be read.
        """
        length, stride = self._slices.data.chunk, self._slices.data.chunk_stride
        starts = [start for start in window_starts(len(self._slices), length, stride) if start <= position < start + length]
        found = [self._window(start, length)[position - start] for start in starts]
        return replace(self._batch([position]), image_embeddings=torch.stack(found))

    def _window(self, start: int, length: int) -> Tensor:
        if start not in self._kept:
            positions = list(range(start, min(start + length, len(self._slices))))
            rows = torch.arange(len(positions))
            batch = replace(self._batch(positions), slice_index=rows, chunk_index=torch.zeros_like(rows), chunk_length=length)
            with torch.no_grad():
                embeddings = self._segmenter.embedded(batch).image_embeddings
            if embeddings is None:
                raise RuntimeError(f"{type(self._segmenter).__name__} mixes slices and makes no image embedding.")
            self._kept[start] = embeddings
            while len(self._kept) > length:
                self._kept.popitem(last=False)
        return self._kept[start]

    def _batch(self, positions: list[int]) -> SegmentationBatch:
        images = [image_tensor(self._slices.levels(position), intensity=AS_STORED) for position in positions]
        return new_batch(images, self._segmenter).to(next(self._segmenter.parameters()).device)


def context_of(segmenter: Segmenter, slices: SlicedFile) -> SliceContext | None:
    """Return what a network sees of a slice's neighbours; None where it looks at none, or the file is a single image."""
    if not segmenter.mixes_slices() or not slices.header.is_volume or slices.data.chunk == 1:
        return None
    kept: SliceContext = slices.contexts.setdefault(id(segmenter), SliceContext(segmenter, slices))
    return kept
