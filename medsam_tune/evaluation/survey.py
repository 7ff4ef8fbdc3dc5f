"""What a data set looks like in figures: how large its images, pixels and objects are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medsam_tune.data.base import VoxelSize
from medsam_tune.evaluation.figure_style import FIRST_COLOUR, png_of, style
from medsam_tune.samples import Sample

_MOST_SIZES = 3


@dataclass(frozen=True)
class Survey:
    """Hold what was measured over some images of a data set.

    Attributes:
        n_images: Images that were looked at.
        facts: Sizes, spacing and objects an image, in words.
        labels: Rows (label, images that show it, objects, median size as text).
        sizes: Size of each object.
        size_unit: ``mm2``, or ``px`` where a file states no spacing.
    """

    n_images: int
    facts: Mapping[str, str]
    labels: Sequence[tuple[str, int, int, str]]
    sizes: Sequence[float]
    size_unit: str


def survey(items: Iterable[tuple[Sample, VoxelSize | None]], label_names: Mapping[int, str]) -> Survey:
    """Measure images.

    Args:
        items: Each image with the size of its pixels, its masks one object a row.
        label_names: Name of each label.
    """
    image_sizes: Counter[str] = Counter()
    spacings: Counter[str] = Counter()
    objects: list[tuple[int, int, int, float]] = []  # image, label, pixels, mm2
    n_images = 0
    for number, (sample, voxel) in enumerate(items):
        n_images += 1
        height, width = sample.image.shape[-2:]
        image_sizes[f"{width} x {height} px"] += 1
        spacings[_spacing(voxel)] += 1
        area = float("nan") if voxel is None else voxel.row_mm * voxel.column_mm
        for label, pixels in zip(sample.labels.tolist(), sample.masks.areas().tolist(), strict=True):
            if pixels:
                objects.append((number, label, pixels, pixels * area))
    known = not any(np.isnan(mm2) for *_, mm2 in objects)
    sizes = [mm2 if known else float(pixels) for _, _, pixels, mm2 in objects]
    unit = "mm2" if known and objects else "px"
    facts = {
        "image sizes (width x height)": _counted(image_sizes, n_images),
        "pixel spacing": _counted(spacings, n_images),
        "objects an image": _objects_an_image([image for image, *_ in objects], n_images),
    }
    return Survey(n_images, facts, _by_label(objects, sizes, label_names), sizes, unit)


def draw_histogram(sizes: Sequence[float], unit: str) -> bytes | None:
    """Draw how large objects are, on a logarithmic axis, and return the PNG; None without an object."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    values = np.asarray([size for size in sizes if size > 0], np.float64)
    if not values.size:
        return None
    figure = Figure(figsize=(6.4, 2.3), dpi=120, layout="constrained")
    axes = figure.subplots()
    low, high = values.min(), values.max()
    edges = np.geomspace(low, high, 25) if high > 1.01 * low else np.array([0.9 * low, 1.1 * low])
    edges[[0, -1]] = min(edges[0], low), max(edges[-1], high)
    axes.hist(values, bins=edges.tolist(), color=FIRST_COLOUR)
    axes.set_xscale("log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(lambda value, _: _readable(value))
    axes.xaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    style(axes, "Size of the objects", f"size of an object ({unit.replace('mm2', 'mm²')})")
    return png_of(figure)


def spread(count: int, limit: int) -> list[int]:
    """Return up to ``limit`` of ``count`` positions, evenly spread.

    Example:
        >>> spread(10, 4)
        [0, 3, 6, 9]
        >>> spread(2, 4)
        [0, 1]
    """
    return sorted({int(place) for place in np.linspace(0, count - 1, min(count, limit)).round()}) if count else []


def _readable(size: float) -> str:
    return f"{size:,.0f}" if size >= 100 else f"{size:.3g}"


def _spacing(voxel: VoxelSize | None) -> str:
    if voxel is None:
        return "not stated"
    between = "" if voxel.slice_mm is None else f", slices {voxel.slice_mm:.3g} mm apart"
    return f"{voxel.column_mm:.3g} x {voxel.row_mm:.3g} mm{between}"


def _counted(found: Counter[str], total: int) -> str:
    """Write the most frequent values, each with its share where there are several."""
    if len(found) == 1:
        return next(iter(found))
    ordered = sorted(found.items(), key=lambda each: (-each[1], each[0]))
    shown = [f"{value} ({100 * count / total:.0f} %)" for value, count in ordered[:_MOST_SIZES]]
    others = len(ordered) - len(shown)
    return ", ".join(shown) + (f", {others} others" if others else "")


def _objects_an_image(images: Sequence[int], n_images: int) -> str:
    if not n_images:
        return "no image"
    counts = np.bincount(np.asarray(images, np.int64), minlength=n_images)
    empty = int((counts == 0).sum())
    without = f"; {empty} of {n_images} images show none" if empty else ""
    return f"median {np.median(counts):g}, {counts.min()} to {counts.max()}{without}"


def _by_label(
    objects: Sequence[tuple[int, int, int, float]], sizes: Sequence[float], names: Mapping[int, str]
) -> list[tuple[str, int, int, str]]:
    rows = []
    for label in sorted({label for _, label, *_ in objects} | set(names)):
        own = [(image, size) for (image, found, *_), size in zip(objects, sizes, strict=True) if found == label]
        median = _readable(float(np.median([size for _, size in own]))) if own else "\N{EN DASH}"
        rows.append((names.get(label, f"label {label}"), len({image for image, _ in own}), len(own), median))
    return rows
