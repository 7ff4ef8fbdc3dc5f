"""The seam of file formats: how voxels are read with their place in the patient, and how masks are written back onto them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.scan import Scan, scan_folder
from medsam_tune.errors import DataError

_RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True)
class VolumeHeader:
    """Hold what a file says about its voxels, without them.

    Attributes:
        path: The file.
        stored_shape: Lengths of the three axes as stored; 1, H, W for a single image.
        affine: (4, 4), stored voxel index to mm, x to the patient's right, y to the front, z up.
        is_volume: False for a single image, which has one slice and no orientation.
        patient_id: The file's own name of the patient, or None. It is compared, never shown.
        states_spacing: False where the file says nothing of a voxel's size, which then counts as 1 mm.
    """

    path: Path
    stored_shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    is_volume: bool = True
    patient_id: str | None = None
    states_spacing: bool = True

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that the image is read from; more than one where ``path`` is a folder."""
        return (self.path,)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Return the lengths (X, Y, Z) in RAS order."""
        first, second, third = (self.stored_shape[axis] for axis in self._stored_axes)
        return first, second, third

    @cached_property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Return the voxel size (x, y, z) in mm, in RAS order."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        first, second, third = (float(sizes[axis]) for axis in self._stored_axes)
        return first, second, third

    @cached_property
    def ras_affine(self) -> NDArray[np.float64]:
        """Return the affine (4, 4) of the volume in RAS order."""
        from nibabel.orientations import inv_ornt_aff

        turned: NDArray[np.float64] = self.affine @ inv_ornt_aff(self._order, self.stored_shape)
        return turned

    def to_ras(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn stored values, three axes and perhaps one of colours, into RAS order (X, Y, Z); no value is copied."""
        from nibabel import orientations

        turned: NDArray[Any] = orientations.apply_orientation(values, self._order)
        return turned

    def to_stored(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Turn a RAS volume (X, Y, Z) into the order of the file, so that it fits the file's affine."""
        from nibabel import orientations

        turn = orientations.ornt_transform(_RAS, self._order)
        turned: NDArray[Any] = np.ascontiguousarray(orientations.apply_orientation(volume, turn))
        return turned

    @cached_property
    def _order(self) -> NDArray[Any]:
        """Return, for each stored axis, the RAS axis it runs along and its direction."""
        from nibabel.orientations import io_orientation

        sizes = np.linalg.norm(self.affine[:3, :3], axis=0) if np.isfinite(self.affine).all() else np.zeros(3)
        order: NDArray[Any] = io_orientation(self.affine) if (sizes > 0).all() else np.full((3, 2), np.nan)
        if np.isnan(order).any():
            raise DataError(
                f"{self.path}: its affine {self.affine[:3].round(4).tolist()} gives a voxel no size or no finite place, "
                "so the orientation is unknown. Repair the header."
            )
        return order

    @property
    def _stored_axes(self) -> list[int]:
        return [int(np.flatnonzero(self._order[:, 0] == axis)[0]) for axis in range(3)]


class Format(ABC):
    """Read one kind of file, and write masks as such files.

    Values come in the order in which the file stores them; the header's affine says where that is. A format knows nothing of
    cases, slices or grey windows. A file of masks may be of another format than its image: that the voxels match is
    enough.

    Attributes:
        endings: Lower-case endings of the files, with the dot; the first is the one that is written.
        holds_labels: Whether an image's file may hold its masks too, so that there is no second folder.
        holds_grey_levels: Whether ``read_image`` returns grey levels 0..255 already, whatever their type.
    """

    endings: tuple[str, ...]
    holds_labels: ClassVar[bool] = False
    holds_grey_levels: ClassVar[bool] = False

    @abstractmethod
    def read_header(self, path: Path) -> VolumeHeader:
        """Read shape, geometry and patient; no voxel.

        Raises:
            DataError: If the file cannot be read or holds no such image.
        """

    @abstractmethod
    def read_image(self, path: Path) -> NDArray[Any]:
        """Read the image's values as stored: the header's ``stored_shape``, with a last axis of 3 for colours.

        The file is read to its end, so that a damaged one is found.

        Raises:
            DataError: If the file cannot be read, or holds values that are no grey levels or not finite.
        """

    def read_label_header(self, path: Path) -> VolumeHeader | None:
        """Read the header of a file's masks, or None where it holds none; by default the file is a mask as a whole.

        Raises:
            DataError: If the file cannot be read.
        """
        return self.read_header(path)

    @abstractmethod
    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read the masks' values exactly, as stored: the header's ``stored_shape``.

        Where objects overlap, a last axis holds layers: an object is wherever one of them has its value.

        Raises:
            DataError: If the file cannot be read, or a value is no whole number from 0 to 2**31 - 1.
        """

    def check_labels(self, path: Path, image: VolumeHeader) -> bool:
        """Compare the place of a file's masks with an image's, from headers alone; tell whether there are masks.

        Raises:
            DataError: If the file cannot be read, or its voxels are not the image's.
        """
        header = self.read_label_header(path)
        if header is not None:
            check_same_grid(image, header)
        return header is not None

    def read_labels_on(self, path: Path, image: VolumeHeader) -> NDArray[np.int32]:
        """Read masks in the order of an image's voxels, never resampled.

        Raises:
            DataError: As ``check_labels`` and ``read_labels``.
        """
        header = self.read_label_header(path)
        if header is None:
            raise DataError(f"{path}: holds no masks. Add them or remove the file.")
        check_same_grid(image, header)
        return reorder(self.read_labels(path), header, image)

    def read_label_names(self, path: Path) -> dict[int, str]:
        """Return the names that a file gives its labels; by default none.

        Raises:
            DataError: If the file cannot be read.
        """
        return {}

    @abstractmethod
    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write masks onto the voxels of a source image: its geometry and nothing else of it, no text of any kind.

        Args:
            stem: The file to write, without ending.
            labels: Whole numbers in the source image's own order, whatever its format.
            header: The source image's.
            names: What the labels are called, for formats that store it.

        Returns:
            The file.

        Raises:
            DataError: If the file cannot be written, or cannot hold such an image's masks.
        """

    def written_as(self, stem: Path) -> Path:
        """Return the file that ``write_labels`` writes for ``stem``."""
        return stem.with_name(f"{stem.name}{self.endings[0]}")

    def holds_boxes(self, path: Path) -> bool:
        """Tell whether an image's file brings boxes of its objects along; by default none does."""
        return False

    def read_boxes(self, path: Path, header: VolumeHeader) -> NDArray[np.float32]:
        """Read the file's own boxes: (K, 4) XYXY of an image, (K, 6) as x1, y1, z1, x2, y2, z2 of a volume.

        Raises:
            DataError: If the file has none, or they do not lie on its voxels.
        """
        raise DataError(f"{path}: holds no boxes. Give them in a file of their own.")

    def find(self, folder: Path) -> Scan:
        """Find the images below a folder; an image may be a folder itself, such as a series of files.

        Raises:
            DataError: If a folder or file cannot be read.
        """
        return scan_folder(folder, self.endings)

    def find_labels(self, folder: Path) -> Scan:
        """Find the files of masks below a folder, by default all files of the format.

        Raises:
            DataError: If a folder or file cannot be read.
        """
        return scan_folder(folder, self.endings)

    def image_names(self, masks: Sequence[Path], folder: Path, images: Mapping[str, Path]) -> dict[Path, str]:
        """Return the name of the image that each file of masks belongs to: the file's own name, unless it tells more.

        Args:
            masks: The files of the masks.
            folder: The folder of all masks.
            images: The images by name.

        Raises:
            DataError: If a file cannot be read.
        """
        return {path: self.name_of(path, folder) for path in masks}

    def name_of(self, path: Path, folder: Path) -> str:
        """Return the name of a file: its path below ``folder`` without the ending."""
        name = path.relative_to(folder).as_posix()
        longest = max((ending for ending in self.endings if name.lower().endswith(ending)), key=len, default="")
        return name[: len(name) - len(longest)]


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Tell whether a shape is (H, W) or (H, W, 3) with at least one pixel."""
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3))


def slices_affine(spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> NDArray[np.float64]:
    """Return the affine of slices stored as they are shown: (D, H, W), rows to the back, columns to the left, slices up.

    Args:
        spacing_mm: Size of a voxel as (x, y, z): along the columns, along the rows, between slices.
    """
    x, y, z = spacing_mm
    return np.array([[0, 0, -x, 0], [0, -y, 0, 0], [z, 0, 0, 0], [0, 0, 0, 1]], np.float64)


def image_header(path: Path, size: tuple[int, int], spacing_mm: tuple[float, float] | None = None) -> VolumeHeader:
    """Return the header of a single image of ``size`` (H, W) with (row, column) spacing in mm, or None: unknown."""
    row, column = spacing_mm or (1.0, 1.0)
    affine = slices_affine((column, row, 1.0))
    return VolumeHeader(path, (1, *size), affine, is_volume=False, states_spacing=spacing_mm is not None)


def check_same_grid(image: VolumeHeader, mask: VolumeHeader) -> None:
    """Refuse a mask that does not lie on its image's voxels; the order in which either is stored does not count.

    Raises:
        DataError: If shape, spacing or affine differ; the message has both values.
    """
    lengths, affine = _turned(image, mask)
    if lengths != image.stored_shape:
        raise DataError(
            f"{mask.path}: mask shape {_shown_shape(mask)} differs from image shape {_shown_shape(image)}. "
            "Resample the mask or remove the case."
        )
    if not np.allclose(mask.voxel_mm, image.voxel_mm, rtol=1e-3):
        raise DataError(
            f"{mask.path}: mask spacing {_rounded(mask.voxel_mm)} mm differs from image spacing {_rounded(image.voxel_mm)} mm. "
            "Resample the mask or remove the case."
        )
    # A hundredth of a voxel at the far corner is rounding in the header, not another position.
    corners = np.array([[0, 0, 0, 1], [*image.stored_shape, 1]], np.float64)
    shift = float(np.abs((corners @ (affine - image.affine).T)[:, :3]).max())
    if shift > 0.01 * min(image.voxel_mm):
        raise DataError(
            f"{mask.path}: mask affine differs from the image's by {shift:.3g} mm. "
            "Resample the mask onto the image, or copy the image's header if you know that the voxels match."
        )


def place_of_box(image: VolumeHeader, mask: VolumeHeader) -> tuple[int, int, int]:
    """Return where the first voxel of a mask lies that was cut to a box of its image's voxels, in the order of the image.

    The box may reach beyond the image, so that a number may be below 0.

    Raises:
        DataError: If spacing or directions differ, or the mask's voxels lie between those of the image.
    """
    _, affine = _turned(image, mask)
    # Over the longest side of either, a hundredth of a voxel is rounding in the header.
    lengths = max(*image.stored_shape, *mask.stored_shape)
    bent = float(np.abs(affine[:3, :3] - image.affine[:3, :3]).max()) * lengths
    if bent > 0.01 * min(image.voxel_mm):
        check_same_grid(image, mask)  # says which of them, where shapes agree
        raise DataError(
            f"{mask.path}: mask spacing {_rounded(mask.voxel_mm)} mm or directions differ from the image's "
            f"{_rounded(image.voxel_mm)} mm. Resample the mask or remove the case."
        )
    first = np.linalg.solve(image.affine, affine[:, 3])[:3]
    if float(np.abs(first - first.round()).max()) > 0.01:
        raise DataError(
            f"{mask.path}: mask voxels lie between those of the image, {_rounded(tuple(first.tolist()))} voxels from its "
            "first. Resample the mask onto the image."
        )
    x, y, z = (int(number) for number in first.round())
    return x, y, z


def into_image(values: NDArray[Any], first: tuple[int, int, int], image: VolumeHeader, path: Path) -> NDArray[Any]:
    """Put a box of labels onto an image's voxels, 0 around it; a last axis of layers stays.

    Args:
        values: In the order of the image's axes.
        first: Where its first voxel lies.
        image: The image.
        path: Of the mask, for the message.

    Raises:
        DataError: If a label lies outside of the image.
    """
    placed = np.zeros((*image.stored_shape, *values.shape[3:]), values.dtype)
    inside, there = [], []
    for start, length, size in zip(first, values.shape[:3], image.stored_shape, strict=True):
        low, high = max(0, -start), max(0, min(length, size - start))
        inside.append(slice(low, high))
        there.append(slice(start + low, max(start + low, start + high)))
    box = values[tuple(inside)]
    if np.count_nonzero(box) != np.count_nonzero(values):
        lost = np.count_nonzero(values) - np.count_nonzero(box)
        raise DataError(f"{path}: {lost} labelled voxels lie outside of the image. Save it with the image as its reference.")
    placed[tuple(there)] = box
    return placed


def reorder(values: NDArray[Any], source: VolumeHeader, target: VolumeHeader) -> NDArray[Any]:
    """Turn values stored in one order into that of another header of the same voxels; a last axis of layers stays.

    Args:
        values: In the order of ``source``.
        source: Their header.
        target: A header that ``check_same_grid`` accepts.
    """
    from nibabel.orientations import apply_orientation

    turned: NDArray[Any] = apply_orientation(values, _order_onto(target, source))
    return turned


def _order_onto(image: VolumeHeader, mask: VolumeHeader) -> NDArray[Any]:
    """Return, for each stored axis of the mask, the stored axis of the image it runs along and its direction."""
    from nibabel.orientations import io_orientation

    _ = image.shape, mask.shape  # an affine without orientation is refused here
    directions = [header.affine[:3, :3] / np.linalg.norm(header.affine[:3, :3], axis=0) for header in (image, mask)]
    relative = np.eye(4)
    relative[:3, :3] = np.linalg.solve(*directions)
    order: NDArray[Any] = io_orientation(relative)
    return order


def _turned(image: VolumeHeader, mask: VolumeHeader) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Return shape and affine of the mask in the order of the image's axes."""
    from nibabel.orientations import inv_ornt_aff

    order = _order_onto(image, mask)
    lengths = tuple(mask.stored_shape[int(axis)] for axis in np.argsort(order[:, 0]))
    return lengths, mask.affine @ inv_ornt_aff(order, mask.stored_shape)


def _shown_shape(header: VolumeHeader) -> tuple[int, ...]:
    return header.stored_shape if header.is_volume else header.stored_shape[1:]


def _rounded(sizes: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(size, 4) for size in sizes)
