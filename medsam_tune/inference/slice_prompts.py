"""What somebody draws on one slice, and what a model says of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SlicePrompts:
    """Hold what was drawn for one object on one slice, in pixels of the slice.

    Attributes:
        points: (x, y, label) each; label 1 is the object, 0 is not.
        box: XYXY, the last column and row included.
    """

    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None

    @property
    def asks(self) -> bool:
        """Return whether they show an object: points that are not the object show none."""
        return self.box is not None or any(label == 1 for *_, label in self.points)

    def with_point(self, x: float, y: float, *, positive: bool) -> SlicePrompts:
        """Return them with one more point."""
        return replace(self, points=(*self.points, (x, y, int(positive))))

    def with_box(self, box: tuple[float, float, float, float]) -> SlicePrompts:
        """Return them with this box in place of any before: SAM reads one box an object."""
        return replace(self, box=box)

    def arguments(self) -> dict[str, Any]:
        """Return them as ``Predictor.predict`` takes them."""
        found: dict[str, Any] = {} if self.box is None else {"box": self.box}
        if self.points:
            found |= {"point_coords": [point[:2] for point in self.points], "point_labels": [p[2] for p in self.points]}
        return found


NO_PROMPTS = SlicePrompts()


@dataclass(frozen=True)
class SliceAnswer:
    """Hold what a model said of one slice.

    Attributes:
        mask: (H, W) bool.
        predicted_iou: Its own score, where the network has one.
        low_res_masks: Logits (1, h, w), which a model that was trained with clicks is shown at the next one.
    """

    mask: NDArray[np.bool_]
    predicted_iou: float | None = None
    low_res_masks: NDArray[np.float32] | None = None
