"""Which values the pixels of a mask hold, counted where ``numpy.unique`` would sort every pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDEST = 2**16
"""Values as far apart as this are sorted: a table of every value between them would be longer than most masks."""


def present_values(values: NDArray[Any]) -> NDArray[Any]:
    """Return the different values of an array of any shape, ascending, as ``numpy.unique`` does.

    Examples:
        >>> present_values(np.array([[3, 0], [3, -1]])).tolist()
        [-1, 0, 3]
    """
    offsets, least = _offsets(values)
    return np.unique(values) if offsets is None else _value_of(np.flatnonzero(np.bincount(offsets)), least, values)


def count_values(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the different values of an array, ascending, and how often each stands in it.

    Examples:
        >>> [each.tolist() for each in count_values(np.array([3, 0, 3]))]
        [[0, 3], [1, 2]]
    """
    offsets, least = _offsets(values)
    if offsets is None:
        return np.unique(values, return_counts=True)
    counts = np.bincount(offsets)
    found = np.flatnonzero(counts)
    return _value_of(found, least, values), counts[found]


def number_values(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the different values (K,) of an array, ascending, and for each element the place of its value, in its shape.

    Examples:
        >>> [each.tolist() for each in number_values(np.array([[7, 0], [7, 5]]))]
        [[0, 5, 7], [[2, 0], [2, 1]]]
    """
    offsets, least = _offsets(values)
    if offsets is None:
        present, places = np.unique(values, return_inverse=True)
        return present, places.reshape(values.shape)
    found = np.flatnonzero(np.bincount(offsets))
    place_of = np.zeros(int(found[-1]) + 1, np.intp)
    place_of[found] = np.arange(len(found))
    return _value_of(found, least, values), place_of[offsets].reshape(values.shape)


def _offsets(values: NDArray[Any]) -> tuple[NDArray[np.intp] | None, int]:
    """Return how far each element is above the least, and the least; None where there is none, or a table would not pay."""
    if values.dtype.kind not in "iu" or not values.size:
        return None, 0
    least, most = int(values.min()), int(values.max())
    if most - least >= _WIDEST or most > np.iinfo(np.intp).max:
        return None, 0
    return values.ravel().astype(np.intp) - least, least


def _value_of(offsets: NDArray[np.intp], least: int, values: NDArray[Any]) -> NDArray[Any]:
    return (offsets + least).astype(values.dtype)
