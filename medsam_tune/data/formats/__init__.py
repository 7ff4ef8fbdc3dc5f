"""File formats, one a file: each reads its kind of file and writes masks as such files."""

from medsam_tune.data.formats.base import Format, VolumeHeader, check_same_grid
from medsam_tune.data.formats.channels import ChannelFiles, NiftiChannels
from medsam_tune.data.formats.dicom import DicomFormat, DicomStructures
from medsam_tune.data.formats.hdf5 import Hdf5Format
from medsam_tune.data.formats.known import FORMATS, WRITERS, format_of, writer_for
from medsam_tune.data.formats.meta_image import MetaImageFormat
from medsam_tune.data.formats.nifti import NiftiFormat
from medsam_tune.data.formats.npy import NpyFormat
from medsam_tune.data.formats.npz import NpzFormat
from medsam_tune.data.formats.nrrd import NrrdFormat
from medsam_tune.data.formats.raster import RasterFormat
from medsam_tune.data.formats.slice_images import SliceImages
from medsam_tune.data.formats.through_nibabel import (
    AfniFormat,
    AnalyzeFormat,
    FreeSurferFormat,
    MincFormat,
    ParRecFormat,
)
from medsam_tune.data.formats.tiff import TiffFormat

__all__ = [
    "FORMATS",
    "WRITERS",
    "AfniFormat",
    "AnalyzeFormat",
    "ChannelFiles",
    "DicomFormat",
    "DicomStructures",
    "Format",
    "FreeSurferFormat",
    "Hdf5Format",
    "MetaImageFormat",
    "MincFormat",
    "NiftiChannels",
    "NiftiFormat",
    "NpyFormat",
    "NpzFormat",
    "NrrdFormat",
    "ParRecFormat",
    "RasterFormat",
    "SliceImages",
    "TiffFormat",
    "VolumeHeader",
    "check_same_grid",
    "format_of",
    "writer_for",
]
