"""A sheet of images with their masks laid over them, to see at a glance whether the two belong together."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from medsam_tune.data.base import SegmentationSource
from medsam_tune.samples import Sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The colours for every kind of colour vision of Okabe and Ito (2008, "Color Universal Design"), without black.
_COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))
_PANEL_PX = 240
_TITLE_PX = 16
_GAP_PX = 6
_COLUMNS = 4
_LOOKED_AT = 8
_TINT = 0.3


def contact_sheet(source: SegmentationSource, indices: Sequence[int], *, panels: int = 12) -> bytes:
    """Draw up to ``panels`` cases, evenly chosen, each by the slice that shows most, and return the PNG.

    Args:
        source: An opened source; its images are drawn as training sees them.
        indices: The items to choose from.
        panels: How many are drawn at most.

    Raises:
        ValueError: If there is no item.
        DataError: If an item cannot be read.
    """
    if not indices:
        raise ValueError("indices must hold at least one item, got none.")
    cases: dict[str, list[int]] = {}
    for index in indices:
        cases.setdefault(source.case_ids()[index], []).append(index)
    chosen = _evenly(list(cases.values()), panels)
    return _sheet([_panel(_fullest(source, members)) for members in chosen])


def _evenly(items: Sequence[list[int]], most: int) -> list[list[int]]:
    places = np.unique(np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int))
    return [items[place] for place in places]


def _fullest(source: SegmentationSource, members: Sequence[int]) -> Sample:
    """Return the item with most labelled pixels of a few evenly chosen ones."""
    step = max(1, len(members) // _LOOKED_AT)
    samples = [source[index] for index in members[step // 2 :: step]]
    return max(samples, key=lambda sample: int(sample.masks.areas().sum()))


def _panel(sample: Sample) -> Image.Image:
    row_mm, column_mm = sample.spacing_mm
    height, width = sample.image.shape[-2:]
    scale = _PANEL_PX / max(height * row_mm, width * column_mm)
    size = (max(1, round(width * column_mm * scale)), max(1, round(height * row_mm * scale)))
    pixels = sample.image.clamp(0, 255).byte().permute(1, 2, 0).numpy()
    shown = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)).astype(np.float32)
    for mask, label in zip(sample.masks, _colour_numbers(sample), strict=True):
        inside = _reduced(mask, size)
        colour = np.array(_COLOURS[label % len(_COLOURS)], np.float32)
        edge = inside & ~_eroded(inside)
        shown[inside] = (1 - _TINT) * shown[inside] + _TINT * colour
        shown[edge] = colour
    panel = Image.new("RGB", (_PANEL_PX, _PANEL_PX + _TITLE_PX), "white")
    panel.paste(Image.fromarray(shown.astype(np.uint8)), ((_PANEL_PX - size[0]) // 2, _TITLE_PX + (_PANEL_PX - size[1]) // 2))
    ImageDraw.Draw(panel).text((2, 1), _shortened(sample.image_id), fill="black", font=ImageFont.load_default(12))
    return panel


def _colour_numbers(sample: Sample) -> list[int]:
    """Colour labels apart; objects of one label by their order."""
    labels = [int(label) - 1 for label in sample.labels.tolist()]
    return labels if len(set(labels)) == len(labels) else list(range(len(labels)))


def _reduced(mask: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Resize a mask so that a pixel counts where any part of it did: what is thin stays visible."""
    grey = Image.fromarray((mask.numpy() * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX)
    return np.asarray(grey) > 31


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    framed = np.pad(mask, 1)
    return framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:] & mask


def _shortened(name: str) -> str:
    printable = "".join(letter if letter.isprintable() and ord(letter) < 0x250 else "?" for letter in name)
    return printable if len(printable) <= 36 else f"...{printable[-33:]}"


def _sheet(panels: Sequence[Image.Image]) -> bytes:
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    cell = (_PANEL_PX + _GAP_PX, _PANEL_PX + _TITLE_PX + _GAP_PX)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP_PX, rows * cell[1] + _GAP_PX), "white")
    for place, panel in enumerate(panels):
        sheet.paste(panel, (_GAP_PX + place % columns * cell[0], _GAP_PX + place // columns * cell[1]))
    content = BytesIO()
    sheet.save(content, format="PNG")
    return content.getvalue()
