"""The seam of a protocol: which questions are asked about the images of a case, and the rows that their answers make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from medsam_tune.errors import RecipeError
from medsam_tune.prompts.sampling import Mask
from medsam_tune.protocols.asking import AskableModel, StudiedImage, StudiedObject
from medsam_tune.protocols.selection import Candidates, Rule, choose

Row = dict[str, Any]
"""A row of the table: plain values by column; None stands for what is undefined."""
OBJECT_COLUMNS = ("model", "case", "patient", "image", "label", "object")
SCORE_COLUMNS = ("selection", "dice", "iou", "predicted_iou")
CLICKS = "clicks"


class Protocol(ABC):
    """Ask networks about images, and make rows of their answers.

    Attributes:
        name: As the command calls it.
        columns: Of the table.
        axes: Columns that tell what a mean is taken over apart from model and selection.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    axes: ClassVar[tuple[str, ...]]

    def check(self, model: AskableModel) -> None:
        """Refuse a network that the protocol cannot ask, before any work.

        Raises:
            RecipeError: If it takes no prompts, or answers them with classes.
        """
        if model.predictor.segmenter.classes():
            raise RecipeError(f"{model.name}: labels pixels, so {self.name} cannot ask for objects. Use --protocol segment.")
        if not model.takes_prompts():
            raise RecipeError(f"{model.name}: takes no points or boxes, so {self.name} cannot ask it. Use --protocol segment.")

    @abstractmethod
    def rows(self, images: Sequence[StudiedImage], model: AskableModel, *, seed: int) -> Iterator[Row]:
        """Yield the rows of one case.

        Args:
            images: All its images.
            model: Is asked.
            seed: With image and object it decides whatever is drawn.
        """


def scored(answer: Candidates, each: StudiedObject) -> Iterator[Row]:
    """Yield what each rule of selection takes of one answer: all score the same candidates."""
    overlaps = [each.overlap(mask) for mask in answer.masks]
    for rule in answer.rules():
        place = choose(rule, answer, [iou for _, iou in overlaps])
        yield score_row(rule, place, answer, overlaps[place])


def taken(answer: Candidates, each: StudiedObject, rule: Rule) -> tuple[Row, Mask]:
    """Return the row of the mask that a rule takes, and the mask (H, W)."""
    overlaps = [each.overlap(mask) for mask in answer.masks]
    place = choose(rule, answer, [iou for _, iou in overlaps])
    return score_row(rule, place, answer, overlaps[place]), answer.masks[place]


def score_row(rule: Rule, place: int, answer: Candidates, overlap: tuple[float, float]) -> Row:
    """Return the columns of one rule's score."""
    estimate = None if answer.predicted_iou is None else float(answer.predicted_iou[place])
    return {"selection": rule, "dice": overlap[0], "iou": overlap[1], "predicted_iou": estimate}


def named(model: AskableModel, image: StudiedImage, each: StudiedObject) -> Row:
    """Return the columns that say whose row it is."""
    names = (model.name, image.case, image.patient, image.sample.image_id, each.label, each.name)
    return dict(zip(OBJECT_COLUMNS, names, strict=True))


def finite(values: Mapping[str, float]) -> Row:
    """Return the values with None in place of those that are not finite."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
