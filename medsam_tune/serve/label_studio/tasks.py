"""What Label Studio says of a task: what was drawn, on which image, and what a region that answers it must look like."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np

from medsam_tune.inference.slice_prompts import NO_PROMPTS, SliceAnswer, SlicePrompts
from medsam_tune.serve.errors import Refusal
from medsam_tune.serve.label_studio.brush import decode_brush, encode_brush


@dataclass(frozen=True)
class Interface:
    """Hold what a project's labelling interface says: its brush, its image, and what objects are called.

    Attributes:
        from_name: The name of its ``BrushLabels``.
        to_name: The name of its ``Image``.
        key: Where the image's address stands in a task's data.
        labels: The names of the brush's labels.
    """

    from_name: str
    to_name: str
    key: str
    labels: tuple[str, ...]


def read_interface(config: str) -> Interface:
    """Read a labelling interface.

    Raises:
        Refusal: If it is no XML, or has no brush on an image.
    """
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise Refusal(400, "the project's labelling interface is no XML. Save it again.") from error
    brush = root.find(".//BrushLabels")
    shown = "" if brush is None else brush.get("toName", "")
    image = next((each for each in root.iter("Image") if each.get("name") == shown), None)
    if brush is None or image is None or not brush.findall("Label"):
        raise Refusal(
            400,
            "the labelling interface has no <BrushLabels> with a <Label> on an <Image>, which masks are drawn with. Add one in "
            "the project's settings.",
        )
    labels = tuple(label.get("value", "") for label in brush.findall("Label"))
    return Interface(brush.get("name", ""), image.get("name", ""), image.get("value", "").removeprefix("$"), labels)


@dataclass(frozen=True)
class Drawn:
    """Hold what was drawn for one object, in pixels, and the label that was chosen for it."""

    prompts: SlicePrompts
    label: str | None


def read_drawn(regions: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> Drawn:
    """Return the box, clicks and brush strokes of a task's interaction; a stroke counts as the box around it.

    Args:
        regions: As Label Studio states them: places in percent of the image.
        size: (H, W) of the image.

    Raises:
        Refusal: If a region was drawn on an image of another size or turned, or is of another kind.
    """
    prompts, label = NO_PROMPTS, None
    for region in regions:
        _check_image(region, size)
        kind, value = str(region.get("type", "")), region.get("value") or {}
        label = next(iter(value.get(kind) or ()), label)
        match kind.removesuffix("labels"):
            case "keypoint":
                x, y = _percent(value, ("x", "y"), size)
                # Whole numbers are the middles of pixels.
                at = (min(max(x - 0.5, 0), size[1] - 1), min(max(y - 0.5, 0), size[0] - 1))
                prompts = prompts.with_point(*at, positive=bool(region.get("is_positive", True)))
            case "rectangle":
                prompts = prompts.with_box(_box(value, size))
            case "brush":
                prompts = prompts.with_box(_box_around(value, size))
            case _:
                raise Refusal(
                    400, f"a region of type {kind} was drawn, expected a rectangle, key points or a brush. Use those."
                )
    return Drawn(prompts, label)


def make_region(answer: SliceAnswer, interface: Interface, label: str) -> dict[str, Any]:
    """Return a mask as the region that Label Studio shows."""
    height, width = answer.mask.shape
    return {
        "id": secrets.token_hex(5),
        "from_name": interface.from_name,
        "to_name": interface.to_name,
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "readonly": False,
        "score": answer.predicted_iou,
        "value": {"format": "rle", "rle": encode_brush(answer.mask), "brushlabels": [label]},
    }


def _check_image(region: Mapping[str, Any], size: tuple[int, int]) -> None:
    height, width = region.get("original_height", size[0]), region.get("original_width", size[1])
    if (height, width) != size:
        raise Refusal(
            400, f"a region was drawn on {height} x {width} pixels, the image has {size[0]} x {size[1]}. Load it again."
        )
    if region.get("image_rotation", 0):
        raise Refusal(400, "the image was turned before it was drawn on. Turn it back and draw again.")


def _percent(value: Mapping[str, Any], names: tuple[str, str], size: tuple[int, int]) -> tuple[float, float]:
    """Return two numbers of a region in pixels, along x and y."""
    x, y = (value.get(name) for name in names)
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in (x, y)):
        raise Refusal(400, f"a region states {names[0]} and {names[1]} as {x}, {y}, expected percent. Draw it again.")
    return float(x or 0) * size[1] / 100, float(y or 0) * size[0] / 100


def _box(value: Mapping[str, Any], size: tuple[int, int]) -> tuple[float, float, float, float]:
    if value.get("rotation"):
        raise Refusal(400, "a turned rectangle was drawn, SAM reads upright ones. Draw it upright.")
    (x, y), (width, height) = _percent(value, ("x", "y"), size), _percent(value, ("width", "height"), size)
    # The last column and row are part of a box.
    x2, y2 = min(x + width, size[1]) - 1, min(y + height, size[0]) - 1
    x1, y1 = max(x, 0), max(y, 0)
    return (min(x1, x2), min(y1, y2), max(x1, x2, 0), max(y1, y2, 0))


def _box_around(value: Mapping[str, Any], size: tuple[int, int]) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(decode_brush(value.get("rle") or [], size))
    if not rows.size:
        raise Refusal(400, "a brush stroke without a pixel was drawn. Draw it again.")
    return float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max())
