"""One object that a user asks for, slice by slice and prompt by prompt, with each slice encoded at its first prompt."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

from medsam_tune.data.intensity import AS_STORED
from medsam_tune.errors import RecipeError
from medsam_tune.inference.new_images import image_tensor
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.slice_context import context_of
from medsam_tune.inference.slice_prompts import SliceAnswer, SlicePrompts
from medsam_tune.inference.sliced_file import SlicedFile
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.interactive import InteractiveSegmenter
from medsam_tune.types import AutomaticMasks

PriorFinder = Callable[[Tensor], AutomaticMasks]
MOST_KEPT = 32
"""Encoded slices that are kept; one of SAM's is about 17 MB: 3 x 1024 x 1024 and 256 x 64 x 64 numbers of 4 bytes."""


class EncodedSlices:
    """Keep the encoded slices that were asked about last, of all users together.

    Args:
        predictor: The model.
        find_priors: Finds the automatic masks of an image (3, H, W) in 0..255, for a model that fuses them.
        most: Slices kept.
    """

    def __init__(self, predictor: Predictor, *, find_priors: PriorFinder | None = None, most: int = MOST_KEPT) -> None:
        self.predictor, self._find_priors, self._most = predictor, find_priors, most
        self._kept: OrderedDict[tuple[Hashable, int], Predictor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._kept)

    def get(self, owner: Hashable, slices: SlicedFile, position: int) -> Predictor:
        """Return a predictor that has this slice for its image; it is encoded unless it is kept.

        Args:
            owner: What tells this image from all others.
            slices: The image.
            position: The slice.

        Raises:
            DataError: If the slice cannot be read.
        """
        key = (owner, position)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        encoded = self._encoded(slices, position)
        with self._lock:
            self._kept[key] = encoded
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return encoded

    def _encoded(self, slices: SlicedFile, position: int) -> Predictor:
        context = context_of(self.predictor.segmenter, slices)
        if context is not None:
            return self.predictor.with_slice(context, position)
        levels = slices.levels(position)
        priors = None if self._find_priors is None else self._find_priors(image_tensor(levels, intensity=AS_STORED))
        return self.predictor.with_image(levels, intensity=AS_STORED, priors=priors)

    def forget(self, owner: Hashable) -> None:
        """Drop the slices of one image."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == owner]:
                del self._kept[key]


def answer_slice(
    predictor: Predictor, prompts: SlicePrompts | None, *, label: str | None = None, before: SliceAnswer | None = None
) -> SliceAnswer:
    """Ask about the predictor's image.

    Args:
        predictor: Has the slice for its image.
        prompts: What was drawn; None asks without prompts.
        label: The class that is wanted of a model with several, or the name that is asked for by one that reads names.
        before: The answer to the prompts before the last one. A model that was trained with clicks was shown it.

    Raises:
        ValueError: If a prompt does not fit the image.
    """
    segmenter = predictor.segmenter
    arguments = {} if prompts is None else prompts.arguments()
    if before is not None and prompts is not None and isinstance(segmenter, InteractiveSegmenter) and predictor.tiles is None:
        arguments["mask_input"] = before.low_res_masks
    if segmenter.reads_names():
        arguments["name"] = label
    masks, ious, low_res = predictor.predict(**arguments)
    if segmenter.classes():
        return SliceAnswer(masks[segmenter.classes().index(label or segmenter.classes()[0])].astype(bool))
    return SliceAnswer(masks[0].astype(bool), None if ious is None else float(ious[0]), low_res)


def check_label(segmenter: Segmenter, label: str | None) -> None:
    """Refuse a label that the model does not know, or the want of one where it knows several.

    Raises:
        RecipeError: With the names that there are.
    """
    classes = segmenter.classes()
    if len(classes) > 1 and label not in classes:
        got = "" if label is None else f", got {label}"
        raise RecipeError(f"--label: the model has the classes {', '.join(classes)}{got}. Name the one that is shown.")
    if segmenter.reads_names() and not label:
        raise RecipeError("--label: the model is asked by name. Say what it shall find.")
    if label is not None and not classes and not segmenter.reads_names():
        raise RecipeError(f"--label: the model has no classes, got {label}. Leave it out.")
