"""Dice against what an adapter costs: trained parameters and bytes on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medsam_tune.evaluation.figure_style import png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE = "#2F8FD0"
_GREY = "#7d8590"


@dataclass(frozen=True)
class SweepPoint:
    """Hold one finished run.

    Attributes:
        label: What was varied, such as ``4``.
        trained: Trained parameters.
        n_bytes: Size of the exported weights.
        dice: Mean test Dice over cases.
        interval: Its 95 % interval, or None where there are too few cases.
    """

    label: str
    trained: int
    n_bytes: int
    dice: float
    interval: tuple[float, float] | None


def draw_sweep(points: Sequence[SweepPoint], *, title: str) -> bytes:
    """Draw Dice with its interval over trained parameters (left) and over the exported size (right) as PNG.

    Raises:
        ValueError: If there is no point.
    """
    if not points:
        raise ValueError("points must hold at least one finished run, got none")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.4), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _panel(left, points, [point.trained for point in points], "trained parameters")
    _panel(right, points, [point.n_bytes / 1000 for point in points], "exported weights (kB)")
    left.set_ylabel("test Dice")
    # The names of values and files may hold the signs that begin a formula.
    figure.suptitle(title, fontsize=11, parse_math=False)
    return png_of(figure, "white")


def _panel(axes: Axes, points: Sequence[SweepPoint], x: Sequence[float], xlabel: str) -> None:
    for point, position in zip(points, x, strict=True):
        if point.interval is not None:
            axes.plot([position, position], point.interval, color=_GREY, linewidth=1)
        at = (position, point.dice)
        axes.annotate(point.label, at, textcoords="offset points", xytext=(5, 5), fontsize=8, parse_math=False)
    axes.plot(x, [point.dice for point in points], "o", color=_BLUE)
    axes.set_xscale("log")
    # One tick a point: on a short logarithmic axis matplotlib's own labels run into each other.
    ticks = _apart(sorted(set(x)))
    axes.set_xticks(ticks, [f"{tick:,.0f}" if tick < 10_000 else f"{tick / 1000:,.0f}k" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(xlabel)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _apart(values: Sequence[float], *, factor: float = 1.3) -> list[float]:
    """Return the values without those that lie within ``factor`` of the one before."""
    kept: list[float] = []
    for value in values:
        if not kept or value >= factor * kept[-1]:
            kept.append(value)
    return kept
