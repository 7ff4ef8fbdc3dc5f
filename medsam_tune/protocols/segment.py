"""The plain test: each case is answered once, as the network is used, and scored whole, volumes in three dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.measures import DISTANCES, SHARES, CaseMeasures, measure_cases
from medsam_tune.metrics.instances import InstancePixels, instance_pixels
from medsam_tune.metrics.overlap import CaseScores, overlap_counts
from medsam_tune.metrics.surface import OutlineMetric, OutlinePlace
from medsam_tune.prompts.sampling import Mask
from medsam_tune.protocols.asking import AskableModel, AskedImage, StudiedImage
from medsam_tune.protocols.base import Protocol, Row, finite
from medsam_tune.protocols.questions import Question, tight_box

_TOGETHER = "object"


@dataclass(frozen=True)
class Shown:
    """Hold what was answered about an image.

    Attributes:
        masks: Predicted and true mask (H, W) of each label, objects joined.
        apart: Of labels with several objects, each asked for by its own box, what answers and objects share.
    """

    masks: dict[str, tuple[Mask, Mask]]
    apart: dict[str, InstancePixels] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmentProtocol(Protocol):
    """Answer each case once.

    A network that needs a prompt gets the tight box of each object; whether there is an object it is then told, so a slice
    without one cannot be wrong. One that needs none is asked for nothing, and what it finds on slices without the organ counts.

    Attributes:
        boxed: Ask with boxes; None: where the network needs them.
    """

    boxed: bool | None = None
    name: ClassVar[str] = "segment"
    axes: ClassVar[tuple[str, ...]] = ("strategy",)
    columns: ClassVar[tuple[str, ...]] = (
        *("model", "case", "patient", "label", "strategy", "n_slices"),
        *("tp", "fp", "fn", "dice", "iou", *DISTANCES, "distance_unit", *SHARES),
        *("true_size", "predicted_size", "size_difference", "size_unit"),
        *("empty_slices", "false_positive_slices", "excluded"),
    )

    def check(self, model: AskableModel) -> None:
        """Refuse to ask with boxes where they are not read, and without where they are needed.

        Raises:
            RecipeError: If either is asked for.
        """
        segmenter = model.predictor.segmenter
        needs, answers = segmenter.asks_user(), model.takes_prompts() and not segmenter.classes()
        if self.boxed and not answers:
            raise RecipeError(f"{model.name}: takes no boxes of objects. Leave --boxed out.")
        if self.boxed is False and needs:
            raise RecipeError(f"{model.name}: was trained with {needs} and finds nothing without. Leave --automatic out.")
        if needs and not answers:
            raise RecipeError(f"{model.name}: labels pixels and was trained with {needs}. Test it: medsam-tune test RUN.")

    def asks_boxes(self, model: AskableModel) -> bool:
        """Tell whether a network is asked with boxes: where it is said, or where it was trained so or was not trained."""
        if self.boxed is not None:
            return self.boxed
        segmenter = model.predictor.segmenter
        return model.takes_prompts() and not segmenter.classes() and (model.is_untuned or segmenter.asks_user() is not None)

    def rows(self, images: Sequence[StudiedImage], model: AskableModel, *, seed: int) -> Iterator[Row]:
        """Yield a row for each label of the case; nothing is drawn."""
        boxed = self.asks_boxes(model)
        shown = [_by_box(model, image) if boxed else _automatic(model, image) for image in images]
        labels = sorted({label for each in shown for label in each.masks})
        if not labels:
            return
        scores, measures = score_case(images, shown, labels)
        told = {"model": model.name, "case": images[0].case, "patient": images[0].patient}
        for place, row in enumerate(scores.label.tolist()):
            excluded = bool(scores.excluded[place])
            figures = finite(
                {
                    **{name: float(getattr(scores, name)[place]) for name in ("dice", "iou")},
                    **{name: float(getattr(measures, name)[place]) for name in SHARES},
                }
            )
            yield {
                **told,
                "label": labels[row],
                "strategy": "box" if boxed else "automatic",
                "n_slices": int(scores.n_slices[place]),
                **{name: int(getattr(scores, name)[place]) for name in ("tp", "fp", "fn")},
                **figures,
                # Infinite where one of the two masks is missing: not a number that a mean may hold, and not none.
                **{name: None if excluded else float(getattr(measures, name)[place]) for name in DISTANCES},
                "distance_unit": measures.distance_unit[place],
                **{name: float(getattr(measures, name)[place]) for name in ("true_size", "predicted_size", "size_difference")},
                "size_unit": measures.size_unit[place],
                **{name: int(getattr(measures, name)[place]) for name in ("empty_slices", "false_positive_slices")},
                "excluded": excluded,
            }


def score_case(
    images: Sequence[StudiedImage], shown: Sequence[Shown], labels: Sequence[str]
) -> tuple[CaseScores, CaseMeasures]:
    """Score the labels of one case over all its images, as a test of a run does.

    Args:
        images: All of it.
        shown: Of each image.
        labels: Their number is the label of a row.
    """
    metric = OutlineMetric(gather=False)
    volumes = {each.sample.volume_id: number for number, each in enumerate(images)}
    for number, (image, answer) in enumerate(zip(images, shown, strict=True)):
        for label, counted in answer.apart.items():
            metric.add_instances(number, 0, labels.index(label), counted)
        for label, (predicted, true) in answer.masks.items():
            place = OutlinePlace(0, labels.index(label), volumes[image.sample.volume_id], image.sample.slice_index)
            both = torch.from_numpy(predicted), torch.from_numpy(true)
            metric.add_outlines(place, *both)
            counts = overlap_counts(both[0][None], both[1][None])
            row = torch.tensor([place.label])
            metric.update(torch.tensor([number]), torch.tensor([0]), row, torch.tensor([0]), counts)
    scores = metric.scores()
    sizes = {image.voxel for image in images}
    voxel = sizes.pop() if len(sizes) == 1 else None
    return scores, measure_cases(scores, {} if voxel is None else {0: voxel})


def _by_box(model: AskableModel, image: StudiedImage) -> Shown:
    """Ask with the box of each object and join the answers of a label."""
    pairs: dict[str, list[tuple[Mask, Mask]]] = {}
    asked: AskedImage | None = None
    for each in image.objects():
        asked = asked or AskedImage(model, image.sample)
        answer = asked.answers([Question("box", boxes=(tight_box(each.mask),))], name=each.label)[0]
        pairs.setdefault(each.label, []).append((_seen(answer.masks[0], each.known), each.mask))
    return Shown(
        {label: (_joined(found), _joined(true)) for label, (found, true) in _sides(pairs)},
        {label: instance_pixels(_places(found), _places(true)) for label, (found, true) in _sides(pairs) if len(true) > 1},
    )


def _sides(pairs: Mapping[str, Sequence[tuple[Mask, Mask]]]) -> Iterator[tuple[str, tuple[list[Mask], list[Mask]]]]:
    """Yield each label with its predicted masks and its true ones."""
    for label, rows in pairs.items():
        yield label, ([found for found, _ in rows], [true for _, true in rows])


def _joined(masks: Sequence[Mask]) -> Mask:
    found: Mask = np.logical_or.reduce(masks)
    return found


def _places(masks: Sequence[Mask]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(mask) for mask in masks]


def _automatic(model: AskableModel, image: StudiedImage) -> Shown:
    """Ask for nothing: each class of the network is held against the label of its name, one mask against all of them."""
    masks, classes = AskedImage(model, image.sample).unprompted(), model.predictor.segmenter.classes()
    known = image.known()
    true: dict[str, Mask] = {}
    for each in image.objects():
        true[each.label] = true.get(each.label, np.zeros_like(each.mask)) | each.mask
    if not classes:
        union = np.logical_or.reduce(list(true.values())) if true else np.zeros_like(masks[0])
        # One label alone keeps its name.
        names = set(image.label_names.values())
        true, classes = {next(iter(names)) if len(names) == 1 else _TOGETHER: union}, (_TOGETHER,)
        masks = masks[:1]
        predicted = dict(zip(true, masks, strict=True))
    else:
        predicted = dict(zip(classes, masks, strict=True))
    nothing = np.zeros_like(masks[0])
    return Shown(
        {
            label: (_seen(predicted.get(label, nothing), known), true.get(label, nothing))
            for label in sorted({*predicted, *true})
        }
    )


def _seen(mask: Mask, known: Mask | None) -> Mask:
    return mask if known is None else mask & known
