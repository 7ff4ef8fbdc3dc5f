"""Masks as a DICOM structure set: the outlines of their pixels on the slices of the series."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.dicom.polygons import outline_pixels
from medsam_tune.data.formats.dicom.reading import readable
from medsam_tune.data.formats.dicom.slices import Slice
from medsam_tune.data.formats.dicom.sources import (
    MAKER,
    SERIES_NUMBER,
    Patient,
    check_frame,
    maker_version,
    segment_names,
    source_datasets,
)
from medsam_tune.files import write_bytes

_STORAGE = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY = "1.2.840.10008.3.1.2.3.1"
_COPIED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
)


def write_structures(
    path: Path,
    labels: NDArray[Any],
    affine: NDArray[np.float64],
    slices: Sequence[Slice],
    names: Mapping[int, str] | None,
    patient: Patient,
) -> Path:
    """Write a structure set with one region a label, whose contours run along the edges of the pixels.

    So the area of the contours is that of the pixels, and reading them gives the masks again. A hole is a contour inside
    another.

    Args:
        path: The file.
        labels: (D, H, W) whole numbers.
        affine: (4, 4) from (slice, row, column) to RAS millimetres.
        slices: Of the series, in the order of ``labels``.
        names: What the labels are called.
        patient: Whether name, id and dates of the source are copied.

    Raises:
        DataError: If the series cannot be read any more, says nothing of its place, or the file cannot be written.
    """
    check_frame(slices[0])
    called = segment_names(labels, names, path)
    files = list(dict.fromkeys(each.path for each in slices))
    sources = dict(zip(files, source_datasets(files, patient), strict=True))
    with readable(slices[0].path):
        made = _new_set(sources[files[0]])
        images = [_image_reference(each, sources[each.path]) for each in slices]
        made.ReferencedFrameOfReferenceSequence = [_frame_reference(sources[files[0]], slices[0], images)]
        made.StructureSetROISequence = [_region(number, name, made.FrameOfReferenceUID) for number, name in called.items()]
        made.ROIContourSequence = [_contours(number, labels, affine, images) for number in called]
        made.RTROIObservationsSequence = [_observation(number) for number in called]
        packed = io.BytesIO()
        made.save_as(packed, enforce_file_format=True)
    return write_bytes(path, packed.getvalue())


def _new_set(source: Any) -> Any:  # noqa: ANN401
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    made, now = Dataset(), datetime.now(UTC)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = UID(_STORAGE)
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _COPIED:
        setattr(made, keyword, source.get(keyword, ""))
    made.Modality, made.SeriesInstanceUID, made.SeriesNumber = "RTSTRUCT", generate_uid(), SERIES_NUMBER
    made.OperatorsName, made.InstanceNumber = "", 1
    made.Manufacturer = made.ManufacturerModelName = MAKER
    made.SoftwareVersions = maker_version()
    made.StructureSetLabel = "SEGMENTATION"
    made.StructureSetDate, made.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    return made


def _image_reference(each: Slice, source: Any) -> Any:  # noqa: ANN401
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, each.uid
    if each.frames > 1:
        item.ReferencedFrameNumber = each.frame + 1
    return item


def _frame_reference(source: Any, first: Slice, images: Sequence[Any]) -> Any:  # noqa: ANN401
    from pydicom.dataset import Dataset

    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = first.series.uid
    series.ContourImageSequence = list(images)
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY, source.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = source.FrameOfReferenceUID, [study]
    return frame


def _region(number: int, name: str, frame: str) -> Any:  # noqa: ANN401
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ROINumber, item.ReferencedFrameOfReferenceUID = number, frame
    item.ROIName, item.ROIGenerationAlgorithm = name[:64], "AUTOMATIC"
    return item


def _contours(number: int, labels: NDArray[Any], affine: NDArray[np.float64], images: Sequence[Any]) -> Any:  # noqa: ANN401
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedROINumber, contours = number, []
    for position, image in enumerate(images):
        for outline in outline_pixels(labels[position] == number):
            voxels = np.column_stack([np.full(len(outline), position), outline, np.ones(len(outline))])
            points = (voxels @ affine.T)[:, :3] * np.array([-1.0, -1.0, 1.0])
            contour = Dataset()
            contour.ContourImageSequence, contour.ContourGeometricType = [image], "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.5f}" for value in points.ravel()]
            contours.append(contour)
    if contours:
        item.ContourSequence = contours
    return item


def _observation(number: int) -> Any:  # noqa: ANN401
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    return item
