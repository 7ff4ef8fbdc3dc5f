"""Small DICOM files with known content, for every room's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from medsam_tune.data.formats import DicomFormat

NAME = "DOE^JANE"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def plane(values: np.ndarray, **attributes: object) -> Dataset:
    """One slice of (H, W) whole numbers, or (H, W, 3) colours; ``attributes`` come last."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.Modality = CTImageStorage, "CT"
    dataset.SOPInstanceUID, dataset.StudyInstanceUID = generate_uid(), "1.2.3"
    dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID, dataset.SeriesNumber = "1.2.3.4", "1.2.3.5", 7
    for word in ("PatientName", "PatientID", "StudyDescription", "SeriesDescription", "InstitutionName", "ImageComments"):
        setattr(dataset, word, NAME)
    dataset.PatientBirthDate, dataset.StudyDate, dataset.StudyTime = "19590203", "20190405", "101112"
    dataset.PatientSex, dataset.AccessionNumber, dataset.StudyID, dataset.ReferringPhysicianName = "F", NAME, NAME, NAME
    dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = dataset.InstanceCreationDate = "20190405"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PixelSpacing, dataset.SliceThickness = [0.7, 0.5], 3
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = list(AXIAL), [-10, 20, 30]
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def save(path: Path, dataset: Dataset) -> Path:
    """Write a data set as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, volume: np.ndarray, *, positions: list | None = None, **attributes: object) -> Path:
    """Write (D, H, W[, 3]) as slices 3 mm apart from (-10, 20, 30) upwards; the names run against the order in space.

    ``positions`` are those of the slices, as (x, y, z); an attribute that is a list of lists or a tuple is one value a slice.
    """
    positions = positions or [(-10, 20, 30 + 3 * number) for number in range(len(volume))]
    for number, (values, position) in enumerate(zip(volume, positions, strict=True)):
        own = {word: value[number] if isinstance(value, tuple) else value for word, value in attributes.items()}
        dataset = plane(np.ascontiguousarray(values), **{"ImagePositionPatient": list(position), **own})
        save(folder / f"{len(volume) - number:03d}.dcm", dataset)
    return folder


def write_multiframe(path: Path, volume: np.ndarray, order: list[int], slopes: list[float]) -> Path:
    """Write an enhanced multi-frame file whose frames stand in ``order``, each with its own slope of rescale."""
    dataset = plane(np.ascontiguousarray(volume[order]).reshape(-1, volume.shape[2]))
    dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = volume.shape[1], volume.shape[2], len(order)
    for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, word)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(AXIAL)
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.5], 3
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in order:
        frame, position, rescale = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [-10, 20, 30 + 3 * number]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slopes[number], 0, "US"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [rescale]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return save(path, dataset)


def write_study(root: Path, name: str, image: np.ndarray, labels: np.ndarray | None, *, number: int) -> None:
    """Write a RAS volume (X, Y, Z) below ``root`` as ``images/<name>`` and its labels as a SEG below ``labels``.

    Two numbers that follow each other, from 0 on, are two visits of one patient.
    """
    upright = np.rint(image.transpose(2, 1, 0)[:, ::-1, ::-1]).astype(np.uint16)
    uids = {"SeriesInstanceUID": f"1.2.3.{number}", "StudyInstanceUID": f"1.2.{number}", "FrameOfReferenceUID": f"1.9.{number}"}
    positions = [(0, 0, height) for height in range(len(upright))]
    patient = {"PatientID": f"{NAME}-{number // 2}", "PixelSpacing": [1, 1], "SliceThickness": 1}
    series = write_series(root / "images" / name, upright, positions=positions, **uids, **patient)
    if labels is not None:
        masks = labels.transpose(2, 1, 0)[:, ::-1, ::-1].astype(np.uint8)
        form = DicomFormat(patient="copied")
        form.write_labels(root / "labels" / f"{name}-seg", masks, form.read_header(series), {1: "Anterior", 2: "Posterior"})
