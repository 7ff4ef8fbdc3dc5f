"""NIfTI files: volumes whose header tells where each voxel lies."""

from __future__ import annotations

import gzip
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader
from medsam_tune.data.formats.faults import reading
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.errors import DataError, DataWarning
from medsam_tune.files import write_bytes

_MM_PER_UNIT = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
# What tells where voxels lie. Everything else of a header is the source's own: its words may name a patient.
_GEOMETRY = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)
# Deflate packs at most 1032 bytes into one.
_LARGEST_RATIO = 1032
_BLOCK = 1 << 20
_LARGEST_TAIL = 64 * _BLOCK


class NiftiFormat(Format):
    """Read ``.nii`` and ``.nii.gz``, NIfTI-1 and -2; masks are written as ``.nii.gz`` of the source's kind."""

    endings = (".nii.gz", ".nii")
    axes = 3  # of a file, those of length 1 aside

    def read_header(self, path: Path) -> VolumeHeader:
        """Read shape and affine; axes of length 1 behind the third are dropped.

        Raises:
            DataError: If the file is no NIfTI volume of three axes, or its geometry is unknown.
        """
        with _opened(path) as file, _readable(path):
            header = _checked_header(path, file)
            mm = _MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0)
            placed = np.asarray(header.get_best_affine(), np.float64)
            if not np.isfinite(placed).all():
                raise DataError(f"{path}: its affine holds NaN or infinity. Repair the header.")
            _say_disagreement(header)
            affine = np.diag([mm, mm, mm, 1.0]) @ placed
        read = VolumeHeader(path, _volume_shape(path, header, self.axes)[:3], affine)
        _ = read.shape  # an affine without orientation is refused here
        return read

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read the values, scaled as the header says; integers of up to 16 bits stay integers."""
        values = _read_values(path, self.axes)
        if values.dtype.kind in "iuf" and not (values.dtype.kind in "iu" and values.dtype.itemsize <= 2):
            with np.errstate(over="ignore"):
                values = values.astype(np.float32)
        return check_grey_values(values, path)

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read the label values; integers are never turned into floating point."""
        return exact_labels(_read_values(path), path)

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.nii.gz``: the source's transforms, voxel size and unit, and a header that is new otherwise.

        The masks of an image of another format are turned to RAS order, in which every reader of NIfTI shows them upright.
        """
        import nibabel

        path = stem.with_name(f"{stem.name}.nii.gz")
        if not header.path.name.lower().endswith(self.endings):
            image = nibabel.Nifti1Image(header.to_ras(labels), header.ras_affine)
            image.header.set_xyzt_units(xyz="mm")
            return write_bytes(path, gzip.compress(image.to_bytes(), mtime=0))
        with _opened(header.path) as file, _readable(header.path):
            source = _checked_header(header.path, file)
        new = type(source)()
        new.set_data_dtype(labels.dtype)
        new.set_data_shape(labels.shape)
        new["pixdim"][:4] = source["pixdim"][:4]
        new.set_xyzt_units(xyz=source.get_xyzt_units()[0])
        for field in _GEOMETRY:
            new[field] = source[field]
        kind = nibabel.Nifti2Image if isinstance(new, nibabel.Nifti2Header) else nibabel.Nifti1Image
        image = kind(labels, None, new)
        return write_bytes(path, gzip.compress(image.to_bytes(), mtime=0))


def _say_disagreement(header: Any) -> None:  # noqa: ANN401 - nibabel is not typed
    """Say aloud that a header's two transforms turn its axes to different sides of the patient, or state different voxels."""
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import aff2axcodes

    if min(int(header["sform_code"]), int(header["qform_code"])) < 1:
        return
    try:
        forms = header.get_sform(), header.get_qform()
    except ValueError:  # A qform that is none disagrees with nothing; it is not taken.
        return
    if not all(np.isfinite(form).all() and np.linalg.matrix_rank(form) == 4 for form in forms):
        return
    axes = ["".join(letter or "?" for letter in aff2axcodes(form)) for form in forms]
    sizes = [voxel_sizes(form) for form in forms]
    said = axes if axes[0] != axes[1] else [f"voxels of {' x '.join(f'{mm:g}' for mm in size)} mm" for size in sizes]
    if axes[0] != axes[1] or not np.allclose(sizes[0], sizes[1], rtol=0.01):
        # The same words for all files of a kind, so that they are said once.
        warnings.warn(
            f"the two transforms of a NIfTI header disagree: {said[0]} by sform, {said[1]} by qform. The sform is taken; other "
            "programs may take the qform. Find out which is right, and store it as both.",
            DataWarning,
            stacklevel=3,
        )


