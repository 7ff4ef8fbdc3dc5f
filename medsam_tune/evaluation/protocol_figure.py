"""Curves of several models side by side: panels that share their legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medsam_tune.evaluation.figure_style import FIRST_COLOUR, GREY, SECOND_COLOUR, png_of, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (FIRST_COLOUR, SECOND_COLOUR, "#2CA089", "#9467BD", "#C44E52", GREY)
_LINES, _MARKS = ("-", ":", "--"), ("o", "s", "^")
_WIDTH = 0.6


@dataclass(frozen=True)
class Curve:
    """Hold one curve.

    Attributes:
        name: In the legend; curves of one name look alike in all panels.
        colour: Number of its colour.
        line: 0 whole, 1 dotted, 2 dashed.
        x: Places: numbers, or names that stand side by side.
        y: Values.
        low: Lower ends of the intervals; NaN where there is none.
        high: Upper ends.
    """

    name: str
    colour: int
    line: int
    x: Sequence[float | str]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Hold the curves of one panel with its title and the names of its axes.

    Attributes:
        title: Above.
        x_label: Below.
        y_label: At the left.
        curves: What is drawn.
        joined: Whether places follow one another, so that lines join them; else points with bars stand side by side.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    joined: bool = True


def draw_panels(panels: Sequence[Panel]) -> bytes:
    """Draw panels as PNG, two beside each other, for a white and a dark page; whole curves have their interval shaded.

    Raises:
        ValueError: If there is no panel.
    """
    if not panels:
        raise ValueError("panels must hold at least one, got none")
    from matplotlib.figure import Figure

    # More than two beside each other are too small to read on a page of 800 px.
    across, down = min(2, len(panels)), (len(panels) + 1) // 2
    figure = Figure(figsize=(4.4 * across, 3.2 * down + 0.6), dpi=120, layout="constrained")
    handles: dict[str, Any] = {}
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(down, across, number)
        style(axes, panel.title, panel.x_label)
        axes.set_ylabel(panel.y_label, fontsize=8.5, color=GREY)
        names = list(dict.fromkeys(place for curve in panel.curves for place in curve.x if isinstance(place, str)))
        names = names if panel.joined else sorted(names)
        for number, curve in enumerate(panel.curves):
            places = [names.index(place) if isinstance(place, str) else float(place) for place in curve.x]
            if not panel.joined:
                places = [place + _WIDTH * ((number + 0.5) / len(panel.curves) - 0.5) for place in places]
            handles.setdefault(curve.name, _draw(axes, curve, places, joined=panel.joined))
        if all(isinstance(place, int | float) and place % 1 == 0 for curve in panel.curves for place in curve.x):
            axes.set_xticks(sorted({place for curve in panel.curves for place in curve.x if not isinstance(place, str)}))
        if names:
            axes.set_xticks(range(len(names)), names)
            axes.tick_params(axis="x", labelrotation=20 if max(map(len, names)) > 6 else 0)
        axes.set_ylim(0, 1)
    place: Any = "outside lower center"
    legend = figure.legend(handles.values(), handles, loc=place, ncols=3, frameon=False, fontsize=8, labelcolor=GREY)
    for text in legend.get_texts():
        # The names of files may hold the signs that begin a formula.
        text.set_parse_math(False)
    return png_of(figure)


def _draw(axes: Axes, curve: Curve, places: Sequence[float], *, joined: bool) -> Any:  # noqa: ANN401 - a line or bars
    colour, kind = COLOURS[curve.colour % len(COLOURS)], curve.line % len(_LINES)
    if not joined:
        ends = [[y - low for y, low in zip(curve.y, curve.low, strict=True)]]
        ends.append([high - y for y, high in zip(curve.y, curve.high, strict=True)])
        return axes.errorbar(places, curve.y, ends, fmt=_MARKS[kind], markersize=4, linewidth=1, color=colour)
    if kind == 0:
        axes.fill_between(places, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    look: dict[str, Any] = {"marker": _MARKS[kind], "markersize": 3.5, "linestyle": _LINES[kind], "linewidth": 1.4}
    (line,) = axes.plot(places, curve.y, color=colour, **look)
    return line
