"""One file that is looked at: its slices, what was drawn on each, what the networks said, and the mask as it was corrected."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam_tune.app.models import Models
from medsam_tune.data.names import file_name
from medsam_tune.data.stored_images import StoredImages
from medsam_tune.errors import DataError
from medsam_tune.inference.asked_slices import answer_slice
from medsam_tune.inference.new_files import NewFile, find_files
from medsam_tune.inference.slice_prompts import NO_PROMPTS, SliceAnswer, SlicePrompts
from medsam_tune.inference.sliced_file import SlicedFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_STEPS = 50


@dataclass(frozen=True)
class SliceState:
    """Hold one slice.

    Attributes:
        prompts: What was drawn.
        answer: What the tuned network said.
        untuned: What the untuned one said.
        mask: (H, W) bool, as the user left it; None where nothing was asked.
        candidates: (K, H, W) bool: all that the network sees, while the user picks.
        corrected: Whether the mask was changed by hand since the answer.
    """

    prompts: SlicePrompts = NO_PROMPTS
    answer: SliceAnswer | None = None
    untuned: SliceAnswer | None = None
    mask: NDArray[np.bool_] | None = None
    candidates: NDArray[np.bool_] | None = None
    corrected: bool = False


NOTHING = SliceState()


class OpenedCase:
    """Hold a file and what became of its slices.

    Args:
        file: An image or a volume.
        models: What is asked about it.

    Attributes:
        slices: The file as the model sees it.
        lock: Held while something is asked or changed: a browser does not wait for one answer before it asks again.

    Raises:
        DataError: If the file cannot be read.
    """

    def __init__(self, file: NewFile, models: Models) -> None:
        self.file, self.models = file, models
        self.slices = SlicedFile(file, models.data)
        self.slices.levels(0)  # What cannot be read is refused now.
        self.lock = threading.RLock()
        self._states: dict[int, SliceState] = {}
        self._steps: dict[int, list[SliceState]] = {}

    @property
    def name(self) -> str:
        """Return the file's name, without folders and ending."""
        return Path(self.file.name).name

    def state(self, position: int) -> SliceState:
        """Return what became of a slice."""
        return self._states.get(position, NOTHING)

    def answered(self) -> list[int]:
        """Return the slices that have a mask, empty ones included."""
        return sorted(position for position, state in self._states.items() if state.mask is not None)

    def differences(self) -> list[str]:
        """Say where the file differs so much from the training's images that the model may fail on it."""
        data = self.models.data
        if data.images is None:
            return []
        by_percentiles = data.intensity is None or data.intensity.rule == "percentile"
        found = StoredImages.of(self.file.path, self.file.format, data.axis)
        return data.images.differences(found, by_percentiles=by_percentiles)

    def box(self, position: int, corners: tuple[float, float, float, float]) -> None:
        """Ask with a box, XYXY in pixels of the slice with the last column and row included, in any order of its corners.

        Raises:
            ValueError: If it does not fit the slice, or the model takes none.
        """
        x1, y1, x2, y2 = corners
        state = replace(self.state(position), candidates=None)
        box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        self._ask(position, replace(state, prompts=state.prompts.with_box(box)))

    def click(self, position: int, x: float, y: float, *, positive: bool) -> None:
        """Ask with one more point, or pick of the candidates what lies there.

        Raises:
            ValueError: If it does not fit the slice, or the model takes none.
        """
        state = self.state(position)
        if state.candidates is not None:
            self._pick(position, state.candidates, int(x), int(y), adds=positive)
            return
        self._ask(position, replace(state, prompts=state.prompts.with_point(x, y, positive=positive)))

    def automatic(self, position: int) -> None:
        """Ask without a prompt: for the object, where the model finds it alone, else for all that it sees.

        Raises:
            ValueError: If the model can do neither.
        """
        if self.models.finds_alone:
            self._ask(position, SliceState(), alone=True)
            return
        found = self.models.candidates(self.slices, position)
        empty = np.zeros(self.slices.levels(position).shape[:2], bool)
        self._keep(position, SliceState(candidates=found, mask=empty))

    def automatic_everywhere(self, progress: Callable[[float], None] = lambda _: None) -> None:
        """Ask a model that finds its object alone about every slice that has no mask yet."""
        for position in range(len(self.slices)):
            if self.state(position).mask is None:
                self.automatic(position)
            progress((position + 1) / len(self.slices))

    def paint(self, position: int, trail: Sequence[tuple[float, float]], *, radius_px: float, adds: bool) -> None:
        """Add to the mask, or take away from it, what lies under a stroke.

        Args:
            position: The slice.
            trail: (x, y) in pixels of the slice; whole numbers and a half are the middles of pixels.
            radius_px: Of the brush.
            adds: Whether the stroke shows the object.
        """
        state = self.state(position)
        height, width = self.slices.levels(position).shape[:2]
        under = _stroke((height, width), trail, radius_px)
        before = np.zeros((height, width), bool) if state.mask is None else state.mask
        mask = before | under if adds else before & ~under
        self._keep(position, replace(state, mask=mask, corrected=True, candidates=None))

    def undo(self, position: int) -> bool:
        """Take back the last step on a slice; tell whether there was one."""
        steps = self._steps.get(position, [])
        if not steps:
            return False
        self._states[position] = steps.pop()
        return True

    def clear(self, position: int) -> None:
        """Forget a slice; it can be undone."""
        self._keep(position, NOTHING)

    def write_mask(self, folder: Path) -> Path:
        """Write the mask in the file's own format, on its voxels, and return its file.

        Raises:
            DataError: If no slice has a mask, or the file cannot be written.
        """
        masks = {position: self.state(position).mask for position in self.answered()}
        if not masks:
            raise DataError(f"{self.name}: no slice has a mask yet. Draw a box or click first.")
        value, name = self.models.value(is_volume=self.slices.header.is_volume)
        kind = np.uint8 if value <= np.iinfo(np.uint8).max else np.uint16
        numbers = {position: np.where(mask, value, 0).astype(kind) for position, mask in masks.items() if mask is not None}
        volume = self.slices.assemble(numbers)
        return self.file.writes.write_labels(folder / file_name(self.name), volume, self.slices.header, {value: name})

    def close(self) -> None:
        """Forget the slices that were encoded."""
        self.models.tuned.forget(self)
        if self.models.untuned is not None:
            self.models.untuned.forget(self)

    def _ask(self, position: int, state: SliceState, *, alone: bool = False) -> None:
        """Answer a slice's prompts by both networks; points that show no object wait for one that does."""
        if not (alone or state.prompts.asks):
            self._keep(position, state)
            return
        prompts, label = None if alone else state.prompts, self.models.label
        tuned = self.models.tuned.get(self, self.slices, position)
        answer = answer_slice(tuned, prompts, label=label, before=state.answer)
        untuned = None
        if self.models.untuned is not None:
            network = self.models.untuned.get(self, self.slices, position)
            untuned = answer_slice(network, prompts, before=state.untuned)
        self._keep(position, replace(state, answer=answer, untuned=untuned, mask=answer.mask, corrected=False))

    def _pick(self, position: int, candidates: NDArray[np.bool_], x: int, y: int, *, adds: bool) -> None:
        """Add the smallest candidate under a click to the mask, or take it away."""
        state = self.state(position)
        there = [candidate for candidate in candidates if candidate[y, x]]
        if not there or state.mask is None:
            return
        chosen = min(there, key=lambda candidate: int(candidate.sum()))
        self._keep(position, replace(state, mask=state.mask | chosen if adds else state.mask & ~chosen))

    def _keep(self, position: int, state: SliceState) -> None:
        steps = self._steps.setdefault(position, [])
        steps.append(self.state(position))
        del steps[:-_MOST_STEPS]
        self._states[position] = state


