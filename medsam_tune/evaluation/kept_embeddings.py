"""Embeddings of test images, kept from one way of scoring to the next and for the report: a trained encoder has no cache."""

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
    """Encode the images of a test once a network, as far as memory goes; what does not fit is encoded again.

    Attributes:
        most_bytes: How much is kept; a gibibyte is 256 images of SAM's 256 x 64 x 64.
        n_encoded: Images, or tiles of them, that an encoder has seen for this.
    """

    most_bytes: int = 1 << 30
    n_encoded: int = 0
    _kept: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _bytes: int = 0

    def encoded(self, network: str, segmenter: Segmenter, batches: Iterable[SegmentationBatch]) -> Iterator[SegmentationBatch]:
        """Yield the batches on the segmenter's device, with their embeddings.

        Args:
            network: Names whose embeddings these are; another segmenter under the same name must have the same.
            segmenter: Put into eval mode.
            batches: Of images of one test. A chunk of slices, or all tiles of an image, come together as they did before.
        """
        device = next(segmenter.parameters()).device
        segmenter.eval()
        for batch in batches:
            yield self.with_embeddings(network, segmenter, batch.to(device))

    def with_embeddings(self, network: str, segmenter: Segmenter, batch: SegmentationBatch) -> SegmentationBatch:
        """Return a batch with its embeddings; as it is where it has some, or where its network makes none that could be kept.

        Args:
            network: As in ``encoded``.
            segmenter: In eval mode.
            batch: On the segmenter's device.
        """
        if batch.image_embeddings is not None:
            return batch
        keys = [(network, *place) for place in _places(batch)]
        kept = [self._kept[key] for key in keys if key in self._kept]
        if kept and len(kept) == len(keys):
            return replace(batch, image_embeddings=torch.stack(kept).to(batch.images.device))
        with torch.no_grad():
            made = embedded(segmenter, batch)
        # Of a volume whose slices the network mixes there are none.
        if made.image_embeddings is not None:
            self.n_encoded += batch.n_images
            self._keep(keys, made.image_embeddings)
        return made

    def _keep(self, keys: list[tuple[object, ...]], embeddings: Tensor) -> None:
        if self._bytes + embeddings.nbytes <= self.most_bytes:
            self._bytes += embeddings.nbytes
            self._kept.update(zip(keys, embeddings.cpu(), strict=True))


def _places(batch: SegmentationBatch) -> list[tuple[int, ...]]:
    """Return what tells each row of a batch from all others of its source: the image, and the corner of a tile."""
    indices = batch.sample_index.tolist()
    if not batch.tiles:
        return [(index,) for index in indices]
    return [(index, tile.left, tile.top) for index, tile in zip(indices, batch.tiles, strict=True)]