def _readable(path: Path) -> AbstractContextManager[None]:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.orientations import OrientationError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    faults = (OSError, EOFError, TypeError, ValueError, KeyError, ArithmeticError, zlib.error)
    return reading(path, "NIfTI", (*faults, ImageFileError, HeaderDataError, OrientationError, WrapStructError))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with _readable(path), path.open("rb") as stored:
        packed = stored.read(2) == b"\x1f\x8b"
        stored.seek(0)
        if not packed:
            yield stored
            return
        with gzip.GzipFile(fileobj=stored) as unpacked:
            yield cast(BinaryIO, unpacked)


def _checked_header(path: Path, file: BinaryIO) -> Any:  # noqa: ANN401 - nibabel is not typed
    """Read a header from the start of a file and refuse what nibabel would repair in silence."""
    import nibabel

    start = file.read(4)
    file.seek(0)
    kind = nibabel.Nifti2Header if start in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Header
    header = kind.from_fileobj(file, check=False)
    if int(header["sizeof_hdr"]) not in (348, 540) or bytes(header["magic"].tobytes())[:3] not in (b"n+1", b"n+2"):
        raise DataError(f"{path}: cannot be read as NIfTI (no such header). Replace or remove the file.")
    sizes = np.asarray(header["pixdim"][1:4], np.float64)
    if int(header["sform_code"]) == 0 and not (np.isfinite(sizes) & (sizes > 0)).all():
        raise DataError(f"{path}: states voxel sizes {sizes.tolist()}, expected three above 0. Repair the header.")
    for field in ("scl_slope", "scl_inter"):
        if np.isinf(header[field]):
            raise DataError(f"{path}: states {field} {float(header[field])}, expected a finite number. Repair the header.")
    header.get_data_dtype()
    return header


def fourth_axis(path: Path) -> int:
    """Return the length of a file's fourth axis, 1 where it has none.

    Raises:
        DataError: If the file cannot be read.
    """
    with _opened(path) as file, _readable(path):
        shape = _checked_header(path, file).get_data_shape()
    return int(shape[3]) if len(shape) > 3 else 1


def _volume_shape(path: Path, header: Any, axes: int) -> tuple[int, int, int, *tuple[int, ...]]:  # noqa: ANN401
    shape = tuple(int(length) for length in header.get_data_shape())
    if len(shape) == 2 and axes == 3:
        shape = (*shape, 1)  # an image alone is a volume of one slice
    if len(shape) < axes or set(shape[axes:]) - {1}:
        raise DataError(
            f"{path}: has shape {shape}, expected a volume of {axes} axes. Save each channel or time point as a file; up to "
            "three channels are also read by data.source.format: NiftiChannels, which `medsam-tune init` writes."
        )
    if min(shape[:axes]) < 1:
        raise DataError(f"{path}: has shape {shape}, an axis without voxels. Replace or remove the file.")
    return shape[0], shape[1], shape[2], *shape[3:axes]


def _read_values(path: Path, axes: int = 3) -> NDArray[Any]:
    """Read the voxels, scaled where the header asks for it, and the file to its end, where gzip keeps its checksum."""
    from nibabel.arrayproxy import ArrayProxy

    with _opened(path) as file, _readable(path):
        header = _checked_header(path, file)
        shape = _volume_shape(path, header, axes)
        _check_size(path, header, shape)
        values: NDArray[Any] = np.asanyarray(ArrayProxy(file, header, mmap=False)).reshape(shape)
        _read_to_end(path, file)
    return values


def _check_size(path: Path, header: Any, shape: tuple[int, ...]) -> None:  # noqa: ANN401
    """Refuse a header that claims more than its file can hold, before anything is allocated."""
    claimed = int(header["vox_offset"]) + int(np.prod(shape, dtype=object)) * header.get_data_dtype().itemsize
    with path.open("rb") as stored:
        packed = stored.read(2) == b"\x1f\x8b"
    stored_bytes = path.stat().st_size
    if claimed > stored_bytes * (_LARGEST_RATIO if packed else 1):
        raise DataError(
            f"{path}: claims {claimed} bytes of voxels {shape}, but the file has {stored_bytes}. It is truncated; replace it."
        )


def _read_to_end(path: Path, file: BinaryIO) -> None:
    tail = 0
    while block := file.read(_BLOCK):
        tail += len(block)
        if tail > _LARGEST_TAIL:
            raise DataError(f"{path}: goes on for more than {_LARGEST_TAIL} bytes behind its voxels. Replace the file.")
