"""TIFF volumes: multi-page, ImageJ and OME; a plain TIFF of one page is an image as well."""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import Format, VolumeHeader, image_header, slices_affine
from medsam_tune.data.formats.faults import reading
from medsam_tune.data.formats.values import check_grey_values, exact_labels
from medsam_tune.errors import DataError
from medsam_tune.files import write_bytes

# What tifffile calls an axis of pages whose meaning the file does not state.
_SLICES = "ZQI"
_MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "µm": 1e-3, "um": 1e-3, "micron": 1e-3, "\\u00B5m": 1e-3, "nm": 1e-6}
_LARGEST_RATIO = 10_000


@dataclass(frozen=True)
class _Stack:
    """Hold what a file says of its pages: axes and lengths without those of length 1, type, and (x, y, z) in mm or None."""

    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    spacing_mm: tuple[float, float, float] | None


class TiffFormat(Format):
    """Read TIFF volumes with axes Z, Y, X; masks are written as packed OME-TIFF.

    Slices are shown as they are stored. Several time points or channels are refused, never taken for slices. Of a palette the
    stored values count, not its colours.
    """

    endings = (".ome.tif", ".ome.tiff", ".tif", ".tiff")

    def read_header(self, path: Path) -> VolumeHeader:
        """Read shape, and spacing where the file is ImageJ's or OME's and states it.

        Raises:
            DataError: If the file cannot be read or has axes other than Z, Y, X and colours.
        """
        stack = _read_stack(path)
        spatial = tuple(length for axis, length in zip(stack.axes, stack.shape, strict=True) if axis != "S")
        if len(spatial) == 2:
            spacing = None if stack.spacing_mm is None else (stack.spacing_mm[1], stack.spacing_mm[0])
            return image_header(path, (spatial[0], spatial[1]), spacing)
        affine = slices_affine(stack.spacing_mm or (1.0, 1.0, 1.0))
        shape = (spatial[0], spatial[1], spatial[2])
        return VolumeHeader(path, shape, affine, states_spacing=stack.spacing_mm is not None)

    def read_image(self, path: Path) -> NDArray[Any]:
        """Read (D, H, W) or (D, H, W, 3)."""
        return check_grey_values(_read_values(path), path)

    def read_labels(self, path: Path) -> NDArray[np.int32]:
        """Read (D, H, W) label values."""
        values = _read_values(path)
        if values.ndim == 4:
            raise DataError(f"{path}: is in colour; a mask holds one value a pixel. Save it as a single channel.")
        return exact_labels(values, path)

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.ome.tif`` with the source's spacing."""
        import tifffile

        columns, rows, slices = (float(size) for size in np.linalg.norm(header.affine[:3, :3], axis=0)[::-1])
        facts: dict[str, Any] = {"axes": "ZYX" if header.is_volume else "YX"}
        if header.states_spacing:
            facts |= {"PhysicalSizeX": columns, "PhysicalSizeY": rows, "PhysicalSizeXUnit": "mm", "PhysicalSizeYUnit": "mm"}
            facts |= {"PhysicalSizeZ": slices, "PhysicalSizeZUnit": "mm"} if header.is_volume else {}
        packed = io.BytesIO()
        values = labels if header.is_volume else labels[0]
        tifffile.imwrite(packed, values, ome=True, metadata=facts, compression="zlib", photometric="minisblack")
        return write_bytes(stem.with_name(f"{stem.name}.ome.tif"), packed.getvalue())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    from tifffile import TiffFileError

    log, said = logging.getLogger("tifffile"), _Kept(logging.WARNING)
    faults: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError)
    faults = (*faults, RuntimeError, ArithmeticError, struct.error, zlib.error, TiffFileError)
    try:
        with reading(path, "TIFF", faults, too_large="Crop it or cut it into parts."), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            log.addHandler(said)
            yield
        # tifffile goes on where a tag or page cannot be read, and only logs it.
        if said.lines:
            raise DataError(f"{path}: is damaged or cut off ({said.lines[0]}). Replace or remove the file.")
    finally:
        log.removeHandler(said)


class _Kept(logging.Handler):
    """Keep what is logged, so that nothing of it is printed."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line."""
        self.lines.append(record.getMessage().splitlines()[0])


def _read_stack(path: Path) -> _Stack:
    import tifffile

    with _readable(path), tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise DataError(f"{path}: holds {len(file.series)} images of different kinds. Save each as a file of its own.")
        series = file.series[0]
        kept = [
            (axis, int(length)) for axis, length in zip(series.axes, series.shape, strict=True) if length > 1 or axis in "YX"
        ]
        stack = _Stack("".join(axis for axis, _ in kept), tuple(length for _, length in kept), series.dtype, _spacing(file))
    axes = "".join("Z" if axis in _SLICES else axis for axis in stack.axes)
    if axes not in ("YX", "YXS", "ZYX", "ZYXS") or (axes.endswith("S") and stack.shape[-1] != 3) or 0 in stack.shape:
        raise DataError(
            f"{path}: has the axes {stack.axes} of lengths {list(stack.shape)}, expected Z, Y, X (slices, rows, columns). "
            "Save each time point and channel as a file."
        )
    return stack


def _spacing(file: Any) -> tuple[float, float, float] | None:  # noqa: ANN401
    """Return (x, y, z) in mm where OME or ImageJ state it; z counts as 1 mm where only x and y are stated."""
    if file.is_ome:
        from xml.etree import ElementTree

        pixels = next(item for item in ElementTree.fromstring(file.ome_metadata).iter() if item.tag.endswith("}Pixels"))
        sizes = [_millimetres(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XYZ"]
    elif file.is_imagej:
        facts, tags = file.imagej_metadata or {}, file.pages[0].tags
        per_unit = [tags[name].value if name in tags else (0, 1) for name in ("XResolution", "YResolution")]
        across = [str(down / up) if up else None for up, down in per_unit]
        depth = str(facts["spacing"]) if "spacing" in facts else None
        sizes = [_millimetres(size, str(facts.get("unit", ""))) for size in (*across, depth)]
    else:
        return None
    x, y, z = sizes
    return None if x is None or y is None else (x, y, z or 1.0)


def _millimetres(size: str | None, unit: str) -> float | None:
    value = 0.0 if size is None else float(size) * _MM_PER_UNIT.get(unit, 0.0)
    return value if 0 < value < math.inf else None


def _read_values(path: Path) -> NDArray[Any]:
    import tifffile

    stack = _read_stack(path)
    claimed, stored = math.prod(stack.shape) * stack.dtype.itemsize, path.stat().st_size
    if claimed > stored * _LARGEST_RATIO:
        raise DataError(f"{path}: claims {claimed} bytes of pixels, but the file has {stored}. It is truncated; replace it.")
    with _readable(path), tifffile.TiffFile(path) as file:
        # tifffile fills up with zeros what a cut file lacks.
        pages = [page for page in file.series[0].pages if page is not None]
        if len(pages) < len(file.series[0].pages):
            raise DataError(f"{path}: has {len(pages)} of {len(file.series[0].pages)} pages. It is cut off; replace it.")
        ends = [at + count for page in pages for at, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > stored:
            raise DataError(f"{path}: its pixels end at byte {max(ends)}, the file at {stored}. It is cut off; replace it.")
        values = file.series[0].asarray().reshape(stack.shape)
    is_single = "Z" not in stack.axes and not any(axis in stack.axes for axis in _SLICES)
    arranged: NDArray[Any] = values[None] if is_single else values
    return arranged.astype(arranged.dtype.newbyteorder("="), copy=False)
