"""What one client asks about: its image, the object that it draws prompts for, and the mask as far as it was answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam_tune.data.slices import AXIS_NUMBER, Axis, put_slice, slice_place
from medsam_tune.inference.asked_slices import EncodedSlices, answer_slice
from medsam_tune.inference.held_image import held_image
from medsam_tune.inference.propagation import PropagationRules, Step, propagate
from medsam_tune.inference.slice_prompts import NO_PROMPTS, SliceAnswer, SlicePrompts
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.serve.errors import Refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Change:
    """Hold a part of the mask that is new: where it lies, as half-open ranges along the client's axes, and its values."""

    ranges: tuple[tuple[int, int], ...]
    values: NDArray[np.uint8]


@dataclass(frozen=True)
class _Step:
    """Hold what one interaction changed, so that it can be taken back: of a followed object, the whole mask."""

    position: int
    prompts: SlicePrompts
    answer: SliceAnswer | None
    mask: NDArray[np.uint8]
    followed: frozenset[int] = frozenset()


class AskedVolume:
    """Hold the image of one client and one object on it.

    Without rules the object's slices are independent of each other. With them it is followed from each slice that was drawn on,
    up to halfway to the next one that was.

    Args:
        encoded: The model, and the slices that were encoded.
        data: What it was trained on: the axis and the rule of the grey levels.
        orientation: Where the axes of the client's arrays run.
        label: As for ``answer_slice``.
        rules: How the object is followed to the neighbouring slices; None leaves them as they are.
    """

    def __init__(
        self,
        encoded: EncodedSlices,
        data: TrainedData,
        *,
        orientation: str,
        label: str | None = None,
        rules: PropagationRules | None = None,
    ) -> None:
        self._encoded, self._data, self._orientation, self._label = encoded, data, orientation, label
        self._rules = rules
        self._slices: SlicedFile | None = None
        self._mask: NDArray[np.uint8] = np.zeros((0, 0, 0), np.uint8)
        self._prompts: dict[int, SlicePrompts] = {}
        self._answers: dict[int, SliceAnswer] = {}
        self._open: set[int] = set()
        self._followed: set[int] = set()
        self._last: _Step | None = None

    def set_image(self, image: NDArray[Any], spacing_mm: Sequence[float] | None) -> tuple[int, ...]:
        """Take a new image (C, D, H, W) with C = 1 or 3, and forget the one before; return its shape.

        Raises:
            Refusal: If the number of axes or channels does not fit.
            DataError: If the values do not fit the rule of the model.
        """
        if image.ndim != 4 or image.shape[0] not in (1, 3):
            raise Refusal(400, f"the image must have shape (C, X, Y, Z) with 1 or 3 channels, got {image.shape}.")
        values = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)
        slices = SlicedFile(
            held_image(values, orientation=self._orientation, spacing_mm=(1.0, 1.0, 1.0) if spacing_mm is None else spacing_mm),
            self._data,
        )
        slices.levels(0)  # Values that do not fit the rule are refused now, not at the first prompt.
        self.close()
        self._slices = slices
        self._mask = np.zeros(values.shape[:3], np.uint8)
        return image.shape

    def set_mask(self, shape: Sequence[int]) -> None:
        """Begin an empty mask.

        Raises:
            Refusal: If it has another shape than the image.
        """
        self._shown()
        if tuple(shape) != self._mask.shape:
            raise Refusal(400, f"the target buffer must have the image's shape {self._mask.shape}, got {tuple(shape)}.")
        self._mask[...] = 0

    def take_mask(self, mask: NDArray[Any]) -> None:
        """Go on from a mask that the client has; prompts on a slice replace what it shows there.

        Raises:
            Refusal: If it has another shape than the image.
        """
        self.set_mask(mask.shape)
        self._forget_object()
        self._mask[...] = mask != 0

    def add_point(self, voxel: Sequence[float], *, positive: bool) -> None:
        """Add a click.

        Args:
            voxel: Along the client's axes; whole numbers are the middles of voxels.
            positive: Whether the object is there.

        Raises:
            Refusal: If it lies outside the image.
        """
        if len(voxel) != 3:
            raise Refusal(400, f"a point needs 3 coordinates, got {len(voxel)}.")
        whole = [_nearest(value) for value in voxel]
        if any(not 0 <= index < length for index, length in zip(whole, self._shape, strict=True)):
            raise Refusal(400, f"the point {whole} lies outside the image of {self._shape} voxels.")
        position, x, y = self._place(whole)
        self._add(position, self._prompts.get(position, NO_PROMPTS).with_point(x, y, positive=positive))

    def add_box(self, ranges: Sequence[Sequence[float]], *, positive: bool) -> None:
        """Draw a box on one slice; it replaces the one before on that slice.

        Args:
            ranges: Half-open, along the client's axes; cut off at the image's border.
            positive: Whether the object is there; SAM has no boxes of what is not the object.

        Raises:
            Refusal: If it is negative, empty, or does not lie on one slice of the model's axis.
        """
        if len(ranges) != 3 or any(len(each) != 2 for each in ranges):
            raise Refusal(400, "a box needs 3 pairs (first, end).")
        if not positive:
            raise Refusal(400, "SAM reads no negative boxes. Use a negative point.")
        low = [max(_nearest(first), 0) for first, _ in ranges]
        last = [min(_nearest(end), length) - 1 for (_, end), length in zip(ranges, self._shape, strict=True)]
        if any(first > end for first, end in zip(low, last, strict=True)):
            raise Refusal(400, f"the box is empty or lies outside the image of {self._shape} voxels.")
        (position, x1, y1), (other, x2, y2) = self._place(low), self._place(last)
        if position != other:
            raise Refusal(400, self._wrong_axis(last[self._sliced] - low[self._sliced] + 1))
        box = (float(min(x1, x2)), float(min(y1, y2)), float(max(x1, x2)), float(max(y1, y2)))
        self._add(position, self._prompts.get(position, NO_PROMPTS).with_box(box))

    def answer(self, *, everything: bool = False) -> Change | None:
        """Answer what was drawn since the last answer, and return the part of the mask that holds it, or None.

        Args:
            everything: Also ask a model that needs no prompts about each slice, where nothing was drawn at all.

        Raises:
            Refusal: If there is no image.
        """
        slices = self._shown()
        segmenter = self._encoded.predictor.segmenter
        asked = sorted(position for position in self._open if self._prompts[position].asks)
        self._open.clear()
        if everything and not self._prompts and segmenter.asks_user() is None:
            asked = list(range(len(slices)))
        for position in asked:
            predictor = self._encoded.get(self, slices, position)
            prompts = self._prompts.get(position)
            answer = answer_slice(predictor, prompts, label=self._label, before=self._answers.get(position))
            self._answers[position] = answer
            self._write(position, self._stored(answer.mask))
            self._followed.discard(position)
        return self._change([*asked, *(each for position in asked for each in self._follow(position))])

    def undo(self) -> Change | None:
        """Take back the last interaction, one step and no further; return what the mask shows there again, or None."""
        step, self._last = self._last, None
        if step is None:
            return None
        self._open.discard(step.position)
        self._prompts[step.position] = step.prompts
        self._answers.pop(step.position, None)
        if step.prompts == NO_PROMPTS:
            del self._prompts[step.position]
        if step.answer is not None:
            self._answers[step.position] = step.answer
        if self._rules is None:
            self._write(step.position, step.mask)
            return self._change([step.position])
        self._mask[...] = step.mask
        self._followed = set(step.followed)
        return self._change(range(len(self._shown())))

    def reset(self) -> None:
        """Forget the object: its prompts and its mask."""
        self._forget_object()
        self._mask[...] = 0

    def close(self) -> None:
        """Forget the image and all that was computed of it."""
        self._encoded.forget(self)
        self._slices, self._mask = None, np.zeros((0, 0, 0), np.uint8)
        self._forget_object()

    def _forget_object(self) -> None:
        self._last = None
        for held in (self._prompts, self._answers, self._open, self._followed):
            held.clear()

    def _add(self, position: int, prompts: SlicePrompts) -> None:
        before = self._prompts.get(position, NO_PROMPTS)
        mask = (self._mask if self._rules is not None else self._mask[self._cut(position)]).copy()
        self._last = _Step(position, before, self._answers.get(position), mask, frozenset(self._followed))
        self._prompts[position] = prompts
        self._open.add(position)

    def _follow(self, position: int) -> list[int]:
        """Follow the object from a slice that was answered; return the other slices that changed."""
        first = self._answers[position]
        if self._rules is None or position not in self._prompts or not first.mask.any():
            return []
        slices = self._shown()
        low, high = self._reach(position)
        found = propagate(
            lambda where, prompts: answer_slice(self._encoded.get(self, slices, where), prompts, label=self._label),
            len(slices),
            Step(position, self._prompts[position], first),
            replace(self._rules, slices=(low, high)),
        )
        old = {each for each in self._followed if low <= each <= high}
        new = {where: mask for where, mask in found.masks.items() if where != position}
        for where in old - new.keys():
            self._mask[self._cut(where)] = 0
        for where, mask in new.items():
            self._write(where, self._stored(mask))
        self._followed = (self._followed - old) | new.keys()
        return sorted(old | new.keys())

    def _reach(self, position: int) -> tuple[int, int]:
        """Return first and last slice of a prompt's own: halfway to the next slices that were drawn on."""
        others = [each for each, prompts in self._prompts.items() if prompts.asks and each != position]
        below = max((each for each in others if each < position), default=None)
        above = min((each for each in others if each > position), default=None)
        low = 0 if below is None else (below + position) // 2 + 1
        high = len(self._shown()) - 1 if above is None else (position + above) // 2
        # Halfway down from two neighbours is the prompt's own slice.
        return min(low, position), max(high, position)

    def _shown(self) -> SlicedFile:
        if self._slices is None:
            raise Refusal(400, "there is no image yet. Send one first.")
        return self._slices

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self._shown().header.stored_shape

    @property
    def _axis(self) -> Axis:
        return self._data.axis if self._shown().header.is_volume else "axial"

    @property
    def _turn(self) -> NDArray[np.float64]:
        """Return the matrix (4, 4) that brings an index of the client's array to one of the volume in RAS order."""
        header = self._shown().header
        turn: NDArray[np.float64] = np.rint(np.linalg.inv(header.ras_affine) @ header.affine)
        return turn

    @property
    def _sliced(self) -> int:
        """Return the client's axis along which the model cuts."""
        return int(np.flatnonzero(self._turn[AXIS_NUMBER[self._axis], :3])[0])

    def _place(self, voxel: Sequence[int]) -> tuple[int, int, int]:
        """Return position, x and y of a voxel on the slice that shows it."""
        x, y, z = (int(index) for index in (self._turn @ [*voxel, 1])[:3])
        return slice_place(self._shown().header.shape, self._axis, (x, y, z))

    def _cut(self, position: int) -> tuple[slice, ...]:
        """Return the part of the client's array that holds a slice."""
        turned = np.zeros(4)
        turned[3], turned[AXIS_NUMBER[self._axis]] = 1, position
        index = int((np.linalg.inv(self._turn) @ turned)[self._sliced].round())
        return tuple(slice(index, index + 1) if axis == self._sliced else slice(None) for axis in range(3))

    def _stored(self, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return a mask (H, W), turned for display, as the client's array one voxel thick."""
        header = self._shown().header
        shape = [1 if axis == AXIS_NUMBER[self._axis] else length for axis, length in enumerate(header.shape)]
        thin = np.zeros(shape, np.uint8)
        put_slice(thin, self._axis, 0, mask.astype(np.uint8))
        stored: NDArray[np.uint8] = header.to_stored(thin)
        return stored

    def _write(self, position: int, values: NDArray[np.uint8]) -> None:
        self._mask[self._cut(position)] = values

    def _change(self, positions: Sequence[int]) -> Change | None:
        """Return the smallest part of the mask that holds all of these slices."""
        if not positions:
            return None
        cuts = [self._cut(position)[self._sliced] for position in positions]
        ranges = [(0, length) for length in self._mask.shape]
        ranges[self._sliced] = (min(cut.start for cut in cuts), max(cut.stop for cut in cuts))
        part = self._mask[tuple(slice(*each) for each in ranges)]
        return Change(tuple(ranges), np.ascontiguousarray(part))

    def _wrong_axis(self, thickness: int) -> str:
        return (
            f"this model looks at {self._axis} slices, which lie along axis {self._sliced} of the image; the box is "
            f"{thickness} voxels thick there. Draw it in that view, one voxel thick."
        )


def _nearest(value: float) -> int:
    """Return the nearest whole number; napari's coordinates are fractions, and the middle of a voxel is whole."""
    return int(np.floor(value + 0.5))
