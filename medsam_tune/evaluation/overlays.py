"""Ground truth and prediction drawn as contours over the image, readable from 35 pixels upwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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


@dataclass(frozen=True)
class OverlaySlice:
    """Hold what one panel shows.

    Attributes:
        image: (H, W, 3) uint8.
        masks: (N, H, W) bool ground truth.
        prediction: (N, H, W) bool, the objects in the same order.
        title: Short text above the panel; may be empty.
        spacing_mm: Row and column spacing; a panel keeps the true proportions.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    title: str = ""
    spacing_mm: tuple[float, float] = (1.0, 1.0)


def pick_slices(slices: Sequence[OverlaySlice], *, count: int = 4) -> list[OverlaySlice]:
    """Return up to ``count`` slices of a case with most foreground (true or predicted), in their original order."""
    pixels = [int(s.masks.sum()) + int(s.prediction.sum()) for s in slices]
    largest = sorted(range(len(slices)), key=lambda index: -pixels[index])[:count]
    return [slices[index] for index in sorted(largest)]


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
    # Beyond 3 to 1 a panel would be a thin line; such a slice is squeezed.
    return float(np.clip(width * column_mm / (height * row_mm), 1 / 3, 3.0))


def _draw_panel(axes: Axes, overlay: OverlaySlice, *, width_inches: float) -> None:
    axes.imshow(overlay.image, interpolation="bicubic", aspect="auto")
    for mask in overlay.masks:
        _draw_contour(axes, mask, TRUTH_COLOUR, "solid")
    for mask in overlay.prediction:
        _draw_contour(axes, mask, PREDICTION_COLOUR, "dashed")
    axes.set_axis_off()
    if overlay.title:
        # Mid grey reads on the light and on the dark page.
        axes.set_title(_shorten(overlay.title, width_inches), fontsize=9, color="#7d8590", pad=4)


def _shorten(title: str, width_inches: float) -> str:
    """Keep the end of a title that is wider than its panel: a slice's name differs from its neighbour's there."""
    # 9 points of DejaVu Sans are about 0.075 inches a letter.
    letters = max(4, int(width_inches / 0.075))
    return title if len(title) <= letters else f"...{title[3 - letters :]}"


def _draw_contour(axes: Axes, mask: NDArray[np.bool_], colour: str, style: str) -> None:
    if not mask.any():
        return
    # A rim of background closes the contour of an object that touches the border.
    framed = np.pad(mask, 1).astype(np.float32)
    height, width = mask.shape
    columns, rows = np.arange(-1, width + 1), np.arange(-1, height + 1)
    axes.contour(columns, rows, framed, levels=[0.5], colors="black", linewidths=2.6, alpha=0.45)
    axes.contour(columns, rows, framed, levels=[0.5], colors=colour, linewidths=1.5, linestyles=style)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