def open_case(places: Sequence[Path], models: Models) -> OpenedCase:
    """Open one image or volume; several files are one series, or a header with its data, and lie in one folder.

    Raises:
        DataError: If they are none, or several.
    """
    place = places[0] if len(places) == 1 else places[0].parent
    files = find_files(place, models.formats)
    if len(files) > 1:
        names = ", ".join(Path(file.name).name for file in files[:3])
        raise DataError(f"{len(files)} images came at once ({names}, ...). Open one image, one volume, or one series.")
    return OpenedCase(files[0], models)


def _stroke(size: tuple[int, int], trail: Sequence[tuple[float, float]], radius_px: float) -> NDArray[np.bool_]:
    """Return the pixels (H, W) whose middle lies within the radius of a line through the trail's places."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    found = np.zeros(size, bool)
    for (x1, y1), (x2, y2) in zip(trail, [*trail[1:], trail[-1]], strict=True):
        length = (x2 - x1) ** 2 + (y2 - y1) ** 2
        along = 0.0 if length == 0 else (((columns - x1) * (x2 - x1) + (rows - y1) * (y2 - y1)) / length).clip(0, 1)
        found |= np.hypot(columns - x1 - along * (x2 - x1), rows - y1 - along * (y2 - y1)) <= radius_px
    return found
