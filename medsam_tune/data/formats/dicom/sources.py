"""What a new DICOM object takes over from the series that it was made of."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.dicom.reading import read_dataset
from medsam_tune.data.formats.dicom.slices import Slice
from medsam_tune.data.formats.present_values import present_values
from medsam_tune.errors import DataError

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

Patient = Literal["left_out", "copied"]
MAKER = "medsam_tune"
# Far from the numbers that scanners give, so that a list of series shows it last.
SERIES_NUMBER = 9000

# What names a patient, a visit or a person. The UIDs of study, series and slices stay: they say what the object belongs to.
_PERSONAL = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_KEPT = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPClassUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "InstanceNumber",
    "SeriesNumber",
    "PhotometricInterpretation",
    "SamplesPerPixel",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence",
    "DimensionIndexSequence",
)
_ABNORMAL = ("tumor", "tumour", "neoplasm", "lesion", "mass", "nodule", "cyst", "edema", "hemorrhage", "necrosis", "metastasis")
_SPELLINGS = {"tumour": "tumor"}


def source_datasets(files: Sequence[Path], patient: Patient) -> list[Any]:
    """Return the headers of a series without pixels, with nothing but geometry and UIDs unless the patient is to be copied.

    Raises:
        DataError: If a file cannot be read any more.
    """
    datasets = []
    for path in files:
        dataset = read_dataset(path)
        if patient == "left_out":
            for element in list(dataset):
                if element.keyword not in _KEPT:
                    del dataset[element.tag]
            for keyword in _PERSONAL:
                setattr(dataset, keyword, "")
        for keyword in _PERSONAL:
            if keyword not in dataset:
                setattr(dataset, keyword, "")
        datasets.append(dataset)
    return datasets


def check_frame(first: Slice) -> None:
    """Refuse a series whose coordinates have no name.

    Raises:
        DataError: If there is no FrameOfReferenceUID.
    """
    if not first.series.frame_of_reference:
        raise DataError(
            f"{first.path}: states no FrameOfReferenceUID, without which a DICOM object cannot say where it lies. "
            "Write NIfTI instead (predict --to nifti)."
        )


def maker_version() -> str:
    """Return the version of this package."""
    return importlib.metadata.version(MAKER)


def segment_names(labels: NDArray[Any], names: Mapping[int, str] | None, place: Path) -> dict[int, str]:
    """Return what each label is called, numbered from 1 without gaps as DICOM asks for.

    Args:
        labels: Whole numbers.
        names: The names that are known; a number without one is called ``label <number>``.
        place: For the message.

    Raises:
        DataError: If a number is too large to be reached without gaps.
    """
    largest = max([int(labels.max(initial=0)), *(names or {})], default=0) or 1
    if largest > np.iinfo(np.uint8).max and largest > 2 * len(present_values(labels)):
        raise DataError(f"{place}: label {largest} is no number that DICOM gives a segment: 1, 2, 3. Number the labels so.")
    return {number: (names or {}).get(number) or f"label {number}" for number in range(1, largest + 1)}


def segment_codes(name: str) -> tuple[Code, Code]:
    """Return SNOMED CT's category and type of a segment, told from its name; tissue where the name is no term of DICOM's.

    Example:
        >>> [code.meaning for code in segment_codes("left kidney")], [code.meaning for code in segment_codes("wall of it")]
        (['Anatomical Structure', 'Kidney'], ['Tissue', 'Tissue'])
    """
    from pydicom.sr.codedict import codes

    words = [_SPELLINGS.get(word, word) for word in name.lower().replace("_", " ").replace("-", " ").split()]
    for term in ("".join(word.capitalize() for word in words), *(word.capitalize() for word in words[-1:])):
        if term.isidentifier() and hasattr(codes.SCT, term):
            normal, abnormal = codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure
            return abnormal if words[-1] in _ABNORMAL else normal, getattr(codes.SCT, term)
    return codes.SCT.Tissue, codes.SCT.Tissue
