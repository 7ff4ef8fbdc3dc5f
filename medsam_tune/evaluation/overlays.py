"""Ground truth and prediction drawn as contours over the image, readable from 35 pixels upwards.

A large image and its masks are reduced to about a panel's pixels before anything is drawn, and each mask is cut to its bounding
box: matplotlib takes some 50 bytes a pixel for a contour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path
    from numpy.typing import NDArray

# Two of the eight colours that Okabe and Ito (2008, "Color Universal Design") chose for every kind of colour vision.
TRUTH_COLOUR = "#56B4E9"
PREDICTION_COLOUR = "#E69F00"
# One row of panels fills the report's page, so that lines and text come out equally large whatever the panels' proportions.
_ROW_INCHES = 9.0
_PANEL_INCHES = 3.2
_TITLE_INCHES = 0.26
_GAP_INCHES = 0.07
_DPI = 150
_WIDEST = 3  # width by height


@dataclass(frozen=True)
class Shape:
    """Hold one mask that is not empty, cut to its bounding box.

    Attributes:
        top: Row of the box in the panel's image.
        left: Column of it.
        mask: (h, w) bool.
    """

    top: int
    left: int
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class OverlaySlice:
    """Hold what one panel shows, all of it reduced by the same step.

    Attributes:
        image: (H, W, 3) uint8.
        truth: Objects of the ground truth.
        prediction: Predicted objects.
        title: Short text above the panel, drawn literally; may be empty.
        spacing_mm: Row and column spacing; a panel keeps the true proportions.
    """

    image: NDArray[np.uint8]
    truth: Sequence[Shape]
    prediction: Sequence[Shape]
    title: str = ""
    spacing_mm: tuple[float, float] = (1.0, 1.0)


def panel_step(height: int, width: int) -> int:
    """Return how many pixels of an image become one, so that as many are left as a panel has, or up to twice as many."""
    panel = int(_PANEL_INCHES * _DPI)
    return max(1, height // panel, width // (_WIDEST * panel))


def panel_image(image: Tensor, step: int) -> NDArray[np.uint8]:
    """Average ``step`` x ``step`` pixels of an image (3, H, W) in 0..255 into (h, w, 3) uint8."""
    reduced = F.avg_pool2d(image, step, ceil_mode=True, count_include_pad=False) if step > 1 else image
    pixels: NDArray[np.uint8] = reduced.clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return pixels


def panel_shapes(masks: Tensor, step: int) -> list[Shape]:
    """Reduce masks (N, H, W) bool and cut them out; a reduced pixel belongs to an object that touches it, so none is lost."""
    shapes = []
    for mask in masks:
        reduced = _touched(mask, step).cpu().numpy()
        rows, columns = np.flatnonzero(reduced.any(axis=1)), np.flatnonzero(reduced.any(axis=0))
        if rows.size:
            cut = reduced[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            shapes.append(Shape(int(rows[0]), int(columns[0]), cut.copy()))
    return shapes


def draw_overlays(slices: Sequence[OverlaySlice]) -> bytes:
    """Draw slices side by side and return the PNG.

    Ground truth is a solid blue line, the prediction a dashed orange one above it, both with a dark rim, so that they stay
    apart without colour and on any image.

    Raises:
        ValueError: If there is no slice.
    """
    # The object interface: pyplot would keep global state and pick a window system.
    from matplotlib.figure import Figure

    if not slices:
        raise ValueError("slices must hold at least one slice, got none.")
    widths = [_proportion(s) for s in slices]
    gaps = _GAP_INCHES * (len(slices) - 1)
    height = min(_PANEL_INCHES, (_ROW_INCHES - gaps) / sum(widths))
    title = _TITLE_INCHES if any(s.title for s in slices) else 0.0
    figure = Figure(figsize=(height * sum(widths) + gaps, height + title), dpi=_DPI)
    mean_width = height * sum(widths) / len(widths)
    axes = figure.subplots(1, len(slices), squeeze=False, width_ratios=widths, gridspec_kw={"wspace": _GAP_INCHES / mean_width})
    figure.subplots_adjust(left=0, right=1, bottom=0, top=height / (height + title))
    for panel, overlay, width in zip(axes[0], slices, widths, strict=True):
        _draw_panel(panel, overlay, width_inches=height * width)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def _proportion(overlay: OverlaySlice) -> float:
    height, width = overlay.image.shape[:2]
    row_mm, column_mm = overlay.spacing_mm
    # Beyond that a panel would be a thin line; such a slice is squeezed.
    return float(np.clip(width * column_mm / (height * row_mm), 1 / _WIDEST, _WIDEST))


def _draw_panel(axes: Axes, overlay: OverlaySlice, *, width_inches: float) -> None:
    axes.imshow(overlay.image, interpolation="bicubic", aspect="auto")
    _draw_outlines(axes, overlay.truth, TRUTH_COLOUR, "solid")
    _draw_outlines(axes, overlay.prediction, PREDICTION_COLOUR, "dashed")
    height, width = overlay.image.shape[:2]
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_axis_off()
    if overlay.title:
        # Mid grey reads on the light and on the dark page. A name may hold the signs that begin a formula.
        axes.set_title(_shorten(overlay.title, width_inches), fontsize=9, color="#7d8590", pad=4, parse_math=False)


def _shorten(title: str, width_inches: float) -> str:
    """Keep the end of a title that is wider than its panel: a slice's name differs from its neighbour's there."""
    # 9 points of DejaVu Sans are about 0.075 inches a letter.
    letters = max(4, int(width_inches / 0.075))
    return title if len(title) <= letters else f"...{title[3 - letters :]}"


def _draw_outlines(axes: Axes, shapes: Sequence[Shape], colour: str, style: str) -> None:
    from matplotlib.collections import PathCollection

    paths = [path for shape in shapes for path in _outline(axes, shape)]
    for line_colour, width, line_style, alpha in (("black", 2.6, "solid", 0.45), (colour, 1.5, style, 1.0)):
        lines = PathCollection(
            paths, facecolors="none", edgecolors=line_colour, linewidths=width, linestyles=line_style, alpha=alpha
        )
        axes.add_collection(lines, autolim=False)


def _outline(axes: Axes, shape: Shape) -> Sequence[Path]:
    """Return the lines around a mask in pixels of the panel's image."""
    # A rim of background closes the contour, also of an object that touches the border.
    framed = np.pad(shape.mask, 1).astype(np.float32)
    height, width = shape.mask.shape
    columns, rows = shape.left + np.arange(-1, width + 1), shape.top + np.arange(-1, height + 1)
    contours = axes.contour(columns, rows, framed, levels=[0.5])
    # It would keep its grids until the picture is written: of a few hundred objects, gigabytes.
    contours.remove()
    return contours.get_paths()


def _touched(mask: Tensor, step: int) -> Tensor:
    """Return (h, w) bool: whether any of ``step`` x ``step`` pixels of (H, W) is set."""
    if step == 1:
        return mask
    height, width = mask.shape
    padded = F.pad(mask, (0, -width % step, 0, -height % step))
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    return blocks.any(dim=3).any(dim=1)
