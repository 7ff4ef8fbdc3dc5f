"""One new file as the slices that a model is shown, and the way of their masks back onto its voxels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medsam_tune.data.intensity import AS_STORED, Intensity, apply_intensity, default_intensity
from medsam_tune.data.neighbours import NeighbourSource
from medsam_tune.data.slices import slice_spacing, take_slice
from medsam_tune.data.volumes import VolumeSource
from medsam_tune.inference.new_files import NewFile
from medsam_tune.inference.trained_data import TrainedData

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SlicedFile:
    """Show a file as the training showed its own: slices along the same axis, grey levels by the same rule.

    Args:
        file: A volume or a single image, which has one slice.
        data: What the model was trained on.

    Attributes:
        header: The file's own.
        contexts: What networks that mix slices have encoded of it, see ``slice_context``.

    Raises:
        DataError: If its header cannot be read.
    """

    def __init__(self, file: NewFile, data: TrainedData) -> None:
        self.file, self.data = file, data
        self._source = VolumeSource(file.format, axis=data.axis, intensity=data.intensity)
        self._source.open_images({file.name: file.path})
        self.header = self._source.header(file.name)
        shows_neighbours = data.shows_neighbours and self.header.is_volume and len(self._source) > 1
        self._shown = NeighbourSource(self._source) if shows_neighbours else self._source
        self.contexts: dict[int, Any] = {}

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self._source)

    def levels(self, position: int) -> NDArray[Any]:
        """Return the grey levels 0..255 of a slice, (H, W) or (H, W, 3).

        Raises:
            DataError: If the file cannot be read, or its values do not fit the rule.
        """
        if self.header.is_volume:
            return self._shown[position].image.permute(1, 2, 0).numpy().astype(np.uint8)
        values = self.file.format.read_image(self.file.path)[0]
        levels = apply_intensity(values, self._image_rule(values), self.file.path)
        # A source of volumes rounds grey levels, one of images does not.
        return np.rint(levels) if self.data.of_volumes else levels

    def spacing_mm(self) -> tuple[float, float]:
        """Return the (row, column) spacing of a slice."""
        return slice_spacing(self.header.voxel_mm, self.data.axis if self.header.is_volume else "axial")

    def cut(self, volume: NDArray[Any], position: int) -> NDArray[Any]:
        """Cut a slice (H, W) out of whole numbers in the file's own order."""
        axis = self.data.axis if self.header.is_volume else "axial"
        return take_slice(self.header.to_ras(volume), axis, position)

    def assemble(self, slices: Mapping[int, NDArray[Any]]) -> NDArray[Any]:
        """Put slices (H, W) of whole numbers back in the file's own order; positions without one stay 0."""
        return self._source.assemble(self.file.name, slices)

    def _image_rule(self, values: NDArray[Any]) -> Intensity:
        if self.file.format.holds_grey_levels:
            return AS_STORED
        as_it_is = self.data.intensity is None or (self.data.of_volumes and values.dtype == np.uint8)
        return default_intensity(values) if as_it_is else self.data.intensity or AS_STORED
