"""Lines of Python and of a shell that ask a tuned model about an image, as it was asked in training."""

from __future__ import annotations

import shlex
from dataclasses import replace

import torch

from medsam_tune.geometry import masks_to_input
from medsam_tune.inference.new_images import new_batch
from medsam_tune.masks import ObjectMasks
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.interactive import InteractiveSegmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import PromptKind, Truth

_IMAGE = "# image: (H, W) or (H, W, 3) uint8"
_ARGUMENTS: dict[PromptKind, str] = {
    "boxes": "box=(x1, y1, x2, y2)",
    "points": "point_coords=[(x, y)], point_labels=[1]",
    "mask_inputs": "mask_input=logits",
}
_MEANINGS: dict[PromptKind, str] = {
    "boxes": "# x1, y1, x2, y2: pixels of the image, the last column and row included",
    "points": "# x, y: a pixel of the object",
    "mask_inputs": "# logits: (1, h, w) of an earlier answer, its low_res_masks",
}
_ANSWER = "masks, iou_predictions, low_res_masks = predictor.predict({arguments})  # masks: (1, H, W) bool"
_CORRECTED = """\
# a click on what is wrong: label 1 where it is missing, 0 where it is too much
masks, iou_predictions, low_res_masks = predictor.predict(
    {arguments}, mask_input=low_res_masks
)"""


def prediction_code(segmenter: Segmenter) -> str:
    """Return lines that use a ``predictor`` of this segmenter; names that a user has to fill in are explained in comments.

    What the recipe's own sampler draws says what to give, so a sampler of one's own is asked as well as ours.
    """
    kinds = asked_kinds(segmenter)
    arguments = ", ".join(_ARGUMENTS[kind] for kind in kinds)
    lines = [_IMAGE, *(_MEANINGS[kind] for kind in kinds)]
    if names := ", ".join(segmenter.classes()):
        lines += ["predictor.set_image(image)", f"masks = predictor.predict({arguments})[0]  # (K, H, W) bool: {names}"]
        return "\n".join(lines if kinds else [_IMAGE, f"masks = predictor.segment_classes(image)  # by class: {names}"])
    if segmenter.reads_priors():
        lines[1:1] = ["# found: AutomaticMasks of the image, see docs/methods/samaug.md"]
    priors = ", priors=found" if segmenter.reads_priors() else ""
    if not kinds:
        return "\n".join([*lines, f"mask = predictor.segment(image{priors})  # (H, W) bool"])
    lines += [f"predictor.set_image(image{priors})", _ANSWER.format(arguments=arguments)]
    if isinstance(segmenter, InteractiveSegmenter):
        lines.append(_CORRECTED.format(arguments=_with_click(kinds)))
    return "\n".join(lines)


def asked_kinds(segmenter: Segmenter) -> tuple[PromptKind, ...]:
    """Return which prompts a user has to give, such as ``("boxes",)``; none where new images need none."""
    if segmenter.asks_user() is None or not isinstance(segmenter, SamSegmenter):
        return ()
    batch = new_batch([torch.zeros(3, 32, 32)], segmenter)
    masks = torch.zeros(batch.n_objects, 32, 32, dtype=torch.bool)
    masks[:, 8:24, 8:24] = True
    stored = ObjectMasks.of(masks)
    inside = masks_to_input(stored, batch.frames[0], segmenter.input_rule.side)
    return segmenter.ask(replace(batch, truth=Truth(inside, (stored,)))).kinds()


def _with_click(kinds: tuple[PromptKind, ...]) -> str:
    """Return the arguments with one more point, or a first one."""
    if "points" in kinds:
        return "point_coords=[(x, y), (x_wrong, y_wrong)], point_labels=[1, 0]"
    click = "point_coords=[(x_wrong, y_wrong)], point_labels=[0]"
    return f"{_ARGUMENTS['boxes']}, {click}" if "boxes" in kinds else click


def predict_command(segmenter: Segmenter, folder: str) -> str:
    """Return the command line that uses a tuned model on files; FILE, INPUT and OUT are a user's.

    Args:
        segmenter: Says which prompts have to be given.
        folder: The run's or the export's folder.

    Returns:
        The command, below a comment on its files; empty where the model is asked with a mask, which no file brings.
    """
    kinds = asked_kinds(segmenter)
    lines = ["# INPUT: an image, a volume or a folder of them; the masks come to OUT"]
    words = ["medsam-tune", "predict", shlex.quote(folder), "INPUT", "-o", "OUT"]
    if "boxes" in kinds:
        lines.append("# FILE: a table with image, x1, y1, x2, y2 and perhaps label and slice, as CSV or JSON, or a COCO file")
        words += ["--boxes", "FILE"]
    elif "points" in kinds:
        lines.append(
            "# FILE: a table with image, x, y and perhaps label (1 object, 0 background), object, slice, as CSV or JSON"
        )
        words += ["--points", "FILE"]
    elif kinds:
        return ""
    return "\n".join([*lines, " ".join(words)])
