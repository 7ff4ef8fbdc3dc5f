"""How Mazurowski et al. ask: five ways to place points and boxes on the pieces of a class, and clicks on the error.

Paper: Mazurowski et al. 2023, Segment anything model for medical image analysis: an experimental study, Medical Image Analysis
89:102918, arXiv 2304.10517. Authors' code: mazurowski-lab/segment-anything-medical-evaluation @ 2775b73.

Differs from the authors' code:
- A click is labelled by the class that is asked for. There it is labelled by the map of all classes, so that a pixel taken too
  much on another class is sent as foreground.
- Beside their error map, in which pixels missed and pixels taken too much touch (``joined``), clicks may go to the thicker of
  the two kinds (``separate``), as RITM's do (Sofiiuk et al. 2022, arXiv 2102.06583).
- Distances are exact, not OpenCV's 5 x 5 approximation; ties are drawn by seed, image and object.
- The image is scaled by the data source's rule: there each slice is divided by its own maximum, which may be 0.
- Images without the class are counted, not passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import RecipeError
from medsam_tune.prompts.sampling import Mask, point_inside
from medsam_tune.protocols.questions import Point, Question, tight_box

MODES = {
    "mode 1": "a point in the largest piece",
    "mode 2": "a point in each of the three largest pieces",
    "mode 3": "the box of the largest piece",
    "mode 4": "a box for each of the three largest pieces",
    "mode 5": "one box round everything",
}
MOST_PIECES = 3
ErrorMap = Literal["joined", "separate"]
NOC_THRESHOLDS = (0.85, 0.90)


@dataclass(frozen=True)
class MazurowskiSettings:
    """State what is asked.

    Attributes:
        modes: Names of ``MODES``.
        clicks: Clicks on the error at most; 0 leaves them out.
        error_maps: Where the next click goes.

    Raises:
        RecipeError: If a value cannot be.
    """

    modes: tuple[str, ...] = tuple(MODES)
    clicks: int = 9
    error_maps: tuple[ErrorMap, ...] = ("joined", "separate")

    def __post_init__(self) -> None:
        if unknown := [name for name in self.modes if name not in MODES]:
            raise RecipeError(f"--modes: expected numbers from 1 to {len(MODES)}, got {', '.join(unknown)}.")
        if self.clicks < 0:
            raise RecipeError(f"--clicks: expected 0 or more, got {self.clicks}.")


def pieces_of(mask: Mask) -> list[Mask]:
    """Return the 8-connected pieces of a mask (H, W), largest first, the one that begins higher up first among equals."""
    from scipy import ndimage

    numbered, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)[1:]
    return [numbered == place + 1 for place in np.argsort(-sizes, kind="stable")]


def ask(mask: Mask, mode: str, rng: np.random.Generator) -> Question:
    """Return the prompts of one mode for the mask (H, W) of a class that shows a pixel.

    Args:
        mask: All pieces of the class.
        mode: A name of ``MODES``.
        rng: Draws among pixels that are equally far from the background.
    """
    pieces = pieces_of(mask)[:MOST_PIECES]
    if mode in ("mode 1", "mode 2"):
        chosen = pieces[:1] if mode == "mode 1" else pieces
        return Question(mode, points=tuple(middle(piece, rng) for piece in chosen))
    boxes = {"mode 3": pieces[:1], "mode 4": pieces, "mode 5": [mask]}[mode]
    return Question(mode, boxes=tuple(tight_box(piece) for piece in boxes))


def middle(mask: Mask, rng: np.random.Generator) -> Point:
    """Return the foreground point of a mask (H, W) that is farthest from the background, the image's border included."""
    x, y = point_inside(mask, "distance", rng)
    return float(x), float(y), 1


def next_click(predicted: Mask, truth: Mask, rng: np.random.Generator, *, error_map: ErrorMap) -> Point | None:
    """Return the next click on a prediction, labelled by what ``truth`` holds there; None where nothing is wrong.

    Args:
        predicted: (H, W).
        truth: (H, W), of the class that is asked for alone.
        rng: Of this object and click.
        error_map: ``joined``: the pixel deepest inside all that is wrong; ``separate``: deepest inside what was missed or
            inside what was taken too much, whichever is deeper there.

    Examples:
        >>> next_click(np.zeros((3, 3), bool), np.ones((3, 3), bool), np.random.default_rng(0), error_map="joined")
        (1.0, 1.0, 1)
    """
    wrong = predicted ^ truth
    if not wrong.any():
        return None
    if error_map == "separate":
        missed, added = truth & ~predicted, predicted & ~truth
        wrong = missed if depth(missed) >= depth(added) else added
    x, y = point_inside(wrong, "distance", rng)
    return float(x), float(y), int(truth[y, x])


def depth(mask: Mask) -> float:
    """Return how far the innermost pixel of a mask (H, W) is from the background, the image's border included; 0 if empty."""
    return float(depths(mask).max(initial=0.0))


def depths(mask: Mask) -> NDArray[np.float64]:
    """Return how far each pixel of a mask (H, W) is from the background, the image's border included."""
    from scipy import ndimage

    distances: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return distances


def clicks_needed(ious: list[float], threshold: float) -> tuple[int, bool]:
    """Return after how many clicks an IoU reaches a threshold, and whether it does; all of them where it does not.

    Examples:
        >>> clicks_needed([0.5, 0.86, 0.7], 0.85), clicks_needed([0.5, 0.6], 0.85)
        ((2, True), (2, False))
    """
    reached = next((number for number, iou in enumerate(ious, start=1) if iou >= threshold), None)
    return (len(ious), False) if reached is None else (reached, True)
