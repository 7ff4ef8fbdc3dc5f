"""NRRD files: volumes, label maps, and 3D Slicer's segmentations with named segments in overlapping layers."""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader, into_image, place_of_box, reorder
from medsam_tune.data.formats.faults import reading
from medsam_tune.data.formats.present_values import present_values
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.errors import DataError
from medsam_tune.files import write_bytes

# What NRRD's spaces call their axes, as signs against right, front, up.
_SIGNS = {"right": 1.0, "left": -1.0, "anterior": 1.0, "posterior": -1.0, "superior": 1.0, "inferior": -1.0}
_SHORT = {"r": "right", "l": "left", "a": "anterior", "p": "posterior", "s": "superior", "i": "inferior"}
_LPS = np.diag([-1.0, -1.0, 1.0])
_COLOURS = ("RGB-color", "RGB-colour")
# Deflate packs at most 1032 bytes into one.
_LARGEST_RATIO = 1032


@dataclass(frozen=True)
class Segment:
    """Hold one segment of 3D Slicer: its name, its layer, and its value there."""

    name: str
    layer: int
    value: int


class NrrdFormat(Format):
    """Read ``.nrrd``, ``.nhdr`` and ``.seg.nrrd``; masks are written as ``.seg.nrrd`` with a named segment each."""

    endings = (".seg.nrrd", ".nrrd", ".nhdr")

    def read_header(self, path: Path) -> VolumeHeader:
        """Read shape and geometry; without directions the axes run left, back and up, as ITK takes them.

        Raises:
            DataError: If the file cannot be read, has more than three axes in space, or no geometry.
        """
        header = _header(path)
        axes = _space_axes(header, path)
        lengths = [int(header["sizes"][axis]) for axis in axes]
        read = VolumeHeader(path, (lengths[0], lengths[1], lengths[2]), _affine(header, axes, path))
        _ = read.shape  # an affine without orientation is refused here
        return read

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read the values, with a last axis of 3 for colours."""
        header = _header(path)
        if other := [axis for axis in _other_axes(header, path) if header["sizes"][axis] > 1 and not _is_colour(header, axis)]:
            raise DataError(
                f"{path}: has sizes {list(header['sizes'])}, where axis {other[0]} is none of space. "
                "Save each channel or time point as a file."
            )
        return check_grey_values(self._values(path, header), path)

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read the label values; segments whose values are not unique are numbered 1, 2, ... in the header's order."""
        header = _header(path)
        values = exact_labels(self._values(path, header), path)
        found = segments(header, path)
        if not found:
            if values.ndim > 3:
                raise DataError(f"{path}: has layers but names no segments. Save it again as a segmentation (.seg.nrrd).")
            return values
        layers = values[..., None] if values.ndim == 3 else values
        numbered = np.zeros_like(layers)
        for number, segment in _numbers(found).items():
            numbered[..., segment.layer][layers[..., segment.layer] == segment.value] = number
        if unnamed := present_values(layers[(layers != 0) & (numbered == 0)]).tolist():
            raise DataError(f"{path}: holds the values {unnamed[:4]}, which no segment has. Save the segmentation again.")
        return numbered[..., 0] if values.ndim == 3 else numbered

    def check_labels(self, path: Path, image: VolumeHeader) -> bool:
        """Compare places as every format does; a segmentation may be cut to a box of the image's voxels, as 3D Slicer saves it.

        Raises:
            DataError: If the file cannot be read, or its voxels are not the image's.
        """
        header = self.read_header(path)
        if not segments(_header(path), path) or header.stored_shape == image.stored_shape:
            return super().check_labels(path, image)
        place_of_box(image, header)
        return True

    def read_labels_on(self, path: Path, image: VolumeHeader) -> NDArray[np.int32]:
        """Read masks in the order of an image's voxels; a segmentation that was cut to a box is put where it lies.

        Raises:
            DataError: As ``check_labels`` and ``read_labels``, and if a segment reaches beyond the image.
        """
        header = self.read_header(path)
        if not segments(_header(path), path) or header.stored_shape == image.stored_shape:
            return super().read_labels_on(path, image)
        first = place_of_box(image, header)
        return into_image(reorder(self.read_labels(path), header, image), first, image, path)

    def read_label_names(self, path: Path) -> dict[int, str]:
        """Return the names of the segments by number."""
        return {number: segment.name for number, segment in _numbers(segments(_header(path), path)).items()}

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.seg.nrrd``, as 3D Slicer reads it: one segment a label, on the source's voxels."""
        import nrrd

        to_lps = np.linalg.solve(_LPS, header.affine[:3])
        fields: dict[str, Any] = {
            "space": "left-posterior-superior",
            "kinds": ["domain"] * 3,
            "space directions": to_lps[:, :3].T,
            "space origin": to_lps[:, 3],
            "encoding": "gzip",
            "Segmentation_MasterRepresentation": "Binary labelmap",
            "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        }
        for number, value in enumerate(sorted({*present_values(labels).tolist(), *(names or {})} - {0})):
            fields |= {
                f"Segment{number}_ID": f"Segment_{value}",
                f"Segment{number}_Name": _one_line((names or {}).get(value) or f"label {value}"),
                f"Segment{number}_LabelValue": str(value),
                f"Segment{number}_Layer": "0",
            }
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "labels.nrrd"
            nrrd.write(str(made), labels, fields)
            content = made.read_bytes()
        return write_bytes(stem.with_name(f"{stem.name}.seg.nrrd"), content)

    def _values(self, path: Path, header: Mapping[str, Any]) -> NDArray[Any]:
        """Read the voxels with the axes of space first."""
        import nrrd

        axes = _space_axes(header, path)
        _check_size(path, header)
        with _readable(path), path.open("rb") as file:
            nrrd.read_header(file)
            values = nrrd.read_data(dict(header), file, str(path))
        other = [axis for axis in _other_axes(header, path) if header["sizes"][axis] > 1]
        moved: NDArray[Any] = values.transpose([*axes, *_other_axes(header, path)])
        return moved.reshape([*moved.shape[:3], *(int(header["sizes"][axis]) for axis in other)])


def segments(header: Mapping[str, Any], path: Path) -> list[Segment]:
    """Return the segments that a header lists; none for a plain label map.

    Raises:
        DataError: If a layer or value is no whole number.
    """
    found, number = [], 0
    while f"Segment{number}_Name" in header or f"Segment{number}_ID" in header:
        name = str(header.get(f"Segment{number}_Name", header.get(f"Segment{number}_ID", "")))
        with _readable(path):
            layer = int(header.get(f"Segment{number}_Layer", 0))
            found.append(Segment(name, layer, int(header.get(f"Segment{number}_LabelValue", number + 1))))
        number += 1
    return found


def _numbers(found: list[Segment]) -> dict[int, Segment]:
    values = [segment.value for segment in found]
    unique = len(set(values)) == len(values)
    return {segment.value if unique else number: segment for number, segment in enumerate(found, start=1)}


def _readable(path: Path) -> AbstractContextManager[None]:
    from nrrd.errors import NRRDError

    # An empty file ends pynrrd's iteration over its lines.
    faults = (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, ArithmeticError, StopIteration, zlib.error)
    return reading(path, "NRRD", (*faults, NRRDError))


def _header(path: Path) -> Mapping[str, Any]:
    import nrrd

    with _readable(path):
        header: Mapping[str, Any] = nrrd.read_header(str(path))
        sizes = [int(size) for size in header["sizes"]]
    if not sizes or min(sizes) < 1:
        raise DataError(f"{path}: has sizes {sizes}, expected axes of at least 1. Replace or remove the file.")
    return header


def _space_axes(header: Mapping[str, Any], path: Path) -> list[int]:
    other = _other_axes(header, path)
    axes = [axis for axis in range(len(header["sizes"])) if axis not in other]
    if len(axes) != 3:
        raise DataError(
            f"{path}: has sizes {[int(size) for size in header['sizes']]}, {len(axes)} of them axes of space, expected 3. "
            "Save each channel or time point as a volume."
        )
    return axes


def _other_axes(header: Mapping[str, Any], path: Path) -> list[int]:
    """Return the axes that do not run through space: colours, layers, time."""
    directions = header.get("space directions")
    kinds = header.get("kinds") or []
    with _readable(path):
        if directions is not None:
            rows = [np.full(3, np.nan) if row is None else np.asarray(row, np.float64) for row in directions]
            return [axis for axis, row in enumerate(rows) if np.isnan(row).all()]
        return [axis for axis, kind in enumerate(kinds) if kind not in ("domain", "space", "none", "???", None)]


def _is_colour(header: Mapping[str, Any], axis: int) -> bool:
    kinds = header.get("kinds") or []
    return axis < len(kinds) and kinds[axis] in _COLOURS and int(header["sizes"][axis]) == 3


def _affine(header: Mapping[str, Any], axes: list[int], path: Path) -> NDArray[np.float64]:
    affine = np.eye(4)
    with _readable(path):
        if header.get("space directions") is not None:
            to_ras = _to_ras(str(header.get("space", "")), path)
            affine[:3, :3] = to_ras @ np.array([header["space directions"][axis] for axis in axes], np.float64).T
            affine[:3, 3] = to_ras @ np.asarray(header.get("space origin", np.zeros(3)), np.float64)
        else:
            spacings = header.get("spacings")
            if spacings is None:
                raise DataError(f"{path}: states neither space directions nor spacings. Save it with its geometry.")
            affine[:3, :3] = _LPS @ np.diag([float(spacings[axis]) for axis in axes])
    return affine


def _to_ras(space: str, path: Path) -> NDArray[np.float64]:
    words = [_SHORT.get(word, word) for word in (space.lower() if len(space) == 3 else space.lower().split("-"))]
    axes = [("right", "left"), ("anterior", "posterior"), ("superior", "inferior")]
    if len(words) != 3 or any(word not in pair for word, pair in zip(words, axes, strict=False)):
        raise DataError(f"{path}: states the space {space!r}, expected one such as left-posterior-superior. Repair the header.")
    return np.diag([_SIGNS[word] for word in words])


def _check_size(path: Path, header: Mapping[str, Any]) -> None:
    """Refuse a header that claims more than its file can hold, before anything is allocated."""
    if path.suffix.lower() == ".nhdr" or header.get("data file") or header.get("datafile"):
        return
    claimed = math.prod(int(size) for size in header["sizes"])
    stored = path.stat().st_size
    if claimed > stored * (1 if header.get("encoding") == "raw" else _LARGEST_RATIO):
        raise DataError(f"{path}: claims {claimed} voxels, but the file has {stored} bytes. It is truncated; replace it.")


def _one_line(name: str) -> str:
    return " ".join(name.split())
