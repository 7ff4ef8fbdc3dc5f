"""From stored mask values to objects: one row for each label that is present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import RecipeError


@dataclass(frozen=True)
class Objects:
    """Hold what a mask shows.

    Attributes:
        masks: (N, H, W) bool, one row for each label that is present.
        labels: (N,) int64.
        ignored: (H, W) bool, pixels that nobody annotated; None where every pixel is known.
    """

    masks: Tensor
    labels: Tensor
    ignored: Tensor | None = None


def check_labels(labels: Mapping[str, Sequence[int]] | None) -> None:
    """Refuse label groups without values, with the background value 0, or with values that no mask may hold.

    Raises:
        RecipeError: Naming the group.
    """
    for name, values in (labels or {}).items():
        if not values or min(values) < 1:
            raise RecipeError(
                f"data.source.labels.{name}: expected a list of mask values above 0 (0 is background), got {list(values)}."
            )


def check_ignore_label(ignore_label: int | None, labels: Mapping[str, Sequence[int]] | None) -> None:
    """Refuse an ignored value that is background or a label.

    Raises:
        RecipeError: Naming the key.
    """
    if ignore_label is None:
        return
    named = [name for name, values in (labels or {}).items() if ignore_label in values]
    if ignore_label < 1 or named:
        where = f"it is a value of label {named[0]} too" if named else "0 is background"
        raise RecipeError(f"data.ignore_label: expected a mask value above 0 that no label uses, got {ignore_label}: {where}.")


def name_labels(labels: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """Number the groups 1, 2, ... in the order in which the recipe names them."""
    return dict(enumerate(labels, start=1))


def name_values(parts: Sequence[NDArray[Any]], ignore_label: int | None) -> dict[int, str]:
    """Call every value above 0 that stands in one of the arrays ``label <value>``, without the ignored one."""
    found = sorted({int(value) for part in parts for value in np.unique(part)} - {0, ignore_label})
    return {value: f"label {value}" for value in found}


def find_objects(
    values: NDArray[Any], labels: Mapping[str, Sequence[int]] | None, *, ignore_label: int | None = None
) -> Objects:
    """Split mask values (H, W) into one row for each label present.

    Groups may share values (whole tumour and its core), then their rows overlap. Values that no group names are background.

    Args:
        values: Integer mask values; 0 is background.
        labels: Values of each named group, or None: each value is its own label.
        ignore_label: Value of pixels that nobody annotated: neither object nor background.

    Example:
        >>> find_objects(np.array([[0, 2], [1, 2]]), {"both": [1, 2], "second": [2]}).masks.sum(dim=(1, 2)).tolist()
        [3, 2]
    """
    ignored = None if ignore_label is None else torch.from_numpy(values == ignore_label)
    if labels is None:
        groups = [(int(value), [int(value)]) for value in np.unique(values) if value not in (0, ignore_label)]
    else:
        groups = list(enumerate((list(group) for group in labels.values()), start=1))
    rows = [(label, np.isin(values, group)) for label, group in groups]
    present = [(label, row) for label, row in rows if row.any()]
    if not present:
        return no_objects(values.shape, ignored)
    masks = torch.from_numpy(np.stack([row for _, row in present]))
    return Objects(masks, torch.tensor([label for label, _ in present], dtype=torch.int64), ignored)


def no_objects(size: tuple[int, ...], ignored: Tensor | None = None) -> Objects:
    """Return the objects of an image of ``size`` (H, W) that shows nothing."""
    return Objects(torch.zeros((0, *size), dtype=torch.bool), torch.zeros(0, dtype=torch.int64), ignored)
