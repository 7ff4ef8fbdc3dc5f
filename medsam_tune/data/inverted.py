"""Masks in which what is 0 is the object: suspected aloud, and read the other way round where the recipe says so."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.base import SegmentationSource
from medsam_tune.errors import DataWarning

KEY = "data.inverted_masks"
# An object that covers most of an image touches most of its rim now and then; background does in nearly all.
_RIM, _MOST = 0.9, 0.8
_LOOKED_AT = 12
_FEWEST = 3


def labels_the_rim(labelled: NDArray[Any]) -> bool:
    """Tell whether a mask (H, W) labels nearly all of the image's rim and more than half of the image, as background does.

    Example:
        >>> hole = np.ones((9, 9)); hole[3:5, 3:6] = 0
        >>> labels_the_rim(hole), labels_the_rim(1 - hole)
        (True, False)
    """
    shown = labelled != 0
    rim = np.concatenate([shown[0], shown[-1], shown[1:-1, 0], shown[1:-1, -1]])
    return bool(rim.mean() >= _RIM and shown.mean() > 0.5)


def suspicion(found: Sequence[bool]) -> str | None:
    """Return what to say of masks, of which each either labels its rim or not; None where nothing is suspect."""
    if len(found) < _FEWEST or sum(found) < _MOST * len(found):
        return None
    return (
        f"{sum(found)} of {len(found)} masks looked at label the rim of the image and more than half of it, as background "
        f"does: the masks may be inverted. If they are, {KEY}: true takes what is 0 as the object."
    )


def warn_of_inverted(source: SegmentationSource, indices: Sequence[int]) -> None:
    """Look at some items of a source whose masks show one kind of object, and say aloud what is suspect."""
    if source.inverted or len(source.named_labels()) > 1 or not indices:
        return
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(len(indices), _LOOKED_AT)).round().astype(int))
    shown = [sample for place in chosen if len((sample := source[indices[place]]).labels)]
    if len({int(label) for sample in shown for label in sample.labels}) > 1:
        return
    said = suspicion([labels_the_rim(sample.masks.union().numpy()) for sample in shown])
    if said is not None:
        warnings.warn(said, DataWarning, stacklevel=2)
