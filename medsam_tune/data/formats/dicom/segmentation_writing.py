"""Masks as a DICOM segmentation that refers to the slices of its series."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.dicom.reading import readable
from medsam_tune.data.formats.dicom.slices import Slice
from medsam_tune.data.formats.dicom.sources import (
    MAKER,
    SERIES_NUMBER,
    Patient,
    check_frame,
    maker_version,
    segment_codes,
    segment_names,
    source_datasets,
)
from medsam_tune.data.formats.dicom.stack import order_slices
from medsam_tune.files import write_bytes


def write_segmentation(
    path: Path, labels: NDArray[Any], slices: Sequence[Slice], names: Mapping[int, str] | None, patient: Patient
) -> Path:
    """Write a binary segmentation with one segment a label.

    Args:
        path: The file.
        labels: (D, H, W) whole numbers.
        slices: Of the series, in the order of ``labels``.
        names: What the labels are called.
        patient: Whether name, id and dates of the source are copied.

    Raises:
        DataError: If the series cannot be read any more, or the file cannot be written.
    """
    import highdicom
    from highdicom.seg import Segmentation

    called = segment_names(labels, names, path)
    if slices[0].lies_in_space:
        check_frame(slices[0])
    files = list(dict.fromkeys(each.path for each in slices))
    place = slices[0].path
    sources = source_datasets(files, patient)
    if slices[0].lies_in_space:
        depth_mm = float(np.linalg.norm(order_slices(slices, place)[1][:3, 0]))
        for source in sources:
            _state_depth(source, depth_mm)
    with readable(place):
        made = Segmentation(
            source_images=sources,
            pixel_array=_by_source(labels, slices),
            segmentation_type="BINARY",
            segment_descriptions=[_describe(number, name) for number, name in called.items()],
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=maker_version(),
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description="Masks predicted by a tuned model",
        )
        made.SeriesDescription = "Segmentation"
        if not slices[0].lies_in_space:
            _describe_picture(made, sources[0])
        if len(slices) == 1:
            # highdicom makes a distance of 1 mm up where there is no second slice.
            for measures in made.SharedFunctionalGroupsSequence[0].get("PixelMeasuresSequence", []):
                measures.pop("SpacingBetweenSlices", None)
        packed = io.BytesIO()
        made.save_as(packed)
    return write_bytes(path, packed.getvalue())


def _by_source(labels: NDArray[Any], slices: Sequence[Slice]) -> NDArray[Any]:
    """Return the planes in the order of the files, or of the frames of one file."""
    kind = np.uint8 if labels.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16
    planes = np.empty(labels.shape, kind)
    for number, (each, plane) in enumerate(zip(slices, labels, strict=True)):
        planes[each.frame if each.frames > 1 else number] = plane
    return planes


def _state_depth(source: Any, depth_mm: float) -> None:  # noqa: ANN401
    """Write the distance of the slices where a header leaves their thickness out, which a segmentation must state."""
    from pydicom.valuerep import format_number_as_ds

    groups = [*source.get("SharedFunctionalGroupsSequence", []), *source.get("PerFrameFunctionalGroupsSequence", [])]
    measures = [item for group in groups for item in group.get("PixelMeasuresSequence", [])]
    for item in measures or [source]:
        if not item.get("SliceThickness"):
            item.SliceThickness = format_number_as_ds(depth_mm)


def _describe_picture(made: Any, source: Any) -> None:  # noqa: ANN401
    """Say of masks on a picture without a place in space what DICOM asks for, and no more, as dciodvfy checks it."""
    made.PatientOrientation = source.get("PatientOrientation") or []
    shared = made.SharedFunctionalGroupsSequence[0]
    if any("SliceThickness" not in measures for measures in shared.get("PixelMeasuresSequence", [])):
        del shared.PixelMeasuresSequence


def _describe(number: int, name: str) -> Any:  # noqa: ANN401
    import highdicom
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    category, kind = segment_codes(name)
    return SegmentDescription(
        segment_number=number,
        # DICOM's LO takes 64 characters.
        segment_label=name[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=MAKER, family=codes.DCM.ArtificialIntelligence, version=maker_version()
        ),
    )
