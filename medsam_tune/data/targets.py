"""What one object is: all labels together, each label, or each connected piece."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medsam_tune.types import Sample

Target = Literal["binary", "per_label", "per_instance"]
_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


def apply_target(sample: Sample, target: Target) -> Sample:
    """Turn a sample's label masks into the objects that are predicted.

    Args:
        sample: One mask a label.
        target: ``binary``: exactly one row, the union, labelled 1, empty where nothing is shown; ``per_label``: one row for
            each label present; ``per_instance``: one row for each 8-connected piece of each label.
    """
    if target == "binary":
        return replace(sample, masks=sample.masks.any(dim=0, keepdim=True), labels=torch.ones(1, dtype=torch.int64))
    if target == "per_label":
        present = sample.masks.any(dim=2).any(dim=1)
        return replace(sample, masks=sample.masks[present], labels=sample.labels[present])
    pieces = [(connected_pieces(mask), label) for mask, label in zip(sample.masks, sample.labels, strict=True)]
    masks = torch.cat([rows for rows, _ in pieces]) if pieces else sample.masks
    labels = [label.expand(len(rows)) for rows, label in pieces]
    return replace(sample, masks=masks, labels=torch.cat(labels) if labels else sample.labels)


def connected_pieces(mask: Tensor) -> Tensor:
    """Split a mask (H, W) bool into its 8-connected pieces (K, H, W) bool, ordered by their first pixel, row by row."""
    from scipy import ndimage

    numbered, n_pieces = ndimage.label(mask.numpy(), structure=_EIGHT_NEIGHBOURS)
    pieces = torch.arange(1, n_pieces + 1)[:, None, None]
    return torch.from_numpy(numbered)[None] == pieces
