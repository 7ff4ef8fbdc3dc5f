"""Batches with one disjoint row for each class on every image, as ``data.target: per_class`` serves them."""

from __future__ import annotations

from dataclasses import replace

import torch

from medsam_tune.types import SegmentationBatch, Truth
from tests.factories import make_batch


def make_class_batch(
    n_classes: int = 2, *, seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((40, 64), (64, 48)), side: int = 64
) -> SegmentationBatch:
    """Rectangles as classes; the last image does not show the first class."""
    batch = make_batch(side=side, sizes=sizes, objects=(n_classes,) * len(sizes), seed=seed)
    masks, original = [], []
    for row, (inputs, stored) in enumerate(
        zip(batch.masks.split(n_classes), (m.dense() for m in batch.original_masks), strict=True)
    ):
        shown = torch.tensor([row + 1 < len(sizes), *[True] * (n_classes - 1)])
        masks.append(_disjoint(inputs) & shown[:, None, None, None])
        original.append(_disjoint(stored) & shown[:, None, None])
    labels = torch.arange(1, n_classes + 1).repeat(len(sizes))
    return replace(batch, queries=replace(batch.queries, labels=labels), truth=Truth(torch.cat(masks), tuple(original)))


def _disjoint(masks: torch.Tensor) -> torch.Tensor:
    """Leave each pixel to the first of its masks."""
    return masks & (masks.cumsum(dim=0) == 1)
