"""The formats that are tried on a file of which only the name is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medsam_tune.data.formats.base import Format
from medsam_tune.data.formats.coco_writing import CocoFormat, CocoPolygons
from medsam_tune.data.formats.dicom import DicomFormat, DicomStructures
from medsam_tune.data.formats.hdf5 import Hdf5Format
from medsam_tune.data.formats.meta_image import MetaImageFormat
from medsam_tune.data.formats.nifti import NiftiFormat
from medsam_tune.data.formats.npy import NpyFormat
from medsam_tune.data.formats.npz import NpzFormat
from medsam_tune.data.formats.nrrd import NrrdFormat
from medsam_tune.data.formats.raster import RasterFormat
from medsam_tune.data.formats.through_nibabel import (
    AfniFormat,
    AnalyzeFormat,
    FreeSurferFormat,
    MincFormat,
    ParRecFormat,
)
from medsam_tune.data.formats.tiff import TiffFormat
from medsam_tune.errors import RecipeError

FORMATS: tuple[Format, ...] = (
    NiftiFormat(),
    NrrdFormat(),
    MetaImageFormat(),
    NpzFormat(),
    NpyFormat(),
    Hdf5Format(),
    DicomFormat(),
    RasterFormat(),
    TiffFormat(),
    FreeSurferFormat(),
    ParRecFormat(),
    AfniFormat(),
    MincFormat(),
    AnalyzeFormat(),
)


WRITERS: dict[str, Format] = {
    "nifti": NiftiFormat(),
    "nrrd": NrrdFormat(),
    "mha": MetaImageFormat(),
    "seg": DicomFormat(),
    "rtstruct": DicomStructures(),
    "coco": CocoFormat(),
    "coco-polygons": CocoPolygons(),
}
"""What masks can be written as, whatever their image is stored as; DICOM objects need a DICOM image."""


def writer_for(reader: Format, to: str | None, *, keep_patient: bool = False) -> Format:
    """Return the format that writes the masks of an image.

    Args:
        reader: The image's format, which writes unless another is asked for.
        to: A name of ``WRITERS``, or None.
        keep_patient: Whether a DICOM object names the patient, as an archive needs it to file the object.

    Raises:
        RecipeError: If a patient is to be kept in files that hold none.
    """
    writer = reader if to is None else WRITERS[to]
    if not keep_patient:
        return writer
    if not isinstance(writer, DicomFormat):
        raise RecipeError("--keep-patient: only DICOM objects name a patient. Leave it out, or write --to seg or rtstruct.")
    return type(writer)(patient="copied")


def format_of(path: Path, formats: Iterable[Format] = FORMATS) -> Format | None:
    """Return the format of a file by its longest ending, the first of several, or None where none knows it.

    Examples:
        >>> type(format_of(Path("a.nii.gz"))).__name__, format_of(Path("a.gz"))
        ('NiftiFormat', None)
    """
    name = path.name.lower()
    fitting = [(max(map(len, ending)), each) for each in formats if (ending := [e for e in each.endings if name.endswith(e)])]
    return max(fitting, key=lambda found: found[0])[1] if fitting else None
