"""A picture of an answered file: its slices with every label outlined and tinted in a colour of its own."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from medsam_tune.inference.file_prediction import Answer

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Okabe and Ito 2008, "Color Universal Design", without black: for every kind of colour vision.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
SLICES_SHOWN = 9
_TINT = 0.25
_IMAGE_SIDE, _SLICE_SIDE = 1024, 320
_GAP = 4


def draw_answer(answer: Answer) -> bytes:
    """Draw a file's answer as PNG: the single image, or up to nine slices of a volume, spread evenly over those that show one.

    Pixels keep their proportions in millimetres; the number of a slice stands in its corner.
    """
    positions = shown_slices(answer)
    is_volume = answer.slices.header.is_volume
    side = _SLICE_SIDE if is_volume else _IMAGE_SIDE
    panels = [_panel(answer, position, side) for position in positions]
    if is_volume:
        for panel, position in zip(panels, positions, strict=True):
            ImageDraw.Draw(panel).text((4, 2), str(position), fill="white", stroke_width=1, stroke_fill="black")
    content = io.BytesIO()
    _grid(panels).save(content, format="PNG")
    return content.getvalue()


def shown_slices(answer: Answer) -> list[int]:
    """Return the positions that are drawn: those that show an object, thinned out evenly, else the middle one."""
    filled = [position for position in range(len(answer.slices)) if answer.slices.cut(answer.volume, position).any()]
    if not filled:
        return [len(answer.slices) // 2]
    count = min(SLICES_SHOWN, len(filled))
    return [filled[math.floor((part + 0.5) * len(filled) / count)] for part in range(count)]


def _panel(answer: Answer, position: int, side: int) -> Image.Image:
    levels = np.rint(answer.slices.levels(position)).astype(np.uint8)
    image = Image.fromarray(levels).convert("RGB")
    size = _shown_size(image.size, answer.slices.spacing_mm(), side)
    labels = answer.slices.cut(answer.volume, position).astype(np.int32)
    shown = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    for number, value in enumerate(answer.legend):
        _paint(pixels, shown == value, COLOURS[number % len(COLOURS)])
    return Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))


def _paint(pixels: NDArray[Any], mask: NDArray[np.bool_], colour: Sequence[int]) -> None:
    """Tint the inside of a mask and draw its outermost pixels, in place."""
    rim = mask & ~ndimage.binary_erosion(mask)
    pixels[mask] += _TINT * (np.array(colour, np.float32) - pixels[mask])
    pixels[rim] = colour


def _shown_size(size: tuple[int, int], spacing_mm: tuple[float, float], side: int) -> tuple[int, int]:
    """Return (width, height): in proportion, the longer one at most ``side``, never smaller than a third of it."""
    width, height = size[0] * spacing_mm[1], size[1] * spacing_mm[0]
    # In units of the smaller pixel side a picture keeps all its pixels.
    wanted = max(width, height) / min(spacing_mm)
    longest = min(max(wanted, side / 3 * math.ceil(min(3, side / wanted))), side)
    scale = longest / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _grid(panels: Sequence[Image.Image]) -> Image.Image:
    columns = math.ceil(math.sqrt(len(panels)))
    width, height = max(panel.width for panel in panels), max(panel.height for panel in panels)
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP))
    for number, panel in enumerate(panels):
        sheet.paste(panel, ((number % columns) * (width + _GAP), (number // columns) * (height + _GAP)))
    return sheet
