"""How Huang et al. ask: everything, points, a box, a box with a point.

Paper: Huang et al. 2024, Segment anything model for medical images?, Medical Image Analysis 92:103061, arXiv 2304.14660.
Authors' code: yuhoo0302/Segment-Anything-Model-for-Medical-Images @ b2f0d41.

Differs from the authors' code:
- Labels are made with their points, so that no point has the label of another: there an integer stride gives more points than
  labels, and objects of fewer than five pixels end the program.
- A centre of mass outside the object (a ring, a C) is replaced by the middle of the flattened mask, as the paper says; the code
  clicks outside.
- The mask with the highest Dice to the truth is an oracle and is called so; three rules without the truth stand beside it.
- Objects of 50 pixels and fewer, which the authors drop, are asked for too; ``area`` tells them apart.
- The strategies, displacements and attributes are written from the paper: no code for them was released.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import RecipeError
from medsam_tune.prompts.sampling import Mask, surroundings
from medsam_tune.protocols.questions import Displacement, Point, Question, displaced, object_generator, tight_box

STRATEGIES = {
    "S1": "everything",
    "S2": "one positive point",
    "S3": "five positive points",
    "S4": "five positive and five negative points",
    "S5": "box",
    "S6": "box and one positive point",
}
EVERYTHING = "S1"
_POINTS = 5
DISPLACEMENTS = (Displacement(0, 10), Displacement(10, 20), Displacement(20, 30))


@dataclass(frozen=True)
class HuangSettings:
    """State what is asked.

    Attributes:
        strategies: Names of ``STRATEGIES``.
        displacements: By how much prompts are moved, beside not at all.
        draws: Draws of each displacement.
        points_per_side: Side of the grid of everything mode.

    Raises:
        RecipeError: If a value cannot be.
    """

    strategies: tuple[str, ...] = tuple(STRATEGIES)
    displacements: tuple[Displacement, ...] = DISPLACEMENTS
    draws: int = 3
    points_per_side: int = 32

    def __post_init__(self) -> None:
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        if unknown or not self.strategies:
            raise RecipeError(f"--strategies: expected some of {', '.join(STRATEGIES)}, got {', '.join(unknown) or 'none'}.")
        for name in ("draws", "points_per_side"):
            if (value := getattr(self, name)) < 1:
                raise RecipeError(f"--{name.replace('_', '-')}: expected at least 1, got {value}.")


def questions(mask: Mask, settings: HuangSettings, *, seed: int, image_id: str, object_name: str) -> Iterator[Question]:
    """Yield every question about one object but everything mode, which asks nothing about it.

    Args:
        mask: (H, W), with a pixel.
        settings: What is asked.
        seed: With image and object it decides how prompts move.
        image_id: Name of the image.
        object_name: Name of the object in its image.
    """
    for strategy in settings.strategies:
        if strategy == EVERYTHING:
            continue
        asked = ask(mask, strategy)
        yield asked
        for displacement in settings.displacements:
            for draw in range(settings.draws):
                rng = object_generator(seed, image_id, object_name, f"huang/{strategy}/{displacement}/{draw}")
                yield displaced(asked, mask, displacement, rng, draw)


def ask(mask: Mask, strategy: str) -> Question:
    """Return the prompts of one of the strategies S2 to S6 for a mask (H, W) that shows a pixel.

    Where the object or the background round it has fewer than five pixels there are fewer points, each with its own label.
    """
    if strategy == "S5":
        return Question(strategy, boxes=(tight_box(mask),))
    if strategy == "S6":
        return Question(strategy, points=positive_points(mask, 1), boxes=(tight_box(mask),))
    points = positive_points(mask, 1 if strategy == "S2" else _POINTS)
    return Question(strategy, points=points + (negative_points(mask, _POINTS) if strategy == "S4" else ()))


def positive_points(mask: Mask, count: int) -> tuple[Point, ...]:
    """Return up to ``count`` different points of a mask (H, W): its centre of mass where that is inside, then at equal strides.

    Examples:
        >>> ring = np.ones((3, 3), bool)
        >>> ring[1, 1] = False
        >>> positive_points(ring, 1)
        ((2.0, 1.0, 1),)
    """
    rows, columns = np.nonzero(mask)
    if not rows.size:
        raise ValueError("mask must show at least one pixel, got an empty one. Skip empty objects.")
    y, x = int(np.rint(rows.mean())), int(np.rint(columns.mean()))
    first = [(x, y)] if mask[y, x] else spread_over(mask, 1)
    rest = mask.copy()
    rest[first[0][1], first[0][0]] = False
    return tuple((float(x), float(y), 1) for x, y in (*first, *spread_over(rest, count - 1)))


def negative_points(mask: Mask, count: int) -> tuple[Point, ...]:
    """Return up to ``count`` different background points at equal strides over the object's box at twice its side."""
    return tuple((float(x), float(y), 0) for x, y in spread_over(surroundings(mask) & ~mask, count))


def spread_over(mask: Mask, count: int) -> list[tuple[int, int]]:
    """Return up to ``count`` different pixels (x, y) at equal strides over the flattened mask (H, W), each amid its share.

    Examples:
        >>> spread_over(np.ones((1, 6), bool), 2), spread_over(np.ones((1, 2), bool), 5)
        ([(1, 0), (4, 0)], [(0, 0), (1, 0)])
    """
    rows, columns = np.nonzero(mask)
    count = min(count, len(rows))
    # An integer stride, len // count, would be 0 for few pixels and give too many points for others.
    places = [(2 * number + 1) * len(rows) // (2 * count) for number in range(count)]
    return [(int(columns[place]), int(rows[place])) for place in places]


def dice_matrix(found: Sequence[Mask], true: Sequence[Mask], *, smooth: float = 0.1) -> NDArray[np.float64]:
    """Return the Dice (N, K) of N true masks with K found ones, all (H, W).

    Source: ``cal_matric.py`` of the authors, whose ``smooth`` is 0.1.
    """
    scores = np.zeros((len(true), len(found)))
    sizes = [int(mask.sum()) for mask in found]
    for row, truth in enumerate(true):
        rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
        area = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if rows.size else (slice(0), slice(0))
        inside, size = truth[area], int(truth.sum())
        for column, mask in enumerate(found):
            both = int((inside & mask[area]).sum())
            scores[row, column] = (2 * both + smooth) / (size + sizes[column] + smooth)
    return scores


def best_matches(found: Sequence[Mask], true: Sequence[Mask]) -> list[int | None]:
    """Return for each true mask which found one is most like it, the first of several; None where nothing was found.

    One found mask may serve several true ones, as in the authors' code. It is an oracle: it knows the truth.
    """
    if not found:
        return [None] * len(true)
    return [int(place) for place in dice_matrix(found, true).argmax(axis=1)]
