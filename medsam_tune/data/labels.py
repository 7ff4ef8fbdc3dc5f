"""From stored mask values to objects: one row for each label that is present."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import RecipeError


def check_labels(labels: Mapping[str, Sequence[int]] | None) -> None:
    """Refuse label groups without values, or with the background value 0.

    Raises:
        RecipeError: Naming the group.
    """
    for name, values in (labels or {}).items():
        if not values or 0 in values:
            raise RecipeError(
                f"data.source.labels.{name}: expected a list of mask values other than 0 (0 is background), got {list(values)}."
            )


def name_labels(labels: Mapping[str, Sequence[int]]) -> dict[int, str]:
    """Number the groups 1, 2, ... in the order in which the recipe names them."""
    return dict(enumerate(labels, start=1))


def label_rows(values: NDArray[Any], labels: Mapping[str, Sequence[int]] | None) -> tuple[Tensor, Tensor]:
    """Split mask values (H, W) into masks (N, H, W) bool and labels (N,) int64, one row for each label present.

    Groups may share values (whole tumour and its core), then their rows overlap. Values that no group names are background.

    Args:
        values: Integer mask values; 0 is background.
        labels: Values of each named group, or None: each value is its own label.

    Example:
        >>> label_rows(np.array([[0, 2], [1, 2]]), {"both": [1, 2], "second": [2]})[0].sum(dim=(1, 2)).tolist()
        [3, 2]
    """
    if labels is None:
        groups = [(int(value), [int(value)]) for value in np.unique(values) if value != 0]
    else:
        groups = list(enumerate((list(group) for group in labels.values()), start=1))
    rows = [(label, np.isin(values, group)) for label, group in groups]
    present = [(label, row) for label, row in rows if row.any()]
    if not present:
        return no_objects(values.shape)
    masks = torch.from_numpy(np.stack([row for _, row in present]))
    return masks, torch.tensor([label for label, _ in present], dtype=torch.int64)


def no_objects(size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return masks (0, H, W) and labels (0,) for an image of ``size`` (H, W) that shows nothing."""
    return torch.zeros((0, *size), dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
