"""A slice as the page shows it: in proportion, with the mask, what was drawn, and what can be picked."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from medsam_tune.inference.slice_prompts import NO_PROMPTS, SlicePrompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Okabe and Ito 2008, "Color Universal Design": orange is the tuned network, purple the untuned one, as in the report.
TUNED, UNTUNED = (230, 159, 0), (204, 121, 167)
_PROMPT, _NEGATIVE = (0, 158, 115), (213, 94, 0)
_CANDIDATES = ((86, 180, 233), (240, 228, 66), (0, 158, 115), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_SIDE, _TINT, _CANDIDATE_TINT = 720, 0.3, 0.2
_LINE, _DOT = 3, 7


def draw_slice(
    levels: NDArray[np.generic],
    spacing_mm: tuple[float, float],
    *,
    mask: NDArray[np.bool_] | None = None,
    colour: Sequence[int] = TUNED,
    prompts: SlicePrompts = NO_PROMPTS,
    candidates: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """Draw a slice with its longer side at 720 pixels, in proportion in mm.

    Args:
        levels: (H, W) or (H, W, 3) in 0..255.
        spacing_mm: Row and column spacing.
        mask: (H, W); its outline is drawn and its inside tinted.
        colour: Of the mask.
        prompts: Box and points.
        candidates: (K, H, W), each tinted in a colour of its own, the largest below.
    """
    image = Image.fromarray(np.rint(levels).astype(np.uint8)).convert("RGB")
    size = _shown_size(image.size, spacing_mm)
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    if candidates is not None:
        order = sorted(range(len(candidates)), key=lambda row: -int(candidates[row].sum()))
        for row in order:
            _paint(pixels, _enlarged(candidates[row], size), _CANDIDATES[row % len(_CANDIDATES)], _CANDIDATE_TINT)
    if mask is not None:
        _paint(pixels, _enlarged(mask, size), colour, _TINT)
    found = Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))
    _draw_prompts(ImageDraw.Draw(found), prompts, (size[0] / image.width, size[1] / image.height))
    return found


def data_url(image: Image.Image) -> str:
    """Return a picture as an address that holds all of it, so that no file of it is left on the disk."""
    content = io.BytesIO()
    image.save(content, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _shown_size(size: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[int, int]:
    width, height = size[0] * spacing_mm[1], size[1] * spacing_mm[0]
    scale = _SIDE / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _enlarged(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask at the picture's size with a smooth outline; the mask itself stays as it is."""
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(grey) > 127


def _paint(pixels: NDArray[np.float32], mask: NDArray[np.bool_], colour: Sequence[int], tint: float) -> None:
    rim = mask & ~ndimage.binary_erosion(mask, iterations=_LINE)
    pixels[mask] += tint * (np.array(colour, np.float32) - pixels[mask])
    pixels[rim] = colour


def _draw_prompts(draw: ImageDraw.ImageDraw, prompts: SlicePrompts, scale: tuple[float, float]) -> None:
    if prompts.box is not None:
        x1, y1, x2, y2 = prompts.box
        # The last column and row are inside.
        corners = (x1 * scale[0], y1 * scale[1], (x2 + 1) * scale[0] - 1, (y2 + 1) * scale[1] - 1)
        draw.rectangle(corners, outline=_PROMPT, width=_LINE)
    for x, y, label in prompts.points:
        centre = ((x + 0.5) * scale[0], (y + 0.5) * scale[1])
        around = (centre[0] - _DOT, centre[1] - _DOT, centre[0] + _DOT, centre[1] + _DOT)
        draw.ellipse(around, fill=_PROMPT if label else _NEGATIVE, outline="white", width=2)
