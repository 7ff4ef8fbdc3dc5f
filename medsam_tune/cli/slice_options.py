"""The options that draw on one slice of a volume: ``--box-on-slice``, ``--point-on-slice`` and where the object may be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError

if TYPE_CHECKING:
    from argparse import Namespace

    from medsam_tune.inference.propagation import VolumePrompt

_BOX, _POINT = "--box-on-slice", "--point-on-slice"


def add_slice_options(parser: OptionParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("one object of a volume, from one slice")
    group.add_argument(
        _BOX, metavar="SLICE:x1,y1,x2,y2", help="a box there; its mask's box asks about the next slice, and so on"
    )
    group.add_argument(
        _POINT, metavar="SLICE:x,y", action="append", help="a click there; x,y,0 is a click beside the object. May be repeated"
    )
    group.add_argument("--slices", metavar="A:B", help="first and last slice that may hold it, both included; by default all")
    group.add_argument("--least-iou", type=float, metavar="IOU", help="stop where the predicted IoU falls below this")
    group.add_argument("--connected", action="store_true", help="keep what is connected in 3-D with the mask of that slice")


def volume_prompt_of(options: Namespace) -> VolumePrompt | None:
    """Return what was drawn on one slice, or None.

    Raises:
        RecipeError: If an option cannot be read, or says nothing without a box or click.
    """
    drawn = [] if options.box_on_slice is None else [_numbers(_BOX, options.box_on_slice, (4,), "42:30,40,88,97")]
    clicks = [_numbers(_POINT, words, (2, 3), "42:60,70") for words in options.point_on_slice or ()]
    given = {"--slices": options.slices, "--least-iou": options.least_iou, "--connected": options.connected or None}
    if not drawn and not clicks:
        if alone := [name for name, value in given.items() if value is not None]:
            raise RecipeError(f"{alone[0]}: goes with {_BOX} or {_POINT}, which are not given. Give one, or leave it out.")
        return None
    _check_alone(options)
    from medsam_tune.inference.propagation import PropagationRules, VolumePrompt
    from medsam_tune.inference.slice_prompts import SlicePrompts

    positions = sorted({position for position, _ in (*drawn, *clicks)})
    if len(positions) > 1:
        raise RecipeError(f"{_POINT}: box and clicks must be on one slice, got slices {positions}. Draw on one of them.")
    box = drawn[0][1] if drawn else None
    prompts = SlicePrompts(
        tuple(_click(numbers) for _, numbers in clicks), None if box is None else (box[0], box[1], box[2], box[3])
    )
    if not prompts.asks:
        raise RecipeError(f"{_POINT}: all clicks are beside the object. Give one on it, or a box.")
    least = PropagationRules.least_iou if options.least_iou is None else options.least_iou
    rules = PropagationRules(slices=_range(options.slices), least_iou=least, connected=options.connected)
    return VolumePrompt(positions[0], prompts, rules)


def _check_alone(options: Namespace) -> None:
    others = {"--boxes": options.boxes, "--points": options.points, "--every-object-of": options.every_object_of}
    if given := [name for name, value in others.items() if value is not None]:
        raise RecipeError(f"{given[0]}: draws on many slices, {_BOX} and {_POINT} on one. Give one of them.")


def _click(numbers: tuple[float, ...]) -> tuple[float, float, int]:
    label = numbers[2] if len(numbers) == 3 else 1.0
    if label not in (0.0, 1.0):
        raise RecipeError(f"{_POINT}: the third number is 1 (object) or 0 (background), got {label:g}. Correct it.")
    return numbers[0], numbers[1], int(label)


def _numbers(option: str, words: str, lengths: tuple[int, ...], example: str) -> tuple[int, tuple[float, ...]]:
    where, _, rest = words.partition(":")
    try:
        position, numbers = int(where), tuple(float(word) for word in rest.split(","))
    except ValueError:
        position, numbers = -1, ()
    if len(numbers) not in lengths or position < 0 or not all(math.isfinite(number) for number in numbers):
        raise RecipeError(
            f"{option}: expected the slice, a colon and {lengths[0]} numbers in pixels of the slice, such as {example}, got "
            f"{words!r}. Slices count from 0."
        )
    return position, numbers


def _range(words: str | None) -> tuple[int, int] | None:
    if words is None:
        return None
    first, _, last = words.partition(":")
    try:
        return int(first), int(last)
    except ValueError:
        raise RecipeError(f"--slices: expected FIRST:LAST such as 30:55, got {words!r}. Slices count from 0.") from None
