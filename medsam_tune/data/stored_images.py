"""What the stored images of a data set are like, so that a model can say where new ones differ from those it knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.formats import Format, format_of
from medsam_tune.data.slices import Axis, slice_spacing
from medsam_tune.data.volumes import VolumeSource

MOST_LOOKED_AT = 8
"""Images of a data set that are read for it, evenly spaced."""

_PERCENTILES = (0.5, 99.5)
_SPACING_FACTOR = 2.0
# Percentiles of each image bring any range to 0..255, so there only another kind of number tells.
_SPAN_FACTOR, _SPAN_FACTOR_OF_PERCENTILES = 3.0, 20.0


@dataclass(frozen=True)
class StoredImages:
    """Hold the middle of what several images have.

    Attributes:
        colour: Whether channels differ in most of them.
        low: Stored value below which half a percent of the pixels lie.
        high: Stored value above which half a percent lie.
        spacing_mm: (row, column) of a slice; None where most state none.
    """

    colour: bool
    low: float
    high: float
    spacing_mm: tuple[float, float] | None = None

    @classmethod
    def of(cls, path: Path, form: Format, axis: Axis = "axial") -> StoredImages:
        """Look at one file.

        Raises:
            DataError: If it cannot be read.
        """
        header, values = form.read_header(path), form.read_image(path)
        channels = values.shape[-1] if values.ndim == 4 else 1
        colour = channels > 1 and bool((values != values[..., :1]).any())
        low, high = (float(limit) for limit in np.percentile(values, _PERCENTILES))
        spacing = slice_spacing(header.voxel_mm, axis if header.is_volume else "axial") if header.states_spacing else None
        return cls(colour, low, high, spacing)

    @classmethod
    def joined(cls, images: Sequence[StoredImages]) -> StoredImages | None:
        """Return the middle of several; None of none."""
        if not images:
            return None
        spacings = [each.spacing_mm for each in images if each.spacing_mm is not None]
        middle = (median(row for row, _ in spacings), median(column for _, column in spacings)) if spacings else None
        return cls(
            2 * sum(each.colour for each in images) > len(images),
            median(each.low for each in images),
            median(each.high for each in images),
            middle if 2 * len(spacings) > len(images) else None,
        )

    @classmethod
    def read(cls, described: object) -> StoredImages | None:
        """Return what ``as_json`` wrote; None where there is nothing.

        Raises:
            TypeError: If it holds something else.
            ValueError: If a value is no number.
        """
        if not isinstance(described, dict):
            return None
        spacing = described.get("spacing_mm")
        pair = None if spacing is None else (float(spacing[0]), float(spacing[1]))
        return cls(bool(described["colour"]), float(described["low"]), float(described["high"]), pair)

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def differences(self, new: StoredImages, *, by_percentiles: bool) -> list[str]:
        """Say where new images differ so much that the model may fail on them, with both values.

        Args:
            new: The new images.
            by_percentiles: Whether grey levels follow from each image's own percentiles.
        """
        said = []
        if self.colour != new.colour:
            words = {True: "colour", False: "grey"}
            said.append(f"they are {words[new.colour]}, those of the training are {words[self.colour]}")
        if self._other_range(new, _SPAN_FACTOR_OF_PERCENTILES if by_percentiles else _SPAN_FACTOR):
            said.append(f"their values run from {_range(new)}, those of the training from {_range(self)}")
        if self.spacing_mm and new.spacing_mm:
            ratios = [there / here for there, here in zip(self.spacing_mm, new.spacing_mm, strict=True)]
            if max(max(ratio, 1 / ratio) for ratio in ratios) > _SPACING_FACTOR:
                said.append(f"their pixels are {_size(new.spacing_mm)} mm, those of the training {_size(self.spacing_mm)} mm")
        return said

    def _other_range(self, new: StoredImages, factor: float) -> bool:
        spans = [max(each.high - each.low, 1e-9) for each in (self, new)]
        # Air in CT lies far below 0; nothing in MR or in a picture does.
        signed = [each.low < -0.1 * span for each, span in zip((self, new), spans, strict=True)]
        return signed[0] != signed[1] or max(spans) / min(spans) > factor


def stored_images(source: SegmentationSource, cases: Sequence[str]) -> StoredImages | None:
    """Look at a few of an opened source's cases; None where it reads no files that a format knows.

    Raises:
        DataError: If one cannot be read.
    """
    index_of = {case: index for index, case in enumerate(source.case_ids())}
    found: list[StoredImages] = []
    for case in evenly(cases, MOST_LOOKED_AT):
        index = index_of[case]
        if isinstance(source, VolumeSource):
            found.append(StoredImages.of(source.header(case).path, source.format, source.axis))
        elif (files := source.files(index)) and (form := format_of(files[0])) is not None:
            found.append(StoredImages.of(files[0], form))
    return StoredImages.joined(found)


def evenly(items: Sequence[Any], count: int) -> Iterable[Any]:
    """Return at most ``count`` items, evenly spaced, the first among them."""
    return items[:: -(-len(items) // count)] if items else items


def _range(images: StoredImages) -> str:
    return f"{images.low:.4g} to {images.high:.4g}"


def _size(spacing_mm: tuple[float, float]) -> str:
    return " x ".join(f"{size:.3g}" for size in spacing_mm)
