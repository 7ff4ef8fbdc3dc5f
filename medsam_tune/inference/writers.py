"""Predicted masks as files: PNG for images, NIfTI with the source's geometry for volumes.

Every file appears whole or not at all.
"""

from __future__ import annotations

import gzip
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.nifti import NiftiVolumes
from medsam_tune.errors import DataError
from medsam_tune.files import write_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MaskWriter(ABC):
    """Take predicted masks one by one and write them to a folder."""

    @abstractmethod
    def add(self, image_id: str, case_id: str, mask: NDArray[np.bool_] | NDArray[np.uint8]) -> None:
        """Take the mask (H, W) bool of one image, at its original size, or its classes as uint8, 0 for background.

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

    def add(self, image_id: str, case_id: str, mask: NDArray[np.bool_] | NDArray[np.uint8]) -> None:
        """Write the mask at once."""
        from PIL import Image

        buffer = BytesIO()
        values = mask.astype(np.uint8) * 255 if mask.dtype == np.bool_ else mask.astype(np.uint8)
        Image.fromarray(values).save(buffer, format="PNG")
        path = self.folder / f"{image_id}.png"
        write_bytes(path, buffer.getvalue())
        self._written.append(path)

    def finish(self) -> list[Path]:
        """Return the files written."""
        return self._written


class VolumeWriter(MaskWriter):
    """Put slices back into volumes and write ``<case_id>.nii.gz`` on the voxels of the source image.

    Voxels are 1 where the object is, or the number of their class, and 0 elsewhere.

    Slices that were not predicted stay 0. A volume is written as soon as all slices the source lists for it have come, the
    others by ``finish``. All slices of a volume must come to the same writer, so predict in one process.

    Args:
        folder: Where the volumes go.
        source: The opened source of the images; it knows each slice's place.
    """

    def __init__(self, folder: Path, source: NiftiVolumes) -> None:
        self.folder = folder
        self.source = source
        self._position = {image_id: source.position(index)[1] for index, image_id in enumerate(source.image_ids())}
        self._expected = Counter(source.case_ids())
        self._slices: dict[str, dict[int, NDArray[np.uint8]]] = defaultdict(dict)
        self._written: list[Path] = []

    def add(self, image_id: str, case_id: str, mask: NDArray[np.bool_] | NDArray[np.uint8]) -> None:
        """Keep the slice, and write its volume if it was the last one.

        Raises:
            DataError: If the source has no image of this name, or a file cannot be written.
        """
        if image_id not in self._position:
            raise DataError(f"{image_id}: no slice of the source has this name. Give the writer the source that was predicted.")
        self._slices[case_id][self._position[image_id]] = mask.astype(np.uint8)
        if len(self._slices[case_id]) == self._expected[case_id]:
            self._write(case_id)

    def finish(self) -> list[Path]:
        """Write the volumes of which only some slices were predicted, and return all files."""
        for case_id in list(self._slices):
            self._write(case_id)
        return self._written

    def _write(self, case_id: str) -> None:
        import nibabel

        header = self.source.header(case_id)
        volume = self.source.assemble(case_id, self._slices.pop(case_id))
        source_header = nibabel.load(header.path).header.copy()
        source_header.set_data_dtype(np.uint8)
        # The image's own scale and display range would turn 1 into something else.
        source_header.set_slope_inter(1, 0)
        source_header["cal_min"], source_header["cal_max"] = 0, 0
        image = nibabel.Nifti1Image(volume, header.affine, source_header)
        path = self.folder / f"{case_id}.nii.gz"
        write_bytes(path, gzip.compress(image.to_bytes(), mtime=0))
        self._written.append(path)


def mask_writer(source: SegmentationSource, folder: Path) -> MaskWriter:
    """Return the writer that keeps the source's geometry: NIfTI for volumes, PNG for everything else."""
    return VolumeWriter(folder, source) if isinstance(source, NiftiVolumes) else PngWriter(folder)
