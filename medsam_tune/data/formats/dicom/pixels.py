"""The values of slices: decoded, brought to the unit of the header slice by slice, bright shown as bright."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.dicom.reading import read_dataset, readable
from medsam_tune.data.formats.dicom.slices import Slice, functional_group
from medsam_tune.errors import DataError

# Even an empty picture does not pack better than this in the codecs that DICOM knows.
_LARGEST_RATIO = 10_000


def read_values(slices: Sequence[Slice]) -> NDArray[Any]:
    """Read slices of one series as (D, H, W), with a last axis of 3 for colours.

    Each slice's own rescale is applied, as the files of one series may differ in it. MONOCHROME1, where low values are bright,
    is turned over within its bits first. Whole numbers stay whole where every rescale is.

    Raises:
        DataError: If a file cannot be decoded.
    """
    by_file: dict[Path, list[int]] = {}
    for number, each in enumerate(slices):
        by_file.setdefault(each.path, []).append(number)
    planes: dict[int, NDArray[Any]] = {}
    for path, numbers in by_file.items():
        dataset = read_dataset(path, pixels=True)
        with readable(path):
            check_size(dataset, path)
            stored = decode(dataset, path, slices[numbers[0]].frames)
            for number in numbers:
                planes[number] = _in_units(stored[slices[number].frame], dataset, slices[number].frame)
    with readable(slices[0].path):
        return _smallest(np.stack([planes.pop(number) for number in range(len(slices))]))


def header_window(slices: Sequence[Slice]) -> tuple[float, float]:
    """Return the lower and upper value of the first VOI window, which all slices must share.

    Raises:
        DataError: If there is none, it is a table, or slices differ in it.
    """
    windows = [_window(each) for each in slices]
    first = windows[0]
    other = next((number for number, window in enumerate(windows) if window != first), None)
    if other is not None:
        raise DataError(
            f"{slices[other].path}: states the window {windows[other]}, {slices[0].name} of the same series {first}, where one "
            "volume needs one. Set data.source.intensity to a rule instead."
        )
    return first


def _window(each: Slice) -> tuple[float, float]:
    dataset = read_dataset(each.path)
    with readable(each.path):
        item = functional_group(dataset, each.frame, "FrameVOILUTSequence") or dataset
        centers, widths = (np.atleast_1d(item.get(name) or []) for name in ("WindowCenter", "WindowWidth"))
        if not centers.size or not widths.size or "LINEAR" not in str(item.get("VOILUTFunction", "LINEAR")):
            raise DataError(
                f"{each.path}: states no linear window (WindowCenter, WindowWidth). Set data.source.intensity to a rule."
            )
        center, width = float(centers[0]), float(widths[0])
    if width < 1:
        raise DataError(
            f"{each.path}: states the window width {width}, expected at least 1. Set data.source.intensity to a rule."
        )
    # DICOM PS3.3 C.11.2.1.2: half a step lower, and one step narrower, than the centre and width say.
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def check_size(dataset: Any, path: Path) -> None:  # noqa: ANN401
    """Refuse a header that claims more pixels than the file can hold, before anything is allocated.

    Raises:
        DataError: With both numbers of bytes.
    """
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel", 1))
    syntax = dataset.file_meta.TransferSyntaxUID
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        samples = 2  # Two pixels share their two colours.
    bits = math.prod((int(dataset.Rows), int(dataset.Columns), frames, samples, int(dataset.get("BitsAllocated", 8))))
    if not syntax.is_transfer_syntax:
        raise DataError(f"{path}: its pixels are packed in a way that is not known here ({syntax}). Decompress the file.")
    packed = syntax.is_compressed or syntax.is_deflated
    stored = path.stat().st_size
    if bits // 8 > stored * (_LARGEST_RATIO if packed else 1):
        raise DataError(f"{path}: claims {bits // 8} bytes of pixels, but the file has {stored}. It is truncated; replace it.")


def decode(dataset: Any, path: Path, frames: int) -> NDArray[Any]:  # noqa: ANN401
    """Decode the pixels of a file to (F, H, W) or (F, H, W, 3), colours as RGB of 8 bits.

    Raises:
        DataError: If no decoder can.
    """
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    try:
        values = pixel_array(dataset)
    except (NotImplementedError, RuntimeError) as error:
        syntax = dataset.file_meta.TransferSyntaxUID.name
        said = " ".join(str(error).split())
        raise DataError(f"{path}: its pixels ({syntax}) cannot be decoded ({said}). {_remedy(syntax)}") from error
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    values = values[None] if frames == 1 else values
    if values.ndim == 4 and values.dtype != np.uint8:
        return np.asarray(values >> (8 * (values.dtype.itemsize - 1)), np.uint8)
    return values


def _remedy(syntax: str) -> str:
    if syntax.startswith("JPEG Extended"):
        # Of the decoders that pydicom finds, only that one, which is GPL and so no part of an installation, reads 12 bits.
        return "Decompress the file, or `pip install pylibjpeg-libjpeg`, which reads 12 bits."
    return "Decompress the file."


def _in_units(values: NDArray[Any], dataset: Any, frame: int) -> NDArray[Any]:  # noqa: ANN401
    if values.ndim == 3:
        return values
    if dataset.PhotometricInterpretation == "MONOCHROME1" and values.dtype.kind in "iu":
        # The largest stored value and the smallest change places: 4095 - v for 12 unsigned bits, -1 - v for signed ones.
        ends = 0 if values.dtype.kind == "i" else 1 << int(dataset.BitsStored)
        values = ends - 1 - values.astype(np.int64)
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        return np.asarray(apply_modality_lut(values, dataset))
    item = functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope, intercept = (
        float(item.get(name, default) or default) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    if slope == 1 and intercept.is_integer() and values.dtype.kind in "iu":
        return values.astype(np.int64) + int(intercept) if intercept else values
    return values.astype(np.float64) * slope + intercept


def _smallest(values: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers in the smallest usual type, all others as float32."""
    if values.dtype.kind not in "iu":
        return values.astype(np.float32)
    if values.dtype.itemsize <= 2:
        return values
    low, high = int(values.min()), int(values.max())
    for kind in (np.int16, np.uint16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float32)
