"""Ask a model about one file: every slice of a volume, or a single image, answered on the file's own voxels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from medsam_tune.data.formats.coco_writing import FoundObject
from medsam_tune.data.intensity import AS_STORED
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.asked_slices import answer_slice
from medsam_tune.inference.case_figures import CaseFigure, Said, case_figure
from medsam_tune.inference.label_values import Meaning, class_values, meaning_of, meaning_of_whole, whole_value
from medsam_tune.inference.new_files import NewFile
from medsam_tune.inference.new_images import image_tensor
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.prompt_files import DrawnObject
from medsam_tune.inference.propagation import Propagated, Step, VolumePrompt, check_range, propagate
from medsam_tune.inference.slice_context import context_of
from medsam_tune.inference.slice_prompts import SliceAnswer, SlicePrompts
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.inference.uncertainty import uncertainty_of
from medsam_tune.types import AutomaticMasks

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Objects of one decoder pass; each holds a few megabytes, and its mask at the image's size as float32.
_OBJECTS_AT_ONCE = 16


@dataclass(frozen=True)
class Asking:
    """Hold what is the same for every file.

    Attributes:
        predictor: The model.
        data: What it was trained on.
        values: The value of each label that was drawn; empty where objects have no label.
        find_priors: Finds the automatic masks of an image (3, H, W) in 0..255, for a model that fuses them.
        uncertainty: Ask with moved prompts too, and measure how far the answers differ.
        volume_prompt: What is followed through a volume; then nothing else is drawn.
    """

    predictor: Predictor
    data: TrainedData
    values: Mapping[str, int] = field(default_factory=dict)
    find_priors: Callable[[Tensor], AutomaticMasks] | None = None
    uncertainty: bool = False
    volume_prompt: VolumePrompt | None = None


@dataclass(frozen=True)
class Answer:
    """Hold what a model said about a file.

    Attributes:
        slices: The file, as it was shown.
        volume: Values of the labels in the file's own order; 0 is background.
        figures: What was measured, one row a label.
        legend: What each value means.
        objects: Each object of an image by itself, where they overlap too; empty of a volume, whose objects are many.
        propagated: How one object was followed through a volume; None where none was.
    """

    slices: SlicedFile
    volume: NDArray[Any]
    figures: Sequence[CaseFigure]
    legend: Mapping[int, Meaning]
    objects: Sequence[FoundObject] = ()
    propagated: Propagated | None = None


@dataclass
class _Object:
    """Hold the answer to one question about one slice: its label's value, its mask (H, W), and the network's own scores."""

    value: int
    mask: NDArray[np.bool_]
    predicted_iou: float | None = None
    uncertainty: float | None = None


def check_asked(predictor: Predictor, *, prompted: bool, untuned: bool = False, uncertainty: bool = False) -> None:
    """Refuse a model that needs what it is not given, before any file is read.

    Args:
        predictor: The model.
        prompted: Whether there are prompts.
        untuned: Whether it is a released network, which nobody taught to find anything by itself.
        uncertainty: Whether prompts are to be moved.

    Raises:
        RecipeError: Saying what to give.
    """
    segmenter = predictor.segmenter
    asked = "SAM was trained with prompts" if untuned else f"the model was asked with {segmenter.asks_user()} in training"
    if prompted and not segmenter.takes_prompts():
        raise RecipeError(f"--boxes, --points: {type(segmenter).__name__} takes no prompt. Leave them out.")
    if not prompted and (untuned or segmenter.asks_user() is not None):
        raise RecipeError(
            f"--boxes: is not given, and {asked}, which new images do not have. Give --boxes FILE, --points FILE or "
            "--every-object-of MASKS for them."
        )
    if uncertainty and not prompted:
        raise RecipeError("--uncertainty: moves prompts and looks at how the answers differ, but none are given. Leave it out.")


def answer_file(asking: Asking, file: NewFile, drawn: Sequence[DrawnObject] | None) -> Answer:
    """Ask about every slice of a file.

    Where two objects overlap the later one counts. Of a prompted model, slices for which nothing was drawn stay empty.

    Args:
        asking: The model.
        file: The file.
        drawn: What was drawn on it; None asks without prompts.

    Raises:
        DataError: If the file cannot be read, or a prompt names a slice that it does not have.
        ValueError: If a prompt does not fit the image.
    """
    slices = SlicedFile(file, asking.data)
    legend = _legend(asking, is_volume=slices.header.is_volume)
    _check_slices(file, drawn or (), len(slices))
    found: list[FoundObject] | None = None if slices.header.is_volume else []
    asked, propagated = _asked_slices(asking, slices, drawn, legend), None
    if asking.volume_prompt is not None:
        propagated = _propagated(asking, slices, asking.volume_prompt)
        asked = _followed(propagated, next(iter(legend)))
    said: dict[int, list[Said]] = defaultdict(list)
    masks = {position: _numbered(objects, said, found) for position, objects in asked}
    if not masks:
        # Somebody looked, and there was nothing to ask: an empty mask says so.
        masks[0] = np.zeros(slices.levels(0).shape[:2], np.uint8)
    volume = slices.assemble(masks)
    rows = [
        case_figure(
            file.name, meaning.name, value, n_pixels=_count(volume, value), header=slices.header, said=said.get(value, ())
        )
        for value, meaning in legend.items()
    ]
    shown = [row for row in rows if row.pixels or row.value in said or asking.predictor.segmenter.classes()]
    known = {row.value: legend[row.value] for row in shown or rows[:1]}
    return Answer(slices, volume, shown or rows[:1], known, found or (), propagated)


def _asked_slices(
    asking: Asking, slices: SlicedFile, drawn: Sequence[DrawnObject] | None, legend: Mapping[int, Meaning]
) -> Iterator[tuple[int, Iterator[_Object]]]:
    """Yield each slice that something is drawn on, or each where nothing is needed, with its objects."""
    for position in range(len(slices)):
        here = None if drawn is None else [each for each in drawn if each.slice in (None, position)]
        if here != []:
            yield position, _objects(asking, slices, position, here, legend)


def _propagated(asking: Asking, slices: SlicedFile, prompt: VolumePrompt) -> Propagated:
    """Follow one object through a volume.

    Raises:
        DataError: If the file is a single image, or the prompt or its range lie outside the volume.
        ValueError: If the prompt lies outside the image.
    """
    if not slices.header.is_volume:
        raise DataError("is a single image; a box on a slice is followed through a volume. Give --boxes FILE instead.")
    check_range(prompt.position, len(slices), prompt.rules)

    def ask(position: int, prompts: SlicePrompts) -> SliceAnswer:
        _show(asking, slices, position)
        return answer_slice(asking.predictor, prompts)

    first = Step(prompt.position, prompt.prompts, ask(prompt.position, prompt.prompts))
    return propagate(ask, len(slices), first, prompt.rules)


def _followed(propagated: Propagated, value: int) -> Iterator[tuple[int, Iterator[_Object]]]:
    for step in propagated.steps:
        yield step.position, iter([_Object(value, step.answer.mask, step.answer.predicted_iou)])


def _legend(asking: Asking, *, is_volume: bool) -> dict[int, Meaning]:
    groups, classes = asking.data.labels, asking.predictor.segmenter.classes()
    if classes:
        return {value: meaning_of(name, groups) for name, value in class_values(classes, groups).items()}
    if asking.values:
        return {value: meaning_of(name or "object", groups) for name, value in asking.values.items()}
    return {whole_value(groups, is_volume=is_volume): meaning_of_whole(groups)}


def _objects(
    asking: Asking,
    slices: SlicedFile,
    position: int,
    drawn: Sequence[DrawnObject] | None,
    legend: Mapping[int, Meaning],
) -> Iterator[_Object]:
    """Ask about one slice; a model with classes answers all of them at once."""
    predictor = asking.predictor
    _show(asking, slices, position)
    if predictor.segmenter.classes():
        masks = predictor.predict(**_class_prompt(drawn))[0]
        yield from (_Object(value, mask.astype(bool)) for value, mask in zip(legend, masks, strict=True))
        return
    whole = next(iter(legend))
    if drawn is None:
        masks, ious, _ = predictor.predict()
        yield _Object(whole, masks[0].astype(bool), None if ious is None else float(ious[0]))
        return
    name = f"{slices.file.name} {position}"
    for each, mask, iou in _drawn_masks(predictor, drawn):
        moved = uncertainty_of(predictor, each, mask.shape, name=name) if asking.uncertainty else None
        yield _Object(asking.values.get(each.label, whole), mask, iou, moved)


def _show(asking: Asking, slices: SlicedFile, position: int) -> None:
    """Make a slice the predictor's image, with its neighbours where the model looks at them."""
    context = context_of(asking.predictor.segmenter, slices)
    if context is not None:
        asking.predictor.set_slice(context, position)
        return
    levels = slices.levels(position)
    priors = None if asking.find_priors is None else asking.find_priors(image_tensor(levels, intensity=AS_STORED))
    asking.predictor.set_image(levels, intensity=AS_STORED, priors=priors)


