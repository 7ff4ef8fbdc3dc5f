"""The formats that are tried on a file of which only the name is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medsam_tune.data.formats.base import Format
from medsam_tune.data.formats.dicom import DicomFormat
from medsam_tune.data.formats.meta_image import MetaImageFormat
from medsam_tune.data.formats.nifti import NiftiFormat
from medsam_tune.data.formats.npy import NpyFormat
from medsam_tune.data.formats.npz import NpzFormat
from medsam_tune.data.formats.nrrd import NrrdFormat
from medsam_tune.data.formats.raster import RasterFormat

FORMATS: tuple[Format, ...] = (
    NiftiFormat(),
    NrrdFormat(),
    MetaImageFormat(),
    NpzFormat(),
    NpyFormat(),
    DicomFormat(),
    RasterFormat(),
)


def format_of(path: Path, formats: Iterable[Format] = FORMATS) -> Format | None:
    """Return the format of a file by its longest ending, the first of several, or None where none knows it.

    Examples:
        >>> type(format_of(Path("a.nii.gz"))).__name__, format_of(Path("a.gz"))
        ('NiftiFormat', None)
    """
    name = path.name.lower()
    fitting = [(max(map(len, ending)), each) for each in formats if (ending := [e for e in each.endings if name.endswith(e)])]
    return max(fitting, key=lambda found: found[0])[1] if fitting else None
