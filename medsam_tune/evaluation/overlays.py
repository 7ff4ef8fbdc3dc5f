"""A slice as a picture with lines over it: truth, prediction, the untuned network's prediction, and the prompts.

The picture is an SVG that stands in the page: lines keep their width when it is enlarged, and each kind can be hidden. A large
image and its masks are reduced to about a panel's pixels before anything is drawn, and each mask is cut to its bounding box.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PANEL_PX = 480  # an image is reduced to this height, or to at most twice that
_WIDEST = 3  # width by height
# Lines round an object that is shown thinner than this are drawn thin: two of 2 px would hide it. A panel is about 260 px wide.
_THIN_PX, _SHOWN_PX = 9.0, 260.0
_JPEG_QUALITY = 85

LineKind = Literal["truth", "tuned", "untuned"]


@dataclass(frozen=True)
class Shape:
    """Hold one mask that is not empty, cut to its bounding box; eight pixels a byte, as a panel may show hundreds.

    Attributes:
        top: Row of the box in the panel's image.
        left: Column of it.
        size: (h, w) of the box.
        bits: Its pixels, row by row.
    """

    top: int
    left: int
    size: tuple[int, int]
    bits: NDArray[np.uint8]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Return the box's pixels (h, w) bool."""
        height, width = self.size
        return np.unpackbits(self.bits, count=height * width).reshape(height, width).astype(np.bool_)


@dataclass(frozen=True)
class PanelPrompts:
    """Hold what the network was asked with, in pixels of an image or of a panel.

    Attributes:
        boxes: (x1, y1, x2, y2), the edges of the outermost pixels.
        points: (x, y, label): 1 foreground, 0 background.
    """

    boxes: Sequence[tuple[float, float, float, float]] = ()
    points: Sequence[tuple[float, float, int]] = ()


@dataclass(frozen=True)
class OverlaySlice:
    """Hold what one panel shows, all of it reduced by the same step.

    Attributes:
        image: (H, W, 3) uint8.
        truth: Objects of the ground truth.
        prediction: Predicted objects.
        untuned: What the untuned network predicts under the same queries.
        prompts: What both were asked with.
        title: Short text above the panel; may be empty.
        spacing_mm: Row and column spacing; a panel keeps the true proportions.
    """

    image: NDArray[np.uint8]
    truth: Sequence[Shape] = ()
    prediction: Sequence[Shape] = ()
    untuned: Sequence[Shape] = ()
    prompts: PanelPrompts = PanelPrompts()
    title: str = ""
    spacing_mm: tuple[float, float] = (1.0, 1.0)


