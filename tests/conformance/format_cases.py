"""The formats that the suite holds to their word: how each is built, and how a test writes such a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import nibabel
import nrrd
import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.uid import generate_uid

from medsam_tune.data.formats import (
    DicomFormat,
    Format,
    Hdf5Format,
    MetaImageFormat,
    NiftiFormat,
    NpyFormat,
    NpzFormat,
    NrrdFormat,
    RasterFormat,
    TiffFormat,
)
from tests.dicom_files import NAME, write_series

OBLIQUE = np.array([[0, 0.1, 2.0, 5], [-1.5, 0.1, 0, 7], [0.1, 0.5, 0, -3], [0, 0, 0, 1]])


@dataclass(frozen=True)
class FormatCase:
    """Hold a format and how a file of it is made.

    Attributes:
        name: For the test's name.
        format: The format.
        shape: Of the image that ``write`` is given.
        write: Writes an image, and labels into the same file or the second one, with ``NAME`` in every text field.
        any_number: Whether labels may have any number, or must be numbered from 1 without gaps.
        read_written: Reads written labels, where they are no file that the format reads by itself.
    """

    name: str
    format: Format
    shape: tuple[int, ...]
    write: Callable[[Path, np.ndarray, np.ndarray], tuple[Path, Path]]
    any_number: bool = True
    read_written: Callable[[Path], np.ndarray] | None = None


def _write_nifti(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    paths = []
    for name, values in (("image", image), ("labels", labels)):
        stored = nibabel.Nifti1Image(values, OBLIQUE)
        for field in ("descrip", "aux_file", "db_name", "intent_name", "data_type"):
            stored.header[field] = NAME
        stored.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", NAME.encode()))
        paths.append(folder / f"{name}.nii.gz")
        nibabel.save(stored, paths[-1])
    return paths[0], paths[1]


def _write_npz(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    path = folder / "image.npz"
    np.savez_compressed(path, imgs=image, gts=labels, spacing=(0.5, 0.7, 3.0), patient=np.array(NAME))
    return path, path


def _write_npy(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    np.save(folder / "image.npy", image)
    np.save(folder / "labels.npy", labels)
    return folder / "image.npy", folder / "labels.npy"


def _write_png(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    words = PngInfo()
    words.add_text("Patient", NAME)
    words.add_text("spacing_mm", "0.7 0.5")
    for name, values in (("image", image), ("labels", labels)):
        Image.fromarray(values).save(folder / f"{name}.png", pnginfo=words)
    return folder / "image.png", folder / "labels.png"


def _write_dicom(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    series = write_series(folder / "image.dcm", image, SeriesInstanceUID=generate_uid())
    masks = DicomFormat(patient="copied").write_labels(folder / "labels", labels, DicomFormat().read_header(series))
    return series, masks


def _write_nrrd(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    header = {"space": "right-anterior-superior", "space directions": OBLIQUE[:3, :3].T, "space origin": OBLIQUE[:3, 3]}
    paths = []
    for name, values in (("image.nrrd", image), ("labels.seg.nrrd", labels)):
        nrrd.write(str(folder / name), values, {**header, "content": NAME, "Patient": NAME})
        paths.append(folder / name)
    return paths[0], paths[1]


def _write_mha(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    paths = []
    for name, values in (("image.mha", image), ("labels.mha", labels)):
        text = (
            f"ObjectType = Image\nNDims = 3\nComment = {NAME}\nTransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = 5 7 -3\n"
            f"ElementSpacing = 0.5 0.7 3\nDimSize = {' '.join(map(str, values.shape))}\nElementType = MET_UCHAR\n"
            "ElementDataFile = LOCAL\n"
        )
        paths.append(folder / name)
        paths[-1].write_bytes(text.encode() + values.tobytes(order="F"))
    return paths[0], paths[1]


def _write_hdf5(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    path = folder / "image.h5"
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = image, labels
        file.attrs["patient"] = file["image"].attrs["patient"] = NAME
    return path, path


def _read_hdf5(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["label"][()]


def _write_tiff(folder: Path, image: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    paths = []
    for name, values in (("image.ome.tif", image), ("labels.ome.tif", labels)):
        sizes = {"PhysicalSizeX": 500.0, "PhysicalSizeY": 700.0, "PhysicalSizeZ": 3000.0}
        paths.append(folder / name)
        tifffile.imwrite(paths[-1], values, ome=True, metadata={"axes": "ZYX", "Name": NAME, **sizes})
    return paths[0], paths[1]


FORMATS = [
    FormatCase("nifti", NiftiFormat(), (5, 6, 4), _write_nifti),
    FormatCase("nrrd", NrrdFormat(), (5, 6, 4), _write_nrrd),
    FormatCase("mha", MetaImageFormat(), (5, 6, 4), _write_mha),
    FormatCase("npz", NpzFormat(), (3, 5, 6), _write_npz, read_written=lambda path: np.load(path)["segs"]),
    FormatCase("hdf5", Hdf5Format(), (3, 5, 6), _write_hdf5, read_written=_read_hdf5),
    FormatCase("tiff", TiffFormat(), (3, 5, 6), _write_tiff),
    FormatCase("npy", NpyFormat(), (5, 6), _write_npy),
    FormatCase("raster", RasterFormat(), (5, 6), _write_png),
    FormatCase("dicom", DicomFormat(), (3, 5, 6), _write_dicom, any_number=False),
]
