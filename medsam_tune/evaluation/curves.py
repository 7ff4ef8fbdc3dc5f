"""Curves of a training, from the ``metrics.csv`` that Lightning's CSVLogger writes and the ``epochs.csv`` of the run."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.errors import DataError
from medsam_tune.evaluation.figure_style import FIRST_COLOUR, GREY, SECOND_COLOUR, png_of, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = list[tuple[float, float]]
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


def draw_curves(path: Path, epochs: Path | None = None) -> bytes | None:
    """Draw losses, validation Dice and IoU and the learning rate over the optimizer step, and the seconds of each epoch.

    Args:
        path: ``metrics.csv``.
        epochs: ``epochs.csv``, which may be missing.

    Returns:
        The PNG; None where there is nothing to draw.

    Raises:
        DataError: If ``path`` is missing, or a file is no table of metrics.
    """
    from matplotlib.figure import Figure

    series = read_metrics(path)
    seconds = read_metrics(epochs).get("seconds", []) if epochs is not None and epochs.is_file() else []
    series = {name: points for name, points in series.items() if name != "lr" or len(points) > 1}
    series |= {"seconds": seconds} if len(seconds) > 1 else {}
    titles = {"Loss": _losses(series), "Validation": _scores(series), "Learning rate": ["lr"], "Seconds an epoch": ["seconds"]}
    panels = {title: names for title, names in titles.items() if names and all(name in series for name in names)}
    if not panels:
        return None
    rows, columns = (len(panels) + 1) // 2, min(2, len(panels))
    figure = Figure(figsize=(4.6 * columns, 2.7 * rows), dpi=120, layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, names) in zip(places, panels.items(), strict=False):
        if title in ("Loss", "Validation"):
            _draw(axes, title, {name: series[name] for name in names})
        else:
            _draw_as_it_is(axes, title, series[names[0]])
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    return png_of(figure)


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
    """Draw losses and figures, which scatter: a long curve is smoothed."""
    for (name, points), colour in zip(series.items(), (FIRST_COLOUR, SECOND_COLOUR), strict=False):
        steps, values = [step for step, _ in points], [value for _, value in points]
        label = name.replace("/loss_step", "/loss")
        if len(values) >= _SMOOTHED_FROM:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smooth(values), color=colour, linewidth=1.8, label=f"{label}, smoothed")
        else:
            axes.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=3, label=label)
    style(axes, title, "optimizer step")
    axes.legend(
        frameon=False, fontsize=8, labelcolor=GREY, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=2, borderaxespad=0.2
    )


def _draw_as_it_is(axes: Axes, title: str, points: Series) -> None:
    axes.plot([step for step, _ in points], [value for _, value in points], color=FIRST_COLOUR, linewidth=1.8, label=title)
    axes.set_ylim(bottom=0)
    style(axes, title, "optimizer step")


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Average exponentially, starting from the first value."""
    smoothed = [values[0]]
    for value in values[1:]:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value)
    return smoothed
