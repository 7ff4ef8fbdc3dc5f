"""HDF5 files that hold an image and its masks under two names, as many collections of slices and volumes do."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader, image_header, is_image_shape, slices_affine
from medsam_tune.data.formats.faults import reading
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.errors import DataError, DataWarning
from medsam_tune.files import write_bytes


class Hdf5Format(Format):
    """Read ``.h5`` files with the data sets ``image`` and ``label``; masks are written as ``label``.

    Args:
        image: Name of the image's data set, (H, W), (H, W, 3) or (D, H, W).
        label: Name of the masks' data set.
    """

    endings = (".h5", ".hdf5")
    holds_labels = True

    def __init__(self, image: str = "image", label: str = "label") -> None:
        self.image, self.label = image, label

    def read_header(self, path: Path) -> VolumeHeader:
        """Read the image's shape; a voxel counts as 1 mm, as the format has no place for its size.

        Raises:
            DataError: If the file cannot be read, or has no such data set.
        """
        shape = self._shape(path, self.image)
        if 0 in shape or not (is_image_shape(shape) or len(shape) == 3):
            raise DataError(f"{path}: {self.image} has shape {shape}, expected (H, W), (H, W, 3) or (D, H, W). Split the file.")
        if is_image_shape(shape):
            return image_header(path, (shape[0], shape[1]), None)
        if shape[0] == shape[1] and 2 * shape[2] <= shape[1]:
            # The same words for every file, so that they are said once.
            warnings.warn(
                f"the volumes of {self.image} look as if slices lay along their last axis (H, W, D), and are read as "
                "(D, H, W). Set data.source.axis: sagittal to cut along the last axis.",
                DataWarning,
                stacklevel=2,
            )
        return VolumeHeader(path, (shape[0], shape[1], shape[2]), slices_affine(), states_spacing=False)

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read the image; a single one gets a first axis of length 1."""
        values = check_grey_values(self._values(path, self.image), f"{path}: {self.image}")
        return values[None] if is_image_shape(values.shape) else values

    def read_label_header(self, path: Path) -> VolumeHeader | None:
        """Read the masks' shape, or None where there are none."""
        with _opened(path) as file:
            if self.label not in file:
                return None
        image, shape = self._shape(path, self.image), self._shape(path, self.label)
        expected = image[:2] if is_image_shape(image) else image
        if shape != expected:
            raise DataError(
                f"{path}: {self.label} has shape {shape}, expected {expected}, as {self.image} {image}. Correct it."
            )
        return self.read_header(path)

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read the masks; those of a single image get a first axis of length 1."""
        values = exact_labels(self._values(path, self.label), f"{path}: {self.label}")
        return values[None] if values.ndim == 2 else values

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.h5`` with nothing but the masks."""
        import h5py

        packed = io.BytesIO()
        with h5py.File(packed, "w") as file:
            file.create_dataset(self.label, data=labels if header.is_volume else labels[0], compression="gzip")
        return write_bytes(stem.with_name(f"{stem.name}.h5"), packed.getvalue())

    def _shape(self, path: Path, name: str) -> tuple[int, ...]:
        with _opened(path) as file:
            if name not in file or not hasattr(file[name], "shape"):
                raise DataError(
                    f"{path}: has no data set {name}; it holds {sorted(file)}. Name the right one in data.source.format."
                )
            return tuple(int(length) for length in file[name].shape)

    def _values(self, path: Path, name: str) -> NDArray[Any]:
        self._shape(path, name)
        with _opened(path) as file:
            # A file that lacks what its header claims would be filled up with zeros.
            stored, claimed = file[name].id.get_storage_size(), file[name].nbytes
            if claimed and not stored:
                raise DataError(f"{path}: {name} claims {claimed} bytes, but stores none. Replace or remove the file.")
            values: NDArray[Any] = file[name][()]
            return values


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import h5py

    faults = (OSError, ValueError, KeyError, TypeError, RuntimeError)
    with reading(path, "HDF5", faults, too_large="Split the file."), h5py.File(path, "r") as file:
        yield file
