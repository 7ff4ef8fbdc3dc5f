"""S-measure: how alike two masks are in structure, the second figure of papers on polyps.

Paper: Fan et al. 2017, Structure-measure: A new way to evaluate foreground maps, ICCV, with the authors' weight of 0.5 between
the object and the region part.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ALPHA = 0.5
_TINY = np.spacing(1)  # the authors' eps, which keeps a division by no variance at 0


def s_measure(predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    """Return the S-measure of an image, in [0, 1].

    By the paper's rule for empties an image that shows nothing scores the share that is not predicted, and one that shows
    nothing but the object the share that is; so nothing found where nothing is scores 1. What a report says of a case leaves
    such images out.

    Args:
        predicted: (H, W) bool.
        true: (H, W) bool.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> mask = np.array([[True, False], [True, False]])
        >>> round(s_measure(mask, mask), 6)
        1.0
        >>> s_measure(~mask, np.zeros_like(mask))
        0.5
    """
    if predicted.shape != true.shape:
        raise ValueError(f"masks must have one shape (H, W), got {predicted.shape} and {true.shape}. Compare them at one size.")
    answer, share = predicted.astype(np.float64), float(true.mean())
    if share == 0:
        return 1 - float(answer.mean())
    if share == 1:
        return float(answer.mean())
    return max(0.0, _ALPHA * _object_part(answer, true) + (1 - _ALPHA) * _region_part(answer, true))


def _object_part(answer: NDArray[np.float64], true: NDArray[np.bool_]) -> float:
    share = float(true.mean())
    inside, outside = _likeness(answer[true]), _likeness(1 - answer[~true])
    return share * inside + (1 - share) * outside


def _likeness(values: NDArray[np.float64]) -> float:
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return float(2 * mean / (mean**2 + 1 + spread + _TINY))


def _region_part(answer: NDArray[np.float64], true: NDArray[np.bool_]) -> float:
    """Return the similarity of the four quarters around the truth's centre, by their area."""
    rows, columns = np.nonzero(true)
    # Halves to even, as the authors' MATLAB-to-numpy ports do; the quarter ends behind the centre.
    row, column = int(np.round(rows.mean())) + 1, int(np.round(columns.mean())) + 1
    total = 0.0
    for vertical in (slice(None, row), slice(row, None)):
        for horizontal in (slice(None, column), slice(column, None)):
            quarter = true[vertical, horizontal]
            if quarter.size:
                weight = quarter.size / true.size
                total += weight * _ssim(answer[vertical, horizontal], quarter.astype(np.float64))
    return total


def _ssim(answer: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    count = answer.size
    x, y = float(answer.mean()), float(true.mean())
    free = max(count - 1, 1)
    varies = float(((answer - x) ** 2).sum() + ((true - y) ** 2).sum()) / free
    together = float(((answer - x) * (true - y)).sum()) / free
    above, below = 4 * x * y * together, (x**2 + y**2) * varies
    if above != 0:
        return float(above / (below + _TINY))
    return 1.0 if below == 0 else 0.0
