"""One box or click on one slice of a volume, followed up and down: each mask's box asks about the next slice.

SAM knows no third axis. The mask of a slice gives the box of the next: it moves on as it moved between the last two slices
and grows by a margin. SAM finds something in every box, so where the object ends must be told by rule: what the network thinks
of its own mask, an area that collapses or explodes, or the slices that the user names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.slice_prompts import NO_PROMPTS, SliceAnswer, SlicePrompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsam_tune.segmenters.base import Segmenter

Ask = Callable[[int, SlicePrompts], SliceAnswer]
Box = tuple[float, float, float, float]
_ALL_NEIGHBOURS_3D = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True)
class PropagationRules:
    """Say how the box travels and where it stops.

    Attributes:
        slices: First and last slice that may be asked about, both included; None: the whole volume.
        least_iou: Stop where the predicted IoU is below; with 0, and in networks without such a score, nothing stops by it.
        shrink: Stop where the area is below this part of the slice before.
        grow: Stop where the area is above this multiple of the slice before.
        margin: By what part of its sides a box grows on each side for the next slice; a pixel at least.
        connected: Keep only what is connected in 3-D (26 neighbours) with the mask of the first slice.

    Raises:
        RecipeError: If a number is none that can be meant.
    """

    slices: tuple[int, int] | None = None
    least_iou: float = 0.5
    shrink: float = 0.3
    grow: float = 3.0
    margin: float = 0.05
    connected: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.least_iou <= 1:
            raise RecipeError(f"--least-iou: expected a number from 0 (never stop by it) to 1, got {self.least_iou}.")
        if not (0 <= self.shrink < 1 < self.grow) or not 0 <= self.margin <= 1:
            raise RecipeError(
                f"propagation: expected 0 <= shrink < 1 < grow and 0 <= margin <= 1, got shrink {self.shrink}, grow "
                f"{self.grow}, margin {self.margin}."
            )
        if self.slices is not None and not 0 <= self.slices[0] <= self.slices[1]:
            raise RecipeError(f"--slices: expected FIRST:LAST with 0 <= FIRST <= LAST, got {self.slices[0]}:{self.slices[1]}.")


@dataclass(frozen=True)
class VolumePrompt:
    """Hold what was drawn on one slice of a volume, and how it is followed.

    Attributes:
        position: The slice.
        prompts: A box, clicks, or both.
        rules: Where it stops.
    """

    position: int
    prompts: SlicePrompts
    rules: PropagationRules = PropagationRules()


@dataclass(frozen=True)
class Step:
    """Hold one slice that was asked about: with which prompts, and what came back."""

    position: int
    prompts: SlicePrompts
    answer: SliceAnswer


@dataclass(frozen=True)
class Propagated:
    """Hold the slices of one object.

    Attributes:
        steps: The slices that hold it, ascending.
        below: Why it was not followed further towards slice 0.
        above: Why it was not followed further towards the last slice.
    """

    steps: tuple[Step, ...]
    below: str
    above: str

    @property
    def masks(self) -> dict[int, NDArray[np.bool_]]:
        """Return the mask (H, W) of each slice."""
        return {step.position: step.answer.mask for step in self.steps}

    def said(self) -> str:
        """Return in one line where the object was found and why no further."""
        first, last = self.steps[0].position, self.steps[-1].position
        return f"slices {first} to {last}; not below {first}: {self.below}; not above {last}: {self.above}"


def propagate(ask: Ask, n_slices: int, first: Step, rules: PropagationRules = PropagationRules()) -> Propagated:
    """Follow the object of one slice up and down.

    Args:
        ask: Answers the prompts on a slice.
        n_slices: Of the volume.
        first: The slice that was drawn on, answered.
        rules: How the box travels and where it stops.

    Raises:
        DataError: If slice or range lie outside the volume, or the mask of the first slice is empty.
    """
    check_range(first.position, n_slices, rules)
    if not first.answer.mask.any():
        raise DataError(
            f"the mask of slice {first.position} is empty, so there is nothing to follow. Draw the box closer round the "
            "object, or click on another place."
        )
    low, high = rules.slices or (0, n_slices - 1)
    why = "the volume ends" if rules.slices is None else "the range of slices ends"
    down, below = _follow(ask, first, range(first.position - 1, low - 1, -1), rules)
    up, above = _follow(ask, first, range(first.position + 1, high + 1), rules)
    steps = (*reversed(down), first, *up)
    return Propagated(_connected(steps, first.position) if rules.connected else steps, below or why, above or why)


def described(propagated: Propagated, prompt: VolumePrompt) -> dict[str, Any]:
    """Return what is left beside the mask: what was drawn, the rules, each slice with its box, and why it ended."""
    return {
        "prompt": {"slice": prompt.position, **asdict(prompt.prompts)},
        "rules": asdict(prompt.rules),
        "below": propagated.below,
        "above": propagated.above,
        "slices": [
            {
                "slice": step.position,
                "box": step.prompts.box,
                "pixels": int(step.answer.mask.sum()),
                "predicted_iou": step.answer.predicted_iou,
            }
            for step in propagated.steps
        ],
    }


def check_propagation(segmenter: Segmenter) -> None:
    """Refuse a model that cannot be asked with the box of a mask.

    Raises:
        RecipeError: Saying what to do instead.
    """
    kind = type(segmenter).__name__
    if segmenter.classes():
        raise RecipeError(
            f"--box-on-slice: {kind} finds its classes {', '.join(segmenter.classes())} on every slice and follows no object. "
            "Leave the prompt out."
        )
    if not segmenter.takes_prompts():
        raise RecipeError(f"--box-on-slice: {kind} takes no prompt; it finds its object on every slice. Leave it out.")
    if segmenter.reads_names():
        raise RecipeError(f"--box-on-slice: {kind} is asked by name. Give --boxes FILE with the column label.")


def check_range(position: int, n_slices: int, rules: PropagationRules) -> None:
    """Refuse a slice or a range that the volume does not have.

    Raises:
        DataError: Naming the slices that there are.
    """
    if not 0 <= position < n_slices:
        raise DataError(f"has the slices 0 to {n_slices - 1}, but the prompt is on slice {position}. Name one of them.")
    if rules.slices is None:
        return
    low, high = rules.slices
    if high >= n_slices:
        raise DataError(f"has the slices 0 to {n_slices - 1}, but --slices names {low} to {high}. Name slices that it has.")
    if not low <= position <= high:
        raise DataError(f"the prompt is on slice {position}, outside of --slices {low}:{high}. Let the range hold its slice.")


def next_box(mask: NDArray[np.bool_], before: NDArray[np.bool_] | None, margin: float) -> Box:
    """Return the box (x1, y1, x2, y2) that asks about the next slice; the last column and row belong to it.

    It is the box of the mask's largest part, so that a speck elsewhere does not widen it; moved on as it moved since the slice
    before, by half its sides at most; grown; cut off at the image's border.

    Args:
        mask: (H, W), not empty.
        before: The mask of the slice before, or None.
        margin: Part of its sides by which it grows on each side; a pixel at least.

    Examples:
        >>> mask = np.zeros((20, 20), bool)
        >>> mask[5:15, 4:14] = True
        >>> next_box(mask, None, 0.1)
        (3.0, 4.0, 14.0, 15.0)
        >>> next_box(mask, np.roll(mask, -2, axis=1), 0.1)
        (5.0, 4.0, 16.0, 15.0)
    """
    x1, y1, x2, y2 = _box(mask)
    width, height = x2 - x1 + 1, y2 - y1 + 1
    dx = dy = 0.0
    if before is not None:
        u1, v1, u2, v2 = _box(before)
        dx = float(np.clip((x1 + x2 - u1 - u2) / 2, -width / 2, width / 2))
        dy = float(np.clip((y1 + y2 - v1 - v2) / 2, -height / 2, height / 2))
    wider, higher = max(1.0, margin * width), max(1.0, margin * height)
    right, bottom = mask.shape[1] - 1, mask.shape[0] - 1
    return (
        float(np.clip(x1 + dx - wider, 0, right)),
        float(np.clip(y1 + dy - higher, 0, bottom)),
        float(np.clip(x2 + dx + wider, 0, right)),
        float(np.clip(y2 + dy + higher, 0, bottom)),
    )


def keep_connected(masks: Mapping[int, NDArray[np.bool_]], position: int) -> dict[int, NDArray[np.bool_]]:
    """Return the masks (H, W) of neighbouring slices without what is not connected in 3-D with the mask at ``position``."""
    positions = sorted(masks)
    numbers, _ = ndimage.label(np.stack([masks[each] for each in positions]), structure=_ALL_NEIGHBOURS_3D)
    seeds = np.unique(numbers[positions.index(position)])
    kept = np.isin(numbers, seeds[seeds > 0])
    return dict(zip(positions, kept, strict=True))


def _follow(ask: Ask, first: Step, positions: range, rules: PropagationRules) -> tuple[list[Step], str]:
    """Return the slices in one direction, and why it ended; empty where the positions did."""
    found: list[Step] = []
    last, before = first.answer.mask, None
    for position in positions:
        prompts = NO_PROMPTS.with_box(next_box(last, before, rules.margin))
        answer = ask(position, prompts)
        if why := _stops(answer, last, rules):
            return found, why
        found.append(Step(position, prompts, answer))
        last, before = answer.mask, last
    return found, ""


def _stops(answer: SliceAnswer, last: NDArray[np.bool_], rules: PropagationRules) -> str:
    area, before = int(answer.mask.sum()), int(last.sum())
    if not area:
        return "the next mask is empty"
    if answer.predicted_iou is not None and rules.least_iou > 0 and answer.predicted_iou < rules.least_iou:
        return f"the predicted IoU falls to {answer.predicted_iou:.2f}, below {rules.least_iou:g}"
    if area < rules.shrink * before:
        return f"the area falls from {before} to {area} pixels, below {rules.shrink:g} of it"
    if area > rules.grow * before:
        return f"the area grows from {before} to {area} pixels, above {rules.grow:g} times as many"
    return ""


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the corners of the largest part, the last column and row included."""
    numbers, count = ndimage.label(mask, structure=np.ones((3, 3), bool))
    if count > 1:
        sizes = np.bincount(numbers.ravel())
        sizes[0] = 0
        numbers = numbers == sizes.argmax()
    rows, columns = ndimage.find_objects(numbers.astype(np.int8))[0]
    return columns.start, rows.start, columns.stop - 1, rows.stop - 1


def _connected(steps: tuple[Step, ...], position: int) -> tuple[Step, ...]:
    kept = keep_connected({step.position: step.answer.mask for step in steps}, position)
    return tuple(_only(steps, kept))


def _only(steps: tuple[Step, ...], kept: Mapping[int, NDArray[np.bool_]]) -> Iterator[Step]:
    for step in steps:
        mask = kept[step.position]
        if mask.any():
            answer = SliceAnswer(mask, step.answer.predicted_iou, step.answer.low_res_masks)
            yield Step(step.position, step.prompts, answer)
