"""Points over two axes as an SVG element that takes the colours of its page, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 320.0, 250.0
# At the right there is room for half of the last number below.
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 24.0, 26.0, 40.0
_LINES = 4


@dataclass(frozen=True)
class Point:
    """Hold one point.

    Attributes:
        x: Place across.
        y: Place upwards.
        name: What is read where the pointer rests.
        label: Short text beside the point; none by default.
        low: Lower end of its interval, or None.
        high: Upper end.
        is_untuned: Whether it is the untuned network's, which has a colour of its own.
    """

    x: float
    y: float
    name: str
    label: str = ""
    low: float | None = None
    high: float | None = None
    is_untuned: bool = False


@dataclass(frozen=True)
class Axes:
    """Say what the axes are.

    Attributes:
        title: Above the plot.
        x: What lies across.
        y: What lies upwards.
        is_log: Whether the axis across is logarithmic.
        has_diagonal: Whether the line of equal values is drawn; both axes then have one range.
    """

    title: str
    x: str
    y: str
    is_log: bool = False
    has_diagonal: bool = False


def scatter(points: Sequence[Point], axes: Axes) -> str:
    """Return the plot; a point without a finite place is left out, and with none left the text is empty."""
    kept = [point for point in points if math.isfinite(point.y) and math.isfinite(point.x) and (point.x > 0 or not axes.is_log)]
    if not kept:
        return ""
    across = [math.log10(point.x) if axes.is_log else point.x for point in kept]
    ends = [end for point in kept for end in (point.low, point.high) if end is not None]
    upward = [*(point.y for point in kept), *ends]
    x_range = _range([*across, *upward] if axes.has_diagonal else across)
    y_range = x_range if axes.has_diagonal else _range(upward)
    parts = [_grid(x_range, y_range, axes)]
    if axes.has_diagonal:
        low, high = _place(x_range[0], x_range[0], x_range, y_range), _place(x_range[1], x_range[1], x_range, y_range)
        parts.append(f'<path class="rule" d="M{low[0]:.1f} {low[1]:.1f}L{high[0]:.1f} {high[1]:.1f}"/>')
    for x, point in zip(across, kept, strict=True):
        parts.append(_mark(point, x, x_range, y_range))
    label = f"{axes.title}: {axes.y} over {axes.x}"
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}">'
        f'<text class="title" x="0" y="14">{escape(axes.title)}</text>{"".join(parts)}'
        f'<text x="{middle:g}" y="{_HEIGHT - 6:g}" text-anchor="middle">{escape(axes.x)}</text></svg>'
    )


def _mark(point: Point, x: float, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
    left, top = _place(x, point.y, x_range, y_range)
    whisker = ""
    if point.low is not None and point.high is not None:
        low, high = (_place(x, end, x_range, y_range)[1] for end in (point.low, point.high))
        whisker = f'<path class="whisker" d="M{left:.1f} {low:.1f}V{high:.1f}"/>'
    kind = "dot other" if point.is_untuned else "dot"
    circle = f'<circle class="{kind}" cx="{left:.1f}" cy="{top:.1f}" r="4"><title>{escape(point.name)}</title></circle>'
    if not point.label:
        return whisker + circle
    # Text to the left of a point at the right end stays inside.
    shift, anchor = (-7, "end") if left > _WIDTH - _RIGHT - 40 else (7, "start")
    place = f'x="{left + shift:.1f}" y="{top - 5:.1f}" text-anchor="{anchor}"'
    return f'{whisker}{circle}<text class="mark" {place}>{escape(point.label)}</text>'


def _grid(x_range: tuple[float, float], y_range: tuple[float, float], axes: Axes) -> str:
    parts = []
    for step in range(_LINES + 1):
        share = step / _LINES
        x, y = (low + share * (high - low) for low, high in (x_range, y_range))
        left, top = _place(x, y, x_range, y_range)
        below = _number(10**x if axes.is_log else x)
        parts.append(
            f'<path class="grid" d="M{_LEFT:g} {top:.1f}H{_WIDTH - _RIGHT:g}"/>'
            f'<text x="{_LEFT - 5:g}" y="{top + 4:.1f}" text-anchor="end">{y:.2f}</text>'
            f'<text x="{left:.1f}" y="{_HEIGHT - _BOTTOM + 15:g}" text-anchor="middle">{below}</text>'
        )
    return "".join(parts)


def _place(x: float, y: float, x_range: tuple[float, float], y_range: tuple[float, float]) -> tuple[float, float]:
    across = (x - x_range[0]) / (x_range[1] - x_range[0])
    up = (y - y_range[0]) / (y_range[1] - y_range[0])
    return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or max(0.05, 0.05 * abs(high))
    return low - room, high + room


def _number(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
