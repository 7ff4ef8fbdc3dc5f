"""What one object is asked for: points and boxes, drawn from its true mask by a function of seed, image and object alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import RecipeError
from medsam_tune.prompts.sampling import Mask

Point = tuple[float, float, int]
"""(x, y) in pixels of the original image, and 1 for foreground or 0 for background."""
Box = tuple[float, float, float, float]
"""XYXY in pixels of the original image, the last column and row included."""


@dataclass(frozen=True)
class Question:
    """Hold the prompts of one way to ask for one object.

    Attributes:
        strategy: Its name in the protocol, such as ``S2`` or ``mode 4``.
        points: All sent together.
        boxes: With one, the points go with it; several are asked one by one and their masks joined candidate by candidate.
        displacement: By how much the prompts were moved, such as ``10-20 px``; empty where they were not.
        draw: Which of several draws it is.
        level: Where on the axis of a sweep it stands; None elsewhere.
    """

    strategy: str
    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()
    displacement: str = ""
    draw: int = 0
    level: float | None = None


@dataclass(frozen=True)
class Displacement:
    """State how far prompts are moved.

    Attributes:
        low: Shortest move.
        high: Longest move.
        unit: ``px`` of the original image, or ``%`` of the longer side of the object's box.
    """

    low: float
    high: float
    unit: Literal["px", "%"] = "px"

    @classmethod
    def parse(cls, text: str) -> Displacement:
        """Read ``10-20px`` or ``5-10%``.

        Raises:
            RecipeError: If it is neither.

        Examples:
            >>> Displacement.parse("10-20px"), Displacement.parse("5-10%").unit
            (Displacement(low=10.0, high=20.0, unit='px'), '%')
        """
        words = text.replace(" ", "").removesuffix("px")
        low, dash, high = words.removesuffix("%").partition("-")
        try:
            found = cls(float(low), float(high), "%" if words.endswith("%") else "px")
        except ValueError:
            found = None
        if found is None or not dash or not 0 <= found.low <= found.high < np.inf:
            raise RecipeError(f"--displacements: expected a range such as 10-20px or 5-10%, got {text!r}.")
        return found

    def __str__(self) -> str:
        return f"{self.low:g}-{self.high:g} {self.unit}"

    def move(self, mask: Mask, rng: np.random.Generator) -> tuple[float, float]:
        """Draw (dx, dy): a length uniform in the range, a direction uniform over the circle."""
        scale = 1.0 if self.unit == "px" else max(box_sides(tight_box(mask))) / 100
        length, angle = scale * rng.uniform(self.low, self.high), rng.uniform(0, 2 * np.pi)
        return float(length * np.cos(angle)), float(length * np.sin(angle))


def object_generator(seed: int, image_id: str, object_name: str, purpose: str) -> np.random.Generator:
    """Return the random generator of one object for one purpose; nothing else that is asked changes what it draws."""
    name = f"{purpose}/{seed}/{image_id}/{object_name}".encode(errors="surrogatepass")
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big"))


def tight_box(mask: Mask) -> Box:
    """Return the box of a mask (H, W).

    Raises:
        ValueError: If the mask is empty.

    Examples:
        >>> tight_box(np.array([[False, True, True], [False, False, True]]))
        (1.0, 0.0, 2.0, 1.0)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("mask must show at least one pixel, got an empty one. Skip empty objects.")
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def box_sides(box: Box) -> tuple[float, float]:
    """Return the width and height of a box in pixels, its last column and row included."""
    return box[2] - box[0] + 1, box[3] - box[1] + 1


def displaced(question: Question, mask: Mask, displacement: Displacement, rng: np.random.Generator, draw: int) -> Question:
    """Return a question whose points and boxes are each moved by their own draw; what leaves the image stops at its border.

    A point keeps its label wherever it comes to lie: the user who misses does not know. A box moves as a whole.

    Args:
        question: As it would be asked.
        mask: (H, W), the object.
        displacement: How far.
        rng: Of this object, question and draw.
        draw: Its number.
    """
    height, width = mask.shape
    points = []
    for x, y, label in question.points:
        dx, dy = displacement.move(mask, rng)
        points.append((_inside(x + dx, width), _inside(y + dy, height), label))
    boxes = []
    for x1, y1, x2, y2 in question.boxes:
        dx, dy = displacement.move(mask, rng)
        columns, rows = (_inside(x1 + dx, width), _inside(x2 + dx, width)), (_inside(y1 + dy, height), _inside(y2 + dy, height))
        boxes.append((columns[0], rows[0], columns[1], rows[1]))
    return replace(question, points=tuple(points), boxes=tuple(boxes), displacement=str(displacement), draw=draw)


def jittered(box: Box, share: float, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """Return a box of which every side is moved by exactly ``share`` of the box, out or in at random, inside the image (H, W).

    No side passes the middle of the box.
    """
    width, height = box_sides(box)
    moves: NDArray[np.float64] = share * np.array([width, height] * 2) * rng.choice((-1.0, 1.0), size=4)
    moves = np.maximum(moves, -np.array([width - 1, height - 1] * 2) / 2)
    x1, y1, x2, y2 = (np.array(box) + np.array([-1, -1, 1, 1]) * moves).tolist()
    return _inside(x1, size[1]), _inside(y1, size[0]), _inside(x2, size[1]), _inside(y2, size[0])


def _inside(position: float, length: int) -> float:
    return float(min(max(position, 0.0), length - 1.0))
