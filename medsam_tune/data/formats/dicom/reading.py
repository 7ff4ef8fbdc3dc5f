"""Open DICOM files; whatever cannot be read is refused with its path, and no text of a header is repeated."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsam_tune.data.formats.faults import reading
from medsam_tune.errors import DataError

ENDINGS = (".dcm", ".ima", ".dicom", ".seg")
_PREAMBLE = 128
# What pydicom and its decoders were seen to raise on damaged bytes.
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def is_dicom(path: Path) -> bool:
    """Tell whether a file begins as a DICOM file does, whatever its name.

    Raises:
        DataError: If it cannot be read.
    """
    with readable(path), path.open("rb") as file:
        file.seek(_PREAMBLE)
        return file.read(4) == b"DICM"


def read_dataset(path: Path, *, tags: Sequence[str] | None = None, pixels: bool = False) -> Any:  # noqa: ANN401
    """Read a file's attributes.

    Args:
        path: The file.
        tags: Keywords of the attributes that are needed; all by default.
        pixels: Read the pixel data too.

    Raises:
        DataError: If it is no DICOM file, or damaged.
    """
    import pydicom

    with readable(path):
        if not is_dicom(path):
            raise DataError(f"{path}: is no DICOM file (no DICM at byte {_PREAMBLE}). Replace or remove the file.")
        return pydicom.dcmread(path, stop_before_pixels=not pixels, specific_tags=None if tags is None else list(tags))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what pydicom raises into one line that begins with the file; its warnings, which repeat values, are not shown."""
    from pydicom.config import disable_value_validation
    from pydicom.errors import BytesLengthException, InvalidDicomError

    faults = (*_UNREADABLE, InvalidDicomError, BytesLengthException)
    with (
        reading(path, "DICOM", faults, too_large="Crop the series."),
        warnings.catch_warnings(),
        disable_value_validation(),
    ):
        warnings.simplefilter("ignore")
        yield
