"""Embeddings of test images, kept from one way of scoring to the next: an encoder that was trained has no cache of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from medsam_tune.inference.stitching import embedded
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.types import SegmentationBatch


@dataclass
class KeptEmbeddings:
    """Encode the batches of a test once a network, as far as memory goes; what does not fit is encoded again.

    Attributes:
        most_bytes: How much is kept; a gibibyte is 256 images of SAM's 256 x 64 x 64.
    """

    most_bytes: int = 1 << 30
    _kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _bytes: int = 0

    def encoded(self, network: str, segmenter: Segmenter, batches: Iterable[SegmentationBatch]) -> Iterator[SegmentationBatch]:
        """Yield the batches on the segmenter's device, with their embeddings.

        Args:
            network: Names whose embeddings these are; another segmenter under the same name must have the same.
            segmenter: Put into eval mode.
            batches: The same ones in the same order at every call.
        """
        device = next(segmenter.parameters()).device
        segmenter.eval()
        for number, batch in enumerate(batches):
            on_device = batch.to(device)
            if batch.image_embeddings is None:
                on_device = self._with_embeddings((network, number), segmenter, on_device)
            yield on_device

    def _with_embeddings(self, key: tuple[str, int], segmenter: Segmenter, batch: SegmentationBatch) -> SegmentationBatch:
        kept = self._kept.get(key)
        if kept is not None:
            return replace(batch, image_embeddings=kept.to(batch.images.device))
        with torch.no_grad():
            made = embedded(segmenter, batch)
        # Of a volume whose slices the network mixes there are none.
        if made.image_embeddings is not None and self._bytes + made.image_embeddings.nbytes <= self.most_bytes:
            self._kept[key] = made.image_embeddings.cpu()
            self._bytes += made.image_embeddings.nbytes
        return made