def _class_prompt(drawn: Sequence[DrawnObject] | None) -> dict[str, Any]:
    if drawn is None:
        return {}
    if len(drawn) > 1:
        raise ValueError(f"a model with classes is asked once an image, got {len(drawn)} prompts. Keep one.")
    return _arguments(drawn[0])


def _drawn_masks(
    predictor: Predictor, drawn: Sequence[DrawnObject]
) -> Iterator[tuple[DrawnObject, NDArray[np.bool_], float | None]]:
    """Yield the mask and the predicted IoU of each object: boxes several at a time, points one object at a time."""
    if all(each.box is not None for each in drawn):
        for start in range(0, len(drawn), _OBJECTS_AT_ONCE):
            part = drawn[start : start + _OBJECTS_AT_ONCE]
            masks, ious, _ = predictor.predict_many(boxes=np.array([each.box for each in part], np.float32))
            for row, each in enumerate(part):
                yield each, masks[row, 0].astype(bool), None if ious is None else float(ious[row, 0])
        return
    for each in drawn:
        masks, ious, _ = predictor.predict(**_arguments(each))
        yield each, masks[0].astype(bool), None if ious is None else float(ious[0])


def _arguments(drawn: DrawnObject) -> dict[str, Any]:
    if drawn.box is not None:
        return {"box": drawn.box}
    return {"point_coords": [point[:2] for point in drawn.points], "point_labels": [point[2] for point in drawn.points]}


def _numbered(objects: Iterable[_Object], said: dict[int, list[Said]], found: list[FoundObject] | None) -> NDArray[Any]:
    """Return the values (H, W) of a slice, and add what was said of each object; one mask at a time is held unpacked."""
    values: NDArray[Any] | None = None
    for each in objects:
        values = np.zeros(each.mask.shape, np.uint16) if values is None else values
        values[each.mask] = each.value
        said[each.value].append((int(each.mask.sum()), each.predicted_iou, each.uncertainty))
        if found is not None and each.mask.any():
            found.append(FoundObject.of(each.value, each.mask, each.predicted_iou))
    if values is None:
        raise ValueError("a slice was asked about, but no object came back.")
    return values if values.max() > np.iinfo(np.uint8).max else values.astype(np.uint8)


def _count(volume: NDArray[Any], value: int) -> int:
    return int((volume == value).sum())


def _check_slices(file: NewFile, drawn: Sequence[DrawnObject], length: int) -> None:
    beyond = sorted({each.slice for each in drawn if each.slice is not None and not 0 <= each.slice < length})
    if beyond:
        raise DataError(f"{file.path}: has the slices 0 to {length - 1}, the prompts name {beyond}. Correct the column slice.")
