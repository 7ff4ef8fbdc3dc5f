"""What one object is: all labels together, each label present, each label of the list, or each instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medsam_tune.errors import DataError
from medsam_tune.masks import ObjectMasks
from medsam_tune.samples import Sample

Target = Literal["binary", "per_label", "per_class", "per_instance"]
MAY_BE_EMPTY: tuple[Target, ...] = ("binary", "per_class")
"""Targets whose number of rows does not depend on what an image shows: an image without any object is a negative."""

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=int)


def apply_target(sample: Sample, target: Target, *, classes: Sequence[int] = ()) -> Sample:
    """Turn a sample's label masks into the objects that are predicted.

    Args:
        sample: One mask a label.
        target: ``binary``: exactly one row, the union, labelled 1, empty where nothing is shown; ``per_label``: one row for
            each label present; ``per_class``: exactly one row for each of ``classes``, in their order, empty where the class
            is not shown; ``per_instance``: one row for each instance that the source tells apart, or, where its rows are
            labels, for each 8-connected piece of each.
        classes: Every label of the source, for ``per_class`` alone.

    Raises:
        DataError: If a pixel belongs to two classes, or to a label that is no class, under ``per_class``.
    """
    if target != "per_instance":
        sample = replace(sample, object_ids=None)
    if target == "binary":
        return replace(sample, masks=ObjectMasks.of(sample.masks.union()[None]), labels=torch.ones(1, dtype=torch.int64))
    if target == "per_label" or (target == "per_instance" and sample.object_ids is not None):
        return sample.rows(sample.masks.shown())
    if target == "per_class":
        return _one_row_a_class(sample, classes)
    pieces = [(connected_pieces(mask), label) for mask, label in zip(sample.masks, sample.labels, strict=True)]
    masks = ObjectMasks.join([rows for rows, _ in pieces]) if pieces else sample.masks
    labels = [label.expand(len(rows)) for rows, label in pieces]
    return replace(sample, masks=masks, labels=torch.cat(labels) if labels else sample.labels)


def _one_row_a_class(sample: Sample, classes: Sequence[int]) -> Sample:
    row_of = {label: row for row, label in enumerate(classes)}
    unknown = [label for label in sample.labels.tolist() if label not in row_of]
    if unknown or bool((sample.masks.counts() > 1).any()):
        fault = f"label {unknown[0]} is none of the classes {list(classes)}" if unknown else "a pixel belongs to two labels"
        raise DataError(
            f"{sample.image_id}: {fault}, but data.target: per_class gives each pixel to one class. Name disjoint values in "
            "data.source.labels, or set data.target: per_label."
        )
    pieces = {label: sample.masks[row] for row, label in enumerate(sample.labels.tolist())}
    absent = torch.zeros(sample.masks.size, dtype=torch.bool)
    masks = ObjectMasks.of_planes((pieces.get(label, absent) for label in classes), sample.masks.size)
    return replace(sample, masks=masks, labels=torch.tensor(list(classes), dtype=torch.int64))


def connected_pieces(mask: Tensor) -> ObjectMasks:
    """Split a mask (H, W) bool into its K 8-connected pieces, ordered by their first pixel, row by row."""
    from scipy import ndimage

    numbered, n_pieces = ndimage.label(mask.numpy(), structure=_EIGHT_NEIGHBOURS)
    return ObjectMasks.of_numbers(numbered, n_pieces)