def panel_step(height: int, width: int) -> int:
    """Return how many pixels of an image become one, so that as many are left as a panel has, or up to twice as many."""
    return max(1, height // _PANEL_PX, width // (_WIDEST * _PANEL_PX))


def panel_image(image: Tensor, step: int) -> NDArray[np.uint8]:
    """Average ``step`` x ``step`` pixels of an image (3, H, W) in 0..255 into (h, w, 3) uint8."""
    reduced = F.avg_pool2d(image, step, ceil_mode=True, count_include_pad=False) if step > 1 else image
    pixels: NDArray[np.uint8] = reduced.clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return pixels


def panel_shapes(masks: Iterable[Tensor], step: int) -> list[Shape]:
    """Reduce masks (H, W) bool and cut them out; a reduced pixel belongs to an object that touches it, so none is lost."""
    shapes = []
    for mask in masks:
        reduced = _touched(mask, step).cpu().numpy()
        rows, columns = np.flatnonzero(reduced.any(axis=1)), np.flatnonzero(reduced.any(axis=0))
        if rows.size:
            cut = reduced[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            shapes.append(Shape(int(rows[0]), int(columns[0]), (cut.shape[0], cut.shape[1]), np.packbits(cut)))
    return shapes


def panel_prompts(boxes: Tensor | None, points: Tensor | None, labels: Tensor | None) -> PanelPrompts:
    """Return prompts in pixels of the image as stored, as edges and middles of pixels.

    Args:
        boxes: (N, 4) XYXY, the last column and row included, or None.
        points: (N, P, 2) in (x, y), or None.
        labels: (N, P): 1 foreground, 0 background, others are no points; None without points.
    """
    edges = [] if boxes is None else [(x1, y1, x2 + 1, y2 + 1) for x1, y1, x2, y2 in boxes.tolist()]
    clicks = []
    if points is not None and labels is not None:
        places = points.flatten(0, 1).tolist()
        clicks = [(x + 0.5, y + 0.5, int(k)) for (x, y), k in zip(places, labels.flatten().tolist(), strict=True) if k >= 0]
    return PanelPrompts(edges, clicks)


def joined_prompts(parts: Sequence[PanelPrompts], step: int) -> PanelPrompts:
    """Return the prompts of an image's parts together, where ``step`` pixels become one."""
    return PanelPrompts(
        [(x1 / step, y1 / step, x2 / step, y2 / step) for part in parts for x1, y1, x2, y2 in part.boxes],
        [(x / step, y / step, label) for part in parts for x, y, label in part.points],
    )


def draw_slice(overlay: OverlaySlice, *, name: str) -> str:
    """Return the panel as an SVG element, to stand in a page that styles its classes.

    Args:
        overlay: What it shows.
        name: Begins the identifiers of its lines; unique within the page, without blanks.
    """
    height, width = overlay.image.shape[:2]
    across, down = _proportions(overlay)
    kinds: dict[LineKind, Sequence[Shape]] = {
        "truth": overlay.truth,
        "untuned": overlay.untuned,
        "tuned": overlay.prediction,
    }
    inner = "".join(_lines(kind, shapes, f"{name}-{kind}", width) for kind, shapes in kinds.items())
    source = f"data:image/{_picture(overlay.image)}"
    return (
        f'<svg viewBox="0 0 {_short(width * across)} {_short(height * down)}" role="img" aria-label="{escape(overlay.title)}">'
        f'<g transform="scale({across:.6g} {down:.6g})">'
        f'<image href="{source}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f"{inner}{_prompt_marks(overlay.prompts)}</g></svg>"
    )


def _proportions(overlay: OverlaySlice) -> tuple[float, float]:
    """Return by how much columns and rows are stretched, so that a millimetre is equally long both ways."""
    height, width = overlay.image.shape[:2]
    row_mm, column_mm = overlay.spacing_mm
    # Beyond that a panel would be a thin line; such a slice is squeezed.
    wanted = float(np.clip(width * column_mm / (height * row_mm), 1 / _WIDEST, _WIDEST)) * height / width
    return (wanted, 1.0) if wanted > 1 else (1.0, 1 / wanted)


def _picture(image: NDArray[np.uint8]) -> str:
    """Return kind and content of an image file, whichever of two kinds is smaller."""
    from PIL import Image

    grey = bool((image == image[..., :1]).all())
    shown = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    files = []
    for kind, settings in (("png", {"optimize": True}), ("jpeg", {"quality": _JPEG_QUALITY})):
        buffer = BytesIO()
        shown.save(buffer, format=kind.upper(), **settings)
        files.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, content = min(files)
    return f"{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _lines(kind: LineKind, shapes: Sequence[Shape], name: str, width: int) -> str:
    """Return the outlines of one kind: a dark rim below, that they stay apart from any image, and the line."""
    paths = [path for shape in shapes for path in _outline(shape)]
    if not paths:
        return ""
    thin = " thin" if _thickness(shapes) * _SHOWN_PX / width < _THIN_PX else ""
    return (
        f'<defs><path id="{name}" vector-effect="non-scaling-stroke" d="{"".join(paths)}"/></defs>'
        f'<use href="#{name}" class="rim {kind}{thin}"/><use href="#{name}" class="{kind}{thin}"/>'
    )


def _thickness(shapes: Sequence[Shape]) -> float:
    """Return how wide objects are, in pixels of the panel: twice the area by the length of the outline, at the median."""
    widths = []
    for shape in shapes:
        framed = np.pad(shape.mask, 1)
        sides = sum(np.count_nonzero(framed != np.roll(framed, 1, axis)) for axis in (0, 1))
        widths.append(2 * np.count_nonzero(framed) / sides)
    return float(np.median(widths))


def _outline(shape: Shape) -> Iterator[str]:
    """Yield the closed lines around a mask, in pixels of the panel's image whose first one begins at 0."""
    from contourpy import contour_generator

    # A rim of background closes the contour, also of an object that touches the border.
    framed = np.pad(shape.mask, 1).astype(np.float32)
    for line in contour_generator(z=framed, name="serial", line_type="Separate").lines(0.5):
        # Halves of a pixel: a pixel's middle lies half a pixel behind its edge.
        halves = np.rint(2 * (np.asarray(line) + np.array([shape.left - 0.5, shape.top - 0.5]))).astype(int)
        corners = _corners(halves[:-1])
        yield "M" + "L".join(f"{_half(x)} {_half(y)}" for x, y in corners) + "Z"


def _corners(points: NDArray[np.int_]) -> NDArray[np.int_]:
    """Drop the points of a closed line that lie on the way between their neighbours."""
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    bends = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept: NDArray[np.int_] = points[bends] if bends.any() else points
    return kept


def _prompt_marks(prompts: PanelPrompts) -> str:
    """Return boxes, and points as dots that are round on the object and square beside it."""
    effect = 'vector-effect="non-scaling-stroke"'
    marks = [
        f'<path class="prompt" {effect} d="M{_short(x1)} {_short(y1)}H{_short(x2)}V{_short(y2)}H{_short(x1)}Z"/>'
        for x1, y1, x2, y2 in prompts.boxes
    ]
    for x, y, label in prompts.points:
        place = f'{effect} d="M{_short(x)} {_short(y)}h0"'
        marks += [f'<path class="{kind} {"click" if label else "click off"}" {place}/>' for kind in ("rim", "prompt")]
    return "".join(marks)


def _half(doubled: int) -> str:
    return str(doubled // 2) if doubled % 2 == 0 else f"{doubled / 2:.1f}"


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _touched(mask: Tensor, step: int) -> Tensor:
    """Return (h, w) bool: whether any of ``step`` x ``step`` pixels of (H, W) is set."""
    if step == 1:
        return mask
    height, width = mask.shape
    padded = F.pad(mask, (0, -width % step, 0, -height % step))
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    return blocks.any(dim=3).any(dim=1)
