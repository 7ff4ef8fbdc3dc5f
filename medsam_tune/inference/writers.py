"""Predicted masks as files of the source's own format: NIfTI or npz for volumes, PNG for images.

Every file appears whole or not at all, holds the source's geometry and no text of it, and stays in its folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.formats.raster import write_png
from medsam_tune.data.names import file_name
from medsam_tune.data.volumes import VolumeSource
from medsam_tune.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MaskWriter(ABC):
    """Take predicted masks one by one and write them to a folder."""

    @abstractmethod
    def add(self, image_id: str, case_id: str, mask: NDArray[Any], *, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> None:
        """Take the mask of one image, at its original size.

        Args:
            image_id: The image's name in its source.
            case_id: Its case.
            mask: (H, W), bool or the numbers of classes from 1 to 65535, 0 for background.
            spacing_mm: Row and column spacing.

        Raises:
            DataError: If a file cannot be written.
        """

    @abstractmethod
    def finish(self) -> list[Path]:
        """Write whatever is still held and return all files written, in order of writing."""


class PngWriter(MaskWriter):
    """Write ``<image_id>.png`` of the image's size: 255 where the object is, the number of each class, 0 elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: list[Path] = []

    def add(self, image_id: str, case_id: str, mask: NDArray[Any], *, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> None:
        """Write the mask at once."""
        values = mask.astype(np.uint8) * np.uint8(255) if mask.dtype == np.bool_ else _small(mask)
        # A sample of a file that states none has 1 mm.
        stated = None if spacing_mm == (1.0, 1.0) else spacing_mm
        self._written.append(write_png(self.folder / f"{file_name(image_id)}.png", values, spacing_mm=stated))

    def finish(self) -> list[Path]:
        """Return the files written."""
        return self._written


class VolumeWriter(MaskWriter):
    """Put slices back into volumes and write ``<case_id>`` in the source's format on the voxels of the source image.

    Voxels are 1 where the object is, or the number of their class, and 0 elsewhere.

    Slices that were not predicted stay 0. A volume is written as soon as all slices to be predicted have come, the others by
    ``finish``. All slices of a volume must come to the same writer, so predict in one process.

    Args:
        folder: Where the volumes go.
        source: The opened source of the images; it knows each slice's place.
    """

    def __init__(self, folder: Path, source: VolumeSource) -> None:
        self.folder = folder
        self.source = source
        self._position = {image_id: source.position(index)[1] for index, image_id in enumerate(source.image_ids())}
        self._expected = Counter(source.position(index)[0] for index in source.select(range(len(source)), "predict"))
        self._slices: dict[str, dict[int, NDArray[Any]]] = defaultdict(dict)
        self._written: list[Path] = []

    def add(self, image_id: str, case_id: str, mask: NDArray[Any], *, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> None:
        """Keep the slice, and write its volume if it was the last one; the spacing is the volume's.

        Raises:
            DataError: If the source has no image of this name, or a file cannot be written.
        """
        if image_id not in self._position:
            raise DataError(f"{image_id}: no slice of the source has this name. Give the writer the source that was predicted.")
        self._slices[case_id][self._position[image_id]] = _small(mask)
        if len(self._slices[case_id]) == self._expected[case_id]:
            self._write(case_id)

    def finish(self) -> list[Path]:
        """Write the volumes of which only some slices were predicted, and return all files."""
        for case_id in list(self._slices):
            self._write(case_id)
        return self._written

    def _write(self, case_id: str) -> None:
        volume = self.source.assemble(case_id, self._slices.pop(case_id))
        stem = self.folder / file_name(case_id)
        self._written.append(self.source.format.write_labels(stem, volume, self.source.header(case_id)))


def mask_writer(source: SegmentationSource, folder: Path) -> MaskWriter:
    """Return the writer that keeps the source's geometry: its own format for volumes, PNG for everything else."""
    return VolumeWriter(folder, source) if isinstance(source, VolumeSource) else PngWriter(folder)


def _small(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(np.uint8 if values.size == 0 or values.max() <= np.iinfo(np.uint8).max else np.uint16)
