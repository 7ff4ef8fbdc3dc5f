"""Masks of a DICOM series as a folder of image files, one a slice, as CHAOS and many exports have them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader, slices_affine
from medsam_tune.data.formats.dicom.format import source_slices
from medsam_tune.data.formats.raster import ENDINGS, image_size, read_mask_values, write_png
from medsam_tune.data.formats.values import exact_labels
from medsam_tune.data.scan import Scan, scan_folder
from medsam_tune.errors import DataError


class SliceImages(Format):
    """Read the masks of a series from a folder of images.

    A mask is of the slice whose file has its name; where names differ, the first by name is of the slice whose file is the
    first by name, and so on, so there must be as many.
    """

    endings: tuple[str, ...] = ENDINGS

    def read_header(self, path: Path) -> VolumeHeader:
        """Read the size of the slices; where they lie, only their series says."""
        files = _images(path)
        height, width = image_size(files[0])
        return VolumeHeader(path, (len(files), height, width), slices_affine(), states_spacing=False)

    def read_image(self, path: Path) -> NDArray[Any]:
        """Refuse: what lies in such a folder are masks.

        Raises:
            DataError: Always.
        """
        raise DataError(f"{path}: is a folder of masks, one a slice. Name the series that they belong to as the image.")

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read (D, H, W) in the order of the files' names."""
        read = [exact_labels(read_mask_values(file), file) for file in _images(path)]
        for file, values in zip(_images(path), read, strict=True):
            if values.shape != read[0].shape:
                raise DataError(f"{file}: is {values.shape} (H, W), the first slice {read[0].shape}. Make them one size.")
        return np.stack(read)

    def check_labels(self, path: Path, image: VolumeHeader) -> bool:
        """Compare number and size of the masks with the series' slices.

        Raises:
            DataError: If they differ.
        """
        _in_order(path, image)
        size = image_size(_images(path)[0])
        if size != image.stored_shape[1:]:
            raise DataError(
                f"{path}: masks are {size} (H, W), the slices {image.stored_shape[1:]}. Export them at the image's size."
            )
        return True

    def read_labels_on(self, path: Path, image: VolumeHeader) -> NDArray[np.int32]:
        """Read masks in the order of the series' slices."""
        self.check_labels(path, image)
        return self.read_labels(path)[_in_order(path, image)]

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write a PNG a slice into the folder ``stem``, each called as its slice's file.

        Raises:
            DataError: If the image is no DICOM series of one file a slice.
        """
        for slice_, values in zip(_of_files(header), labels, strict=True):
            write_png(stem / f"{_bare(slice_)}.png", values)
        return stem

    def written_as(self, stem: Path) -> Path:
        """Return the folder ``stem``."""
        return stem

    def find(self, folder: Path) -> Scan:
        """Find the folders that hold images."""
        found = scan_folder(folder, self.endings)
        return Scan(sorted({path.parent for path in found.files}), found.others)

    def find_labels(self, folder: Path) -> Scan:
        """Find the folders that hold masks."""
        return self.find(folder)

    def name_of(self, path: Path, folder: Path) -> str:
        """Return the folder's path below ``folder``."""
        return path.relative_to(folder).as_posix()


def _images(folder: Path) -> list[Path]:
    files = [path for path in scan_folder(folder, ENDINGS).files if path.parent == folder]
    if not files:
        raise DataError(f"{folder}: holds no image of a slice. Put one a slice there, or remove the folder.")
    return sorted(files, key=_natural)


def _in_order(folder: Path, image: VolumeHeader) -> list[int]:
    """Return the place of each slice's mask among the files, sorted by name.

    Raises:
        DataError: If there are more or fewer masks than slices, or the image is no series of files.
    """
    masks, slices = _images(folder), _of_files(image)
    if len(masks) != len(slices):
        raise DataError(
            f"{folder}: holds {len(masks)} masks for the {len(slices)} slices of {image.path}. Give each slice one, black "
            "where it shows nothing."
        )
    of_name = {_bare(path): place for place, path in enumerate(masks)}
    if of_name.keys() == {_bare(path) for path in slices}:
        return [of_name[_bare(path)] for path in slices]
    place_of = {path: place for place, path in enumerate(sorted(slices, key=_natural))}
    return [place_of[path] for path in slices]


def _of_files(image: VolumeHeader) -> Sequence[Path]:
    paths = [each.path for each in source_slices(image)]
    if len(set(paths)) < len(paths):
        raise DataError(f"{image.path}: keeps its slices in one file, so no mask can be named after one. Write SEG or NIfTI.")
    return paths


def _bare(path: Path) -> str:
    return path.name.lower().rpartition(".")[0] or path.name.lower()


def _natural(path: Path) -> tuple[tuple[int, str], ...]:
    """Sort ``s2`` before ``s10``."""
    return tuple((int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", path.name.lower()))
