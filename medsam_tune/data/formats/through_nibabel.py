"""Volumes of neuroimaging that nibabel reads: FreeSurfer, PAR/REC, AFNI, MINC and Analyze."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader
from medsam_tune.data.formats.faults import reading
from medsam_tune.data.formats.nifti import NiftiFormat
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.errors import DataError, DataWarning
from medsam_tune.files import write_bytes

# Deflate packs at most 1032 bytes into one.
_LARGEST_RATIO = 1032


class NibabelFormat(Format):
    """Read a kind of volume through nibabel; masks are written as ``.nii.gz``, which every viewer lays on the image.

    Attributes:
        kind: What the files are called in messages.
    """

    kind: ClassVar[str]

    def read_header(self, path: Path) -> VolumeHeader:
        """Read shape and affine; axes of length 1 behind the third are dropped.

        Raises:
            DataError: If the file is no volume of three axes, or its geometry is unknown.
        """
        image = _loaded(path, self.kind)
        _close(image)
        shape = tuple(int(length) for length in image.shape)
        if len(shape) < 3 or set(shape[3:]) - {1} or min(shape) < 1:
            raise DataError(f"{path}: has shape {shape}, expected a volume of 3 axes. Save each time point as a file.")
        read = VolumeHeader(path, (shape[0], shape[1], shape[2]), np.asarray(image.affine, np.float64))
        _ = read.shape  # an affine without orientation is refused here
        return read

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read the values, scaled as the header says; integers of up to 16 bits stay integers."""
        values = self._values(path)
        if values.dtype.kind in "iuf" and not (values.dtype.kind in "iu" and values.dtype.itemsize <= 2):
            values = values.astype(np.float32)
        return check_grey_values(values, path)

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read the label values."""
        return exact_labels(self._values(path), path)

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.nii.gz``."""
        return NiftiFormat().write_labels(stem, labels, header, names)

    def written_as(self, stem: Path) -> Path:
        """Return ``<stem>.nii.gz``."""
        return NiftiFormat().written_as(stem)

    def _values(self, path: Path) -> NDArray[Any]:
        shape = self.read_header(path).stored_shape
        image = _loaded(path, self.kind)
        with _readable(path, self.kind):
            values: NDArray[Any] = np.asanyarray(image.dataobj).reshape(shape)
        _close(image)
        return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


class FreeSurferFormat(NibabelFormat):
    """Read ``.mgz`` and ``.mgh``, as FreeSurfer writes them; masks are written as ``.mgz``."""

    endings = (".mgz", ".mgh")
    kind = "FreeSurfer volume"

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.mgz`` with the image's affine and no other word."""
        import gzip

        import nibabel

        kind = labels.dtype if labels.dtype == np.uint8 else np.dtype(np.int32)
        image = nibabel.MGHImage(labels.astype(kind), header.affine)
        return write_bytes(stem.with_name(f"{stem.name}.mgz"), gzip.compress(image.to_bytes(), mtime=0))

    def written_as(self, stem: Path) -> Path:
        """Return ``<stem>.mgz``."""
        return stem.with_name(f"{stem.name}.mgz")


class ParRecFormat(NibabelFormat):
    """Read Philips' ``.par`` with its ``.rec`` beside it."""

    endings = (".par",)
    kind = "PAR/REC"


class AfniFormat(NibabelFormat):
    """Read AFNI's ``.head`` with its ``.brik`` or ``.brik.gz`` beside it."""

    endings = (".head",)
    kind = "AFNI volume"


class MincFormat(NibabelFormat):
    """Read ``.mnc`` of either version."""

    endings = (".mnc",)
    kind = "MINC volume"


class AnalyzeFormat(NibabelFormat):
    """Read ``.hdr`` with its ``.img`` beside it: Analyze 7.5, SPM's form of it, or a NIfTI pair."""

    endings = (".hdr",)
    kind = "Analyze volume"

    def read_header(self, path: Path) -> VolumeHeader:
        """Read shape and affine; where nothing says which side is left, SPM's rule is taken, and said aloud.

        Raises:
            DataError: If the file is no volume of three axes, or the voxels' file is missing.
        """
        import nibabel

        image = _loaded(path, self.kind)
        # NIfTI is a subclass of Analyze in nibabel; SPM's form may have a .mat file that says where voxels lie.
        stated = isinstance(image, nibabel.Nifti1Pair) or path.with_suffix(".mat").is_file()
        if not stated:
            # The same words for every file, so that they are said once.
            warnings.warn(
                "Analyze files do not say which side is left: their first axis is taken to run to the patient's left, as SPM "
                "does. Convert them to NIfTI if they were written otherwise.",
                DataWarning,
                stacklevel=2,
            )
        return super().read_header(path)


def _loaded(path: Path, kind: str) -> Any:  # noqa: ANN401 - nibabel is not typed
    """Open a volume whose voxels are not read yet, and refuse one that claims more of them than its file can hold."""
    import nibabel

    with _readable(path, kind), warnings.catch_warnings():
        # nibabel tries what it does not know, such as another version of PAR/REC, with a warning.
        warnings.simplefilter("error", UserWarning)
        image = nibabel.load(path)
        stored = Path(image.file_map["image"].filename)
        if not stored.is_file():
            raise DataError(f"{path}: its voxels' file {stored.name} is missing. Put it beside the file, or remove both.")
        size = np.dtype(image.get_data_dtype()).itemsize
        claimed, held = math.prod(int(length) for length in image.shape) * size, stored.stat().st_size
    if claimed > held * _LARGEST_RATIO:
        raise DataError(f"{path}: claims {claimed} bytes of voxels, but {stored.name} has {held}. Replace the file.")
    return image


def _close(image: Any) -> None:  # noqa: ANN401 - nibabel is not typed
    """Close the file of the voxels, which nibabel keeps open for PAR/REC alone."""
    if close := getattr(getattr(image.dataobj, "file_like", None), "close", None):
        close()


def _readable(path: Path, kind: str) -> AbstractContextManager[None]:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.parrec import PARRECError
    from nibabel.spatialimages import HeaderDataError, ImageDataError
    from nibabel.wrapstruct import WrapStructError

    plain = (
        OSError,
        EOFError,
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        ArithmeticError,
        AttributeError,
        UserWarning,
        zlib.error,
    )
    return reading(path, kind, (*plain, ImageFileError, HeaderDataError, ImageDataError, PARRECError, WrapStructError))
