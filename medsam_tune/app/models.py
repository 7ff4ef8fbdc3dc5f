"""The tuned network and the untuned one beside it, as the page asks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medsam_tune.data.formats import Format
from medsam_tune.data.intensity import AS_STORED
from medsam_tune.inference.asked_slices import EncodedSlices, check_label
from medsam_tune.inference.automatic import AutomaticMaskGenerator
from medsam_tune.inference.automatic_settings import AutomaticSettings
from medsam_tune.inference.label_values import class_values, meaning_of, meaning_of_whole, whole_value
from medsam_tune.inference.new_images import image_tensor
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.inference.usage import asked_kinds
from medsam_tune.runs.asked_model import AskedModel
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Weights that learnt boxes alone: under a point their masks pass no threshold.
_BOX_WEIGHTS = ("lite_medsam", "medsam_vit_b")
_POINTS = AutomaticSettings()
# Half as many prompts as points: a box always finds something, so more of them mostly find more that nobody wants.
_BOXES = AutomaticSettings(points_per_side=8, box_fractions=(0.15, 0.3))
# What an eye can tell apart; of candidates that share more than a fifth of their pixels the one of the higher score is shown.
_MOST_SHOWN, _MOST_SHARED = 12, 0.2


@dataclass(frozen=True)
class Models:
    """Hold what is asked.

    Attributes:
        name: As the user named the model.
        tuned: The network, and the slices that were encoded.
        untuned: The same network before it was tuned; None where that is what ``tuned`` is, or where there is none.
        data: What it was trained on.
        formats: Who reads files.
        label: The class that is shown.
        finds_alone: Whether it finds its object without a prompt, as it was trained to.
        knows_boxes_alone: Whether it learnt from boxes and no points, so that a click alone is answered badly.
    """

    name: str
    tuned: EncodedSlices
    untuned: EncodedSlices | None
    data: TrainedData
    formats: Sequence[Format]
    label: str | None = None
    finds_alone: bool = False
    knows_boxes_alone: bool = False

    @classmethod
    def of(cls, model: AskedModel, *, label: str | None = None) -> Models:
        """Prepare a model, on the GPU where there is one.

        Raises:
            RecipeError: If the label does not fit.
        """
        predictor, segmenter = model.predictor, model.predictor.segmenter
        check_label(segmenter, label)
        before = None if model.is_untuned else segmenter.untuned()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        segmenter.to(device)
        return cls(
            model.name,
            EncodedSlices(predictor, find_priors=model.prior_finder()),
            None if before is None else EncodedSlices(Predictor(before.to(device), tiles=predictor.tiles)),
            model.data,
            model.formats,
            label,
            finds_alone=not model.is_untuned and segmenter.asks_user() is None,
            knows_boxes_alone=_knows_boxes_alone(model),
        )

    @property
    def segmenter(self) -> Segmenter:
        """Return the tuned network."""
        return self.tuned.predictor.segmenter

    def takes_prompts(self) -> bool:
        """Return whether boxes and points can be drawn."""
        return self.segmenter.takes_prompts()

    def finds_candidates(self) -> bool:
        """Return whether it can be asked for everything that it sees, of which the user picks."""
        segmenter = self.segmenter
        plain = isinstance(segmenter, SamSegmenter) and segmenter.side is None and segmenter.fusion is None
        return not self.finds_alone and plain and self.takes_prompts()

    def candidates(self, slices: SlicedFile, position: int) -> NDArray[np.bool_]:
        """Return what the tuned network sees on a slice, (K, H, W), the most certain first, apart from each other.

        Raises:
            ValueError: If it cannot be asked so.
        """
        segmenter = self.segmenter
        if not (self.finds_candidates() and isinstance(segmenter, SamSegmenter)):
            raise ValueError(f"{type(segmenter).__name__} cannot be asked for all that it sees. Draw a box or click.")
        settings = (_BOXES if self.knows_boxes_alone else _POINTS).as_priors()
        image = image_tensor(slices.levels(position), intensity=AS_STORED)
        return apart(AutomaticMaskGenerator(segmenter.backbone, settings).generate(image).masks.numpy())

    def value(self, *, is_volume: bool) -> tuple[int, str]:
        """Return the value of the object in a mask's file, and its name, as ``predict`` writes them."""
        groups, classes = self.data.labels, self.segmenter.classes()
        if classes:
            name = self.label or classes[0]
            return class_values(classes, groups)[name], meaning_of(name, groups).name
        return whole_value(groups, is_volume=is_volume), meaning_of_whole(groups).name


def apart(masks: NDArray[np.bool_], *, most: int = _MOST_SHOWN, shared: float = _MOST_SHARED) -> NDArray[np.bool_]:
    """Return the first of the masks (K, H, W), but for those that share too much of the smaller one with one before.

    Args:
        masks: By falling score.
        most: How many are returned at most.
        shared: The largest part of the smaller of two masks that they may share.
    """
    kept: list[int] = []
    sizes = masks.sum(axis=(1, 2))
    for row, mask in enumerate(masks):
        common = [int((mask & masks[other]).sum()) / max(1, min(sizes[row], sizes[other])) for other in kept]
        if max(common, default=0.0) <= shared:
            kept.append(row)
        if len(kept) == most:
            break
    return masks[kept]


def _knows_boxes_alone(model: AskedModel) -> bool:
    segmenter = model.predictor.segmenter
    if model.is_untuned:
        weights = segmenter.base_weights()
        return weights is not None and weights.name in _BOX_WEIGHTS
    return asked_kinds(segmenter) == ("boxes",)
