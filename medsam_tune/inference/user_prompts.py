"""What a user draws on an image, in its own pixels, as queries in the input frame."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medsam_tune.geometry import Frame, boxes_to_input, points_to_input
from medsam_tune.types import Queries

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def user_queries(
    queries: Queries,
    frame: Frame,
    *,
    point_coords: ArrayLike | None = None,
    point_labels: ArrayLike | None = None,
    boxes: ArrayLike | None = None,
    mask_inputs: ArrayLike | None = None,
) -> Queries:
    """Return the N queries with what a user drew for each.

    Args:
        queries: The objects that are asked for, all on one image.
        frame: Of that image.
        point_coords: (N, P, 2) in (x, y) pixels of the original image.
        point_labels: (N, P): 1 foreground, 0 background, -1 padding.
        boxes: (N, 4) XYXY pixels of the original image, the last column and row included.
        mask_inputs: (N, 1, 4g, 4g) logits of the padded input frame, such as an earlier prediction's.

    Raises:
        ValueError: If a shape does not fit, or a box or point lies outside the image.
    """
    device, n_objects = queries.image_index.device, queries.n_objects
    drawn: dict[str, Any] = {}
    if boxes is not None:
        drawn["boxes"] = boxes_to_input(_checked_boxes(boxes, n_objects, frame), frame)
    if (point_coords is None) != (point_labels is None):
        raise ValueError("point_coords and point_labels belong together, got one of them. Label 1 is foreground, 0 background.")
    if point_coords is not None and point_labels is not None:
        coords, labels = _checked_points(point_coords, point_labels, n_objects, frame)
        drawn |= {"point_coords": points_to_input(coords, frame), "point_labels": labels}
    if mask_inputs is not None:
        drawn["mask_inputs"] = _checked_masks(mask_inputs, n_objects)
    return replace(queries, **{name: value.to(device) for name, value in drawn.items()})


def _checked_boxes(boxes: ArrayLike, n_objects: int, frame: Frame) -> Tensor:
    corners = torch.as_tensor(np.asarray(boxes, dtype=np.float32))
    if corners.shape != (n_objects, 4):
        raise ValueError(
            f"box must hold 4 numbers (x1, y1, x2, y2) in pixels for each of {n_objects} objects, got shape "
            f"{tuple(corners.shape)}."
        )
    height, width = frame.original_size
    for x1, y1, x2, y2 in corners.tolist():
        # Corners are the first and the last pixel, so the box of a one-pixel object has x1 = x2.
        if not (x1 <= x2 and y1 <= y2):
            raise ValueError(f"box must have x1 <= x2 and y1 <= y2, got {[x1, y1, x2, y2]}.")
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            raise ValueError(
                f"box must lie in the image of {width} x {height} pixels (x, y), got {[x1, y1, x2, y2]}. Cut it off there."
            )
    return corners


def _checked_points(coords: ArrayLike, labels: ArrayLike, n_objects: int, frame: Frame) -> tuple[Tensor, Tensor]:
    points = torch.as_tensor(np.asarray(coords, dtype=np.float32))
    kinds = torch.as_tensor(np.asarray(labels, dtype=np.float32))
    if points.ndim != 3 or points.shape[::2] != (n_objects, 2) or kinds.shape != points.shape[:2]:
        raise ValueError(
            f"point_coords must hold (x, y) of P points and point_labels P labels for each of {n_objects} objects, got shapes "
            f"{tuple(points.shape)} and {tuple(kinds.shape)}."
        )
    if not bool(torch.isin(kinds, torch.tensor([-1.0, 0.0, 1.0])).all()):
        found = sorted(set(kinds.flatten().tolist()))
        raise ValueError(f"point_labels must be 1 (foreground), 0 (background) or -1 (padding), got {found}.")
    height, width = frame.original_size
    shown = points[kinds >= 0]
    inside = (shown >= 0).all(dim=1) & (shown[:, 0] <= width) & (shown[:, 1] <= height)
    if not bool(inside.all()):
        raise ValueError(
            f"point must lie in the image of {width} x {height} pixels (x, y), got {shown[~inside][0].tolist()}. "
            "The order is (x, y), not (row, column)."
        )
    return points, kinds


def _checked_masks(mask_inputs: ArrayLike, n_objects: int) -> Tensor:
    logits = torch.as_tensor(np.asarray(mask_inputs, dtype=np.float32))
    if logits.ndim != 4 or logits.shape[:2] != (n_objects, 1):
        raise ValueError(
            f"mask_input must be logits (1, h, w) of the network's output for each of {n_objects} objects, got shape "
            f"{tuple(logits.shape)}. Pass the third value that predict returned."
        )
    return logits
