"""Polygons and pixels: a pixel belongs to a polygon if its centre lies inside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def fill_polygons(polygons: Iterable[NDArray[np.float64]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels (H, W) whose centres lie inside an odd number of polygons, so that one inside another is a hole.

    Args:
        polygons: (N, 2) corners as (row, column), pixel centres at whole numbers; the last is joined to the first.
        size: (H, W).

    Examples:
        >>> fill_polygons([np.array([[-0.5, -0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, -0.5]])], (2, 3)).astype(int).tolist()
        [[1, 1, 0], [0, 0, 0]]
    """
    height, width = size
    crossings = np.zeros((height, width + 1), np.int64)
    for corners in polygons:
        (row, column), (next_row, next_column) = corners.T, np.roll(corners, -1, axis=0).T
        first = np.clip(np.ceil(np.minimum(row, next_row)), 0, height).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(row, next_row)), 0, height).astype(np.int64)
        edge = np.repeat(np.arange(len(corners)), last - first)
        rows = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - (last - first), last - first) + first[edge]
        share = (rows - row[edge]) / (next_row - row)[edge]
        crossed = column[edge] + share * (next_column - column)[edge]
        np.add.at(crossings, (rows, np.clip(np.ceil(crossed), 0, width).astype(np.int64)), 1)
    inside: NDArray[np.bool_] = np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
    return inside


def outline_pixels(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Return the outlines of a mask (H, W) along the edges of its pixels, holes too, as ``fill_polygons`` takes them.

    So the area of the outlines is that of the pixels, and filling them gives the mask again.

    Examples:
        >>> [outline.tolist() for outline in outline_pixels(np.array([[True, True]]))]
        [[[-0.5, -0.5], [-0.5, 1.5], [0.5, 1.5], [0.5, -0.5]]]
    """
    ends = _edges(np.pad(mask, 1).astype(np.int8))
    outlines = []
    while ends:
        start = next(iter(ends))
        corners, before, at = [start], (0, 0), start
        while True:
            choices = ends[at]
            # Where two pixels touch at a corner, keep to the pixel that was followed.
            turn = max(range(len(choices)), key=lambda number: _turns_right(before, at, choices[number]))
            after = choices.pop(turn)
            if not choices:
                del ends[at]
            before, at = at, after
            if at == start:
                break
            corners.append(at)
        outlines.append(_without_straight(np.array(corners, np.float64)) - 1.5)
    return outlines


def _edges(padded: NDArray[np.int8]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return the directed pixel edges between object (on the right) and background, by the corner that they start at."""
    ends: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    down, across = np.diff(padded, axis=0), np.diff(padded, axis=1)
    for row, column in np.argwhere(down):
        left, right = (int(row) + 1, int(column)), (int(row) + 1, int(column) + 1)
        start, end = (left, right) if down[row, column] > 0 else (right, left)
        ends[start].append(end)
    for row, column in np.argwhere(across):
        top, bottom = (int(row), int(column) + 1), (int(row) + 1, int(column) + 1)
        start, end = (bottom, top) if across[row, column] > 0 else (top, bottom)
        ends[start].append(end)
    return dict(ends)


def _turns_right(before: tuple[int, int], at: tuple[int, int], after: tuple[int, int]) -> int:
    return (at[1] - before[1]) * (after[0] - at[0]) - (at[0] - before[0]) * (after[1] - at[1])


def _without_straight(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Drop corners at which the outline goes straight on."""
    arriving, leaving = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
    kept: NDArray[np.float64] = corners[(arriving != leaving).any(axis=1)]
    return kept
