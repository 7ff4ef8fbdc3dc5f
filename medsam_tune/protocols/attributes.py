"""What an object is like: its size, shape, contrast and outline, to be held against how well it is segmented.

Paper: Huang et al. 2024, Medical Image Analysis 92:103061, whose code for attributes was not released.

Differs from the paper:
- The Fourier order stops for want of gain only after ``patience`` orders without it. At the first such order, as the paper has
  it, star shapes that need 11 orders or more stop at the second.
- Only the outer outline of the largest piece is described.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam_tune.prompts.sampling import Mask
from medsam_tune.protocols.mazurowski import pieces_of
from medsam_tune.protocols.questions import box_sides, tight_box

RING = 0.1
GOOD_DICE, LEAST_GAIN = 0.97, 0.001
MOST_ORDERS, PATIENCE = 40, 3
_DRAWN_SIDE = 256
_Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Attributes:
    """Hold the attributes of one object.

    Attributes:
        area: Pixels.
        aspect: Short side of its box over the long one.
        contrast: Absolute difference of the mean grey value, 0..255, inside and in the ring; NaN without a ring.
        fourier_order: How many elliptic harmonics its outline takes, with a residual where they do not suffice.
    """

    area: int
    aspect: float
    contrast: float
    fourier_order: float


def attributes_of(mask: Mask, image: NDArray[np.float32]) -> Attributes:
    """Return the attributes of an object.

    Args:
        mask: (H, W), with a pixel.
        image: (H, W) grey values in 0..255.
    """
    sides = box_sides(tight_box(mask))
    return Attributes(int(mask.sum()), min(sides) / max(sides), ring_contrast(mask, image), fourier_order(mask))


def ring_contrast(mask: Mask, image: NDArray[np.float32]) -> float:
    """Return how much an object's mean grey value differs from that of its ring: its box, a tenth larger, without the object.

    NaN where the object fills that box and the box the image.
    """
    x1, y1, x2, y2 = (int(side) for side in tight_box(mask))
    # At least one pixel on each side, or small objects would have no ring.
    dx, dy = (max(1, round(RING * side / 2)) for side in box_sides(tight_box(mask)))
    area = slice(max(0, y1 - dy), y2 + dy + 1), slice(max(0, x1 - dx), x2 + dx + 1)
    outside = ~mask[area]
    if not outside.any():
        return float("nan")
    return float(abs(image[mask].mean(dtype=np.float64) - image[area][outside].mean(dtype=np.float64)))


def fourier_order(mask: Mask, *, patience: int = PATIENCE) -> float:
    """Return how many elliptic harmonics the outline of the largest piece of a mask (H, W) takes.

    The smallest order F whose curve has a Dice above 0.97 with the outline, or the best one before ``patience`` orders in a row
    gained less than 0.001 each; then F + 200 (1 - Dice), so that outlines which no order describes well count as complex.

    Args:
        mask: With a pixel.
        patience: 1 stops as the paper says.

    Source: Kuhl and Giardina 1982, Elliptic Fourier features of a closed contour; the order is that of Huang et al.
    """
    curve = outline_curve(pieces_of(mask)[0])
    target = _filled(curve, curve)
    best, best_order, without = 0.0, 1, 0
    for order in range(1, MOST_ORDERS + 1):
        dice = _dice(_filled(harmonic_curve(curve, order), curve), target)
        without = without + 1 if dice - best < LEAST_GAIN else 0
        if dice > best:
            best, best_order = dice, order
        if dice > GOOD_DICE or without >= patience:
            break
    return best_order + 200 * (1 - best)


def outline_curve(mask: Mask) -> _Curve:
    """Return the outer outline (P, 2) in (x, y) of a connected mask (H, W), closed, half a pixel round its pixels' centres."""
    from contourpy import contour_generator

    lines = contour_generator(z=np.pad(mask, 1).astype(float)).lines(0.5)
    curves = [np.asarray(line, dtype=np.float64) - 1 for line in lines]
    return max(curves, key=lambda curve: float(np.ptp(curve[:, 0]) * np.ptp(curve[:, 1])))


def harmonic_curve(curve: _Curve, order: int, *, points: int = 400) -> _Curve:
    """Return the curve (points, 2) of the first ``order`` elliptic harmonics of a closed curve (P, 2).

    Source: Kuhl and Giardina 1982.
    """
    steps = np.diff(curve, axis=0)
    lengths = np.hypot(*steps.T)
    steps, lengths = steps[lengths > 0], lengths[lengths > 0]
    t = np.concatenate([[0.0], np.cumsum(lengths)])
    total = t[-1]
    n = np.arange(1, order + 1)[:, None]
    angles = 2 * np.pi * n * t / total
    cosines, sines = np.diff(np.cos(angles), axis=1), np.diff(np.sin(angles), axis=1)
    factor = total / (2 * np.pi**2 * n[:, 0] ** 2)
    slopes = steps / lengths[:, None]
    a, b = factor[:, None] * (cosines @ slopes), factor[:, None] * (sines @ slopes)
    # The mean of the curve over its length: its zeroth harmonic.
    kept = np.concatenate([curve[:1], curve[:1] + np.cumsum(steps, axis=0)])
    centre = ((kept[:-1] + kept[1:]) / 2 * lengths[:, None]).sum(axis=0) / total
    phases = 2 * np.pi * n * np.linspace(0, 1, points, endpoint=False)
    drawn: _Curve = centre + np.cos(phases).T @ a + np.sin(phases).T @ b
    return drawn


def _filled(curve: _Curve, frame: _Curve) -> Mask:
    """Fill a curve on a raster in which ``frame`` is 256 pixels long, with room round it."""
    from PIL import Image, ImageDraw

    low = frame.min(axis=0)
    scale = _DRAWN_SIDE / max(float(np.ptp(frame, axis=0).max()), 1e-9)
    corners = (curve - low) * scale + _DRAWN_SIDE / 2
    picture = Image.new("1", (2 * _DRAWN_SIDE, 2 * _DRAWN_SIDE))
    ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in corners], fill=1)
    return np.asarray(picture, dtype=bool)


def _dice(first: Mask, second: Mask) -> float:
    return float(2 * (first & second).sum() / max(1, first.sum() + second.sum()))
