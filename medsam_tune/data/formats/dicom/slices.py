"""Slices: what the files of a DICOM series, or the frames of one file, say of their place and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.dicom.reading import read_dataset, readable
from medsam_tune.errors import DataError

_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "SeriesNumber",
    "SeriesDescription",
    "PatientID",
    "ImageType",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
# Objects with rows and columns that are no images of a patient.
_NO_IMAGES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "PR", "KO", "SR", "REG")


@dataclass(frozen=True)
class Series:
    """Hold what tells one series from another.

    Attributes:
        uid: SeriesInstanceUID.
        number: SeriesNumber, or None.
        modality: Such as CT.
        description: SeriesDescription; it is searched, never shown.
        patient_id: PatientID; it is compared, never shown.
        frame_of_reference: FrameOfReferenceUID, or an empty text.
    """

    uid: str
    number: int | None
    modality: str
    description: str
    patient_id: str | None
    frame_of_reference: str


@dataclass(frozen=True)
class Slice:
    """Hold one plane of pixels: a file, or one frame of a file.

    Attributes:
        path: The file.
        frame: Its number in the file, from 0 on.
        frames: How many frames the file has.
        size: (H, W).
        position_mm: (3,) centre of the first pixel in DICOM's coordinates (to the left, back, up), or None.
        directions: (2, 3) of the columns' and the rows' run, or None.
        spacing_mm: Between rows, between columns, or None.
        thickness_mm: What the header says of the depth of a slice, or None.
        uid: SOPInstanceUID.
        image_type: The values of ImageType.
        colour: Whether a pixel has three values.
        series: The series.
    """

    path: Path
    frame: int
    frames: int
    size: tuple[int, int]
    position_mm: NDArray[np.float64] | None
    directions: NDArray[np.float64] | None
    spacing_mm: tuple[float, float] | None
    thickness_mm: float | None
    uid: str
    image_type: tuple[str, ...]
    colour: bool
    series: Series

    @property
    def lies_in_space(self) -> bool:
        """Tell whether the header says where the plane lies."""
        return self.position_mm is not None and self.directions is not None

    @property
    def name(self) -> str:
        """Return the file's name, with the frame where there are several."""
        return self.path.name if self.frames == 1 else f"{self.path.name} frame {self.frame + 1}"


def read_slices(path: Path) -> list[Slice]:
    """Read the planes of a file; none where it holds no image, such as a segmentation or a report.

    A header is read once as long as its file stays as it is: reading a series asks for it several times.

    Raises:
        DataError: If it cannot be read.
    """
    with readable(path):
        stat = path.stat()
    return list(_read_slices(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)))


# A long CT has about a thousand files.
@lru_cache(maxsize=4096)
def _read_slices(path: Path, state: tuple[int, ...]) -> tuple[Slice, ...]:
    from pydicom.uid import UID, MediaStorageDirectoryStorage

    dataset = read_dataset(path, tags=_TAGS)
    with readable(path):
        kind = UID(str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""))
        if kind == MediaStorageDirectoryStorage:
            return ()
        has_pixels = dataset.get("Rows") and dataset.get("Columns")
        # pydicom takes a file that ends within its header for a short one.
        if not has_pixels and (not dataset.get("SeriesInstanceUID") or kind.name.endswith("Image Storage")):
            raise DataError(f"{path}: ends within its header. Replace or remove the file.")
        if not dataset.get("SeriesInstanceUID"):
            raise DataError(f"{path}: states no SeriesInstanceUID, so nothing says what it belongs to. Repair the header.")
        if not has_pixels or str(dataset.get("Modality", "")) in _NO_IMAGES:
            return ()
    return tuple(read_frames(dataset, path))


def read_frames(dataset: Any, path: Path) -> list[Slice]:  # noqa: ANN401
    """Return the planes that a header describes.

    Raises:
        DataError: If a number of it is none.
    """
    with readable(path):
        series = Series(
            str(dataset.get("SeriesInstanceUID", "")),
            None if dataset.get("SeriesNumber") is None else int(dataset.SeriesNumber),
            str(dataset.get("Modality", "")),
            str(dataset.get("SeriesDescription", "")),
            str(dataset.get("PatientID") or "").strip() or None,
            str(dataset.get("FrameOfReferenceUID") or ""),
        )
        n_frames = int(dataset.get("NumberOfFrames") or 1)
        return [_read_slice(dataset, path, frame, n_frames, series) for frame in range(n_frames)]


def functional_group(dataset: Any, frame: int, name: str) -> Any:  # noqa: ANN401
    """Return a functional group of a frame, its own or that of all frames; None where there is none."""
    groups = []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if frame < len(per_frame):
        groups.append(per_frame[frame])
    groups += list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    found = (group.get(name) for group in groups)
    return next((items[0] for items in found if items), None)


def _read_slice(dataset: Any, path: Path, frame: int, frames: int, series: Series) -> Slice:  # noqa: ANN401
    position = functional_group(dataset, frame, "PlanePositionSequence") or dataset
    orientation = functional_group(dataset, frame, "PlaneOrientationSequence") or dataset
    measures = functional_group(dataset, frame, "PixelMeasuresSequence") or dataset
    spacing = _numbers(measures, "PixelSpacing", 2, path)
    between, thick = (measures.get(name) or dataset.get(name) for name in ("SpacingBetweenSlices", "SliceThickness"))
    directions = _numbers(orientation, "ImageOrientationPatient", 6, path)
    return Slice(
        path,
        frame,
        frames,
        (int(dataset.Rows), int(dataset.Columns)),
        _numbers(position, "ImagePositionPatient", 3, path),
        None if directions is None else directions.reshape(2, 3),
        None if spacing is None else (float(spacing[0]), float(spacing[1])),
        abs(float(between or thick)) if between or thick else None,
        str(dataset.get("SOPInstanceUID", "")),
        tuple(str(word) for word in _several(dataset.get("ImageType"))),
        str(dataset.get("PhotometricInterpretation", "")).startswith(("RGB", "YBR", "PALETTE")),
        series,
    )


def _numbers(item: Any, name: str, count: int, path: Path) -> NDArray[np.float64] | None:  # noqa: ANN401
    values = _several(item.get(name))
    if not values:
        return None
    numbers = np.array([float(value) for value in values], np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise DataError(f"{path}: {name} is {numbers.tolist()}, expected {count} finite numbers. Repair or remove the file.")
    return numbers


def _several(values: Any) -> Sequence[Any]:  # noqa: ANN401
    if values is None or values == "":
        return []
    return [values] if isinstance(values, (str, int, float)) else list(values)
