"""Loss and Dice curves from the ``metrics.csv`` that Lightning's CSVLogger writes."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = list[tuple[float, float]]
# Blue and orange, apart for every kind of colour vision, at a lightness that reads on a white and on a nearly black page.
_COLOURS = ("#2F8FD0", "#DB6D1D")
_GREY = "#7d8590"
_SMOOTHED_FROM = 60


def read_metrics(path: Path) -> dict[str, Series]:
    """Read a sparse table of metrics.

    Args:
        path: CSV with a column ``step`` and one column per metric; a cell is empty where the row did not log it.

    Returns:
        (step, value) pairs of each metric in the order of the file; cells that are no finite number are left out.

    Raises:
        DataError: If the file is missing or has no column ``step``.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Train with a CSV logger (the default) to get curves.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames or () if name not in ("step", "epoch")]
        if "step" not in (reader.fieldnames or ()):
            raise DataError(
                f"{path}: has no column step, only {', '.join(columns) or 'nothing'}. Give the CSVLogger's metrics.csv."
            )
        series: dict[str, Series] = {name: [] for name in columns}
        for row in reader:
            step = _number(row["step"])
            for name in columns:
                value = _number(row[name])
                if step is not None and value is not None:
                    series[name].append((step, value))
    return {name: points for name, points in series.items() if points}


def draw_curves(path: Path) -> bytes | None:
    """Draw loss (left) and validation Dice and IoU (right) over the optimizer step; None where the file holds neither.

    Raises:
        DataError: If the file is missing or no metrics table.
    """
    from matplotlib.figure import Figure

    series = read_metrics(path)
    panels = [(title, names) for title, names in (("Loss", _losses(series)), ("Validation", _scores(series))) if names]
    if not panels:
        return None
    figure = Figure(figsize=(4.6 * len(panels), 2.9), dpi=120, layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, title, {name: series[name] for name in names})
    buffer = BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _losses(series: Mapping[str, Series]) -> list[str]:
    """Return the total losses: ``train/loss_step`` or else ``train/loss``, and ``val/loss``; terms have names of their own."""
    training = [name for name in ("train/loss_step", "train/loss", "train/loss_epoch") if name in series]
    return training[:1] + [name for name in ("val/loss",) if name in series]


def _scores(series: Mapping[str, Series]) -> list[str]:
    return [name for name in ("val/dice", "val/iou") if name in series]


def _draw(axes: Axes, title: str, series: Mapping[str, Series]) -> None:
    for (name, points), colour in zip(series.items(), _COLOURS, strict=False):
        steps, values = [step for step, _ in points], [value for _, value in points]
        label = name.replace("/loss_step", "/loss")
        if len(values) >= _SMOOTHED_FROM:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values), color=colour, linewidth=1.8, label=f"{label}, smoothed")
        else:
            axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3, label=label)
    _style(axes, title)


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Average exponentially, starting from the first value."""
    smoothed = [values[0]]
    for value in values[1:]:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value)
    return smoothed


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, color=_GREY, loc="left")
    axes.set_xlabel("optimizer step", fontsize=8.5, color=_GREY)
    axes.tick_params(colors=_GREY, labelsize=8)
    axes.grid(color=_GREY, alpha=0.2, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GREY)
    axes.legend(
        frameon=False, fontsize=8, labelcolor=_GREY, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=2, borderaxespad=0.2
    )
