"""DICOM: series of slices in, segmentation objects in and out."""

from medsam_tune.data.formats.dicom.format import DicomFormat, DicomStructures

__all__ = ["DicomFormat", "DicomStructures"]
