"""What is measured in a predicted case, and the table of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from medsam_tune.data.formats import VolumeHeader
from medsam_tune.files import write_text

Said = tuple[int, float | None, float | None]
"""Pixels, predicted IoU and uncertainty of one answer."""

_MM3_PER_ML = 1000.0


@dataclass(frozen=True)
class CaseFigure:
    """Hold what was measured of one label in one case; the fields are the columns of the table.

    Attributes:
        case: Its name.
        label: What the object is called.
        value: Its value in the mask.
        pixels: Pixels, or voxels, of that value.
        volume_ml: Of a volume whose file states the size of a voxel.
        area_mm2: Of a single image whose file states the size of a pixel.
        predicted_iou: The network's own estimate, the mean over its answers weighted by their pixels.
        uncertainty: Entropy in bits under moved prompts, weighted likewise; None where it was not asked for.
    """

    case: str
    label: str
    value: int
    pixels: int
    volume_ml: float | None = None
    area_mm2: float | None = None
    predicted_iou: float | None = None
    uncertainty: float | None = None


def case_figure(
    case: str,
    label: str,
    value: int,
    *,
    n_pixels: int,
    header: VolumeHeader,
    said: Sequence[Said],
) -> CaseFigure:
    """Measure one label of one case.

    Args:
        case: Its name.
        label: What the object is called.
        value: Its value in the mask.
        n_pixels: Pixels of that value in the mask.
        header: The source file's.
        said: Pixels, predicted IoU and uncertainty of each answer.
    """
    x, y, z = header.voxel_mm
    size = n_pixels if header.states_spacing else None
    return CaseFigure(
        case,
        label,
        value,
        n_pixels,
        volume_ml=None if size is None or not header.is_volume else size * x * y * z / _MM3_PER_ML,
        area_mm2=None if size is None or header.is_volume else size * x * y,
        predicted_iou=_weighted((weight, iou) for weight, iou, _ in said),
        uncertainty=_weighted((weight, moved) for weight, _, moved in said),
    )


def write_case_figures(path: Path, figures: Iterable[CaseFigure]) -> Path:
    """Write the table as CSV, one row a case and label; numbers have six digits, what nobody knows is empty.

    Raises:
        DataError: If it cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(CaseFigure)], lineterminator="\n")
    writer.writeheader()
    for figure in figures:
        writer.writerow({name: _shown(value) for name, value in asdict(figure).items()})
    return write_text(path, text.getvalue())


def _weighted(values: Iterable[tuple[int, float | None]]) -> float | None:
    """Return the mean of the numbers that there are, weighted; None where none has a weight."""
    known = [(weight, value) for weight, value in values if value is not None and weight]
    return float(np.average([value for _, value in known], weights=[weight for weight, _ in known])) if known else None


def _shown(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value
