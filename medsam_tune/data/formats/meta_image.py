"""MetaImage files (.mha, .mhd): volumes as ITK writes them.

Source: https://itk.org/Wiki/ITK/MetaIO/Documentation, "Reference: Tags of MetaImage".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader
from medsam_tune.data.formats.faults import reading
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.errors import DataError
from medsam_tune.files import write_bytes

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_LONGEST_HEADER = 1 << 16


@dataclass(frozen=True)
class _Meta:
    """Hold a header's words by key, and where the voxels begin behind it."""

    words: Mapping[str, str]
    end: int


class MetaImageFormat(Format):
    """Read ``.mha`` and ``.mhd``; masks are written as packed ``.mha``."""

    endings = (".mha", ".mhd")

    def read_header(self, path: Path) -> VolumeHeader:
        """Read shape and geometry.

        Raises:
            DataError: If the file is no MetaImage of three axes.
        """
        words = _read_meta(path).words
        with _readable(path):
            shape = [int(word) for word in words["DimSize"].split()]
            sizes = _numbers(words, ("ElementSpacing", "ElementSize"), [1.0] * 3)
            origin = _numbers(words, ("Offset", "Position", "Origin"), [0.0] * 3)
            directions = _numbers(words, ("TransformMatrix", "Rotation", "Orientation"), np.eye(3).ravel().tolist())
        if len(shape) != 3 or min(shape) < 1:
            raise DataError(f"{path}: has shape {tuple(shape)}, expected a volume of 3 axes. Save each time point as a file.")
        affine = np.eye(4)
        # A row of the matrix is the direction of an axis.
        affine[:3, :3] = _TO_RAS @ (directions.reshape(3, 3).T * sizes)
        affine[:3, 3] = _TO_RAS @ origin
        states = any(key in words for key in ("ElementSpacing", "ElementSize"))
        read = VolumeHeader(path, (shape[0], shape[1], shape[2]), affine, states_spacing=states)
        _ = read.shape  # an affine without orientation is refused here
        return read

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read the values, with a last axis of 3 for colours."""
        return check_grey_values(self._values(path), path)

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read the label values."""
        values = self._values(path)
        if values.ndim > 3:
            raise DataError(f"{path}: has {values.shape[3]} values a voxel; a mask has one. Save it so.")
        return exact_labels(values, path)

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.mha`` on the source's voxels."""
        kind = next(name for name, code in _TYPES.items() if np.dtype(code) == labels.dtype)
        sizes = np.linalg.norm(header.affine[:3, :3], axis=0)
        packed = zlib.compress(np.asfortranarray(labels).tobytes(order="F"))
        facts = {
            "ObjectType": "Image",
            "NDims": 3,
            "BinaryData": True,
            "BinaryDataByteOrderMSB": False,
            "CompressedData": True,
            "CompressedDataSize": len(packed),
            "TransformMatrix": _joined((_TO_RAS @ header.affine[:3, :3] / sizes).T),
            "Offset": _joined(_TO_RAS @ header.affine[:3, 3]),
            "ElementSpacing": _joined(sizes),
            "DimSize": _joined(labels.shape),
            "ElementType": kind,
            "ElementDataFile": "LOCAL",
        }
        text = "".join(f"{key} = {value}\n" for key, value in facts.items())
        return write_bytes(stem.with_name(f"{stem.name}.mha"), text.encode() + packed)

    def _values(self, path: Path) -> NDArray[Any]:
        shape = self.read_header(path).stored_shape
        meta = _read_meta(path)
        words, kind = meta.words, meta.words.get("ElementType", "")
        if kind not in _TYPES:
            raise DataError(f"{path}: has the ElementType {kind!r}, expected one of {', '.join(_TYPES)}. Save it as such.")
        with _readable(path):
            channels = int(words.get("ElementNumberOfChannels", 1))
            swapped = _is_true(words, "BinaryDataByteOrderMSB") or _is_true(words, "ElementByteOrderMSB")
            dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if swapped else "<")
            content = _content(path, meta, math.prod(shape) * channels * dtype.itemsize)
            values = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
        if channels not in (1, 3):
            raise DataError(f"{path}: has {channels} values a voxel, expected 1 or 3. Save each channel as a file.")
        arranged: NDArray[Any] = values.reshape((channels, *shape), order="F")
        return arranged[0] if channels == 1 else np.moveaxis(arranged, 0, -1)


def _readable(path: Path) -> AbstractContextManager[None]:
    return reading(path, "MetaImage", (OSError, ValueError, KeyError, OverflowError, zlib.error))


def _read_meta(path: Path) -> _Meta:
    with _readable(path), path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    words, at = {}, 0
    while "ElementDataFile" not in words:
        end = start.find(b"\n", at)
        key, equals, value = start[at:end].decode("latin-1").partition("=")
        if end < 0 or not equals:
            raise DataError(f"{path}: cannot be read as MetaImage (its header does not end). Replace or remove the file.")
        words[key.strip()], at = value.strip(), end + 1
    return _Meta(words, at)


def _content(path: Path, meta: _Meta, expected: int) -> bytes:
    """Return the voxels' bytes, unpacked, never more than the header says there are."""
    name = meta.words["ElementDataFile"]
    data = path if name == "LOCAL" else path.parent / name
    if name == "LIST" or "%" in name:
        raise DataError(f"{path}: its voxels lie in several files. Save it as one .mha.")
    if data.parent.resolve() != path.parent.resolve():
        raise DataError(f"{path}: its voxels lie in another folder ({name}). Put both files into one.")
    with data.open("rb") as file:
        file.seek(meta.end if name == "LOCAL" else max(0, int(meta.words.get("HeaderSize", 0))))
        stored = file.read()
    if _is_true(meta.words, "CompressedData"):
        unpacker = zlib.decompressobj()
        stored = unpacker.decompress(stored, expected)
        if len(stored) == expected and not unpacker.eof:
            stored += unpacker.decompress(unpacker.unconsumed_tail, 1)
            if not unpacker.eof:
                raise DataError(f"{path}: holds more than the {expected} bytes of its shape, or is cut off. Replace the file.")
    if len(stored) != expected:
        raise DataError(f"{path}: claims {expected} bytes of voxels, but the file has {len(stored)}. Replace the file.")
    return stored


def _numbers(words: Mapping[str, str], keys: tuple[str, ...], default: list[float]) -> NDArray[np.float64]:
    text = next((words[key] for key in keys if key in words), None)
    return np.array(default if text is None else [float(word) for word in text.split()], np.float64)


def _is_true(words: Mapping[str, str], key: str) -> bool:
    return words.get(key, "").lower() in ("true", "t", "1")


def _joined(numbers: Any) -> str:  # noqa: ANN401
    return " ".join(repr(number) for number in np.asarray(numbers).ravel().tolist())
