"""DICOM segmentation objects: binary and fractional frames that may overlap, and label maps."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats.base import VolumeHeader, image_header
from medsam_tune.data.formats.dicom.placing import place_plane, stack_layers
from medsam_tune.data.formats.dicom.reading import read_dataset, readable
from medsam_tune.data.formats.dicom.slices import Slice, functional_group, read_frames
from medsam_tune.data.formats.dicom.stack import order_slices, plane_affine
from medsam_tune.data.formats.present_values import present_values
from medsam_tune.errors import DataError


@dataclass(frozen=True)
class SegmentationFile:
    """Hold what a segmentation's header says.

    Attributes:
        path: The file.
        kind: BINARY, FRACTIONAL or LABELMAP.
        names: Segment number to label.
        segments: The segment of each frame; 0 in a label map, whose pixels tell.
        padding: The value of pixels of a label map that say nothing, or None.
        frames: The planes.
        largest: What a fractional frame holds where a pixel is object for certain, or as a whole.
    """

    path: Path
    kind: str
    names: dict[int, str]
    segments: list[int]
    padding: int | None
    frames: list[Slice]
    largest: int = 1


def read_segmentation(path: Path) -> SegmentationFile:
    """Read a segmentation without its pixels.

    Raises:
        DataError: If it is of another type, or its frames say nothing of their segment.
    """
    dataset = read_dataset(path)
    with readable(path):
        kind = str(dataset.get("SegmentationType", ""))
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise DataError(
                f"{path}: is a segmentation of type {kind or 'unknown'}, expected BINARY, FRACTIONAL or LABELMAP. Save it as "
                "BINARY."
            )
        largest = int(dataset.MaximumFractionalValue) if kind == "FRACTIONAL" else 1
        if largest < 1:
            raise DataError(f"{path}: states {largest} as its largest fraction, expected 1 or more. Save it as BINARY.")
        described = {int(item.SegmentNumber): str(item.get("SegmentLabel", "")) for item in dataset.get("SegmentSequence", [])}
        # A label map may describe its background.
        names = {number: name for number, name in described.items() if number > 0}
        frames = read_frames(dataset, path)
        segments = [_segment(dataset, frame.frame, names, path) if kind != "LABELMAP" else 0 for frame in frames]
        padding = dataset.get("PixelPaddingValue")
    return SegmentationFile(path, kind, names, segments, None if padding is None else int(padding), frames, largest)


def own_grid(found: SegmentationFile) -> VolumeHeader:
    """Return the voxels that a segmentation's own frames span, for one that is read without an image.

    Raises:
        DataError: If they are no even stack, as where slices without an object were left out.
    """
    first = found.frames[0]
    if all(not frame.lies_in_space and frame.size == first.size for frame in found.frames):
        return image_header(found.path, first.size, first.spacing_mm)
    for frame in found.frames:
        _check_placed(found, frame)
    distinct: dict[tuple[float, ...], Slice] = {}
    for frame in found.frames:
        place = () if frame.position_mm is None else tuple(frame.position_mm.round(4).tolist())
        distinct.setdefault(place, frame)
    ordered, affine = order_slices(list(distinct.values()), found.path)
    return VolumeHeader(found.path, (len(ordered), *ordered[0].size), affine)


def read_segments(found: SegmentationFile, image: VolumeHeader, fraction: float) -> NDArray[np.int32]:
    """Read the segments onto the voxels of an image: its ``stored_shape``, with a last axis of layers where they overlap.

    Args:
        found: The segmentation.
        image: The image.
        fraction: The share of the largest value from which on a pixel of a fractional segmentation is object.

    Raises:
        DataError: If the pixels cannot be decoded, are not the image's, or a value of a label map is no segment.
    """
    pixels = _decode(found)
    places: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
    for frame, segment, values in zip(found.frames, found.segments, pixels, strict=True):
        plane, name = _plane_on(found, frame, image), f"frame {frame.frame + 1}"
        for label, mask in _masks(found, values, segment, fraction):
            places[label].append(place_plane(mask, plane, image, found.path, name))
    return stack_layers({label: np.concatenate(places[label]) for label in sorted(places)}, image.stored_shape)


def check_place(found: SegmentationFile, image: VolumeHeader) -> None:
    """Compare the place of all frames with an image's voxels, without their pixels.

    Raises:
        DataError: If a frame does not lie on them.
    """
    for frame in found.frames:
        plane = _plane_on(found, frame, image)
        place_plane(np.zeros(frame.size, np.bool_), plane, image, found.path, f"frame {frame.frame + 1}")


def _plane_on(found: SegmentationFile, frame: Slice, image: VolumeHeader) -> NDArray[np.float64]:
    """Return the affine of a frame: its own, or that of the picture of its size, where that has no place in space either."""
    if not frame.lies_in_space and not image.is_volume and frame.size == image.stored_shape[1:]:
        return image.affine
    _check_placed(found, frame)
    return plane_affine(frame)


def _check_placed(found: SegmentationFile, frame: Slice) -> None:
    if not frame.lies_in_space or frame.spacing_mm is None:
        raise DataError(
            f"{found.path}: frame {frame.frame + 1} of {frame.size[0]} x {frame.size[1]} states no place in space, which only "
            "masks of a picture of that size may. Repair or remove the file."
        )


def _masks(found: SegmentationFile, values: NDArray[Any], segment: int, fraction: float) -> list[tuple[int, NDArray[np.bool_]]]:
    if found.kind == "BINARY":
        return [(segment, values != 0)]
    if found.kind == "FRACTIONAL":
        return [(segment, values >= fraction * found.largest)]
    present = [int(value) for value in present_values(values) if value not in (0, found.padding)]
    unknown = [value for value in present if value not in found.names]
    if unknown:
        raise DataError(f"{found.path}: holds the values {unknown[:4]}, which are no segment of it ({sorted(found.names)}).")
    return [(value, values == value) for value in present]


def _decode(found: SegmentationFile) -> NDArray[Any]:
    from medsam_tune.data.formats.dicom.pixels import check_size, decode

    dataset = read_dataset(found.path, pixels=True)
    with readable(found.path):
        check_size(dataset, found.path)
        return decode(dataset, found.path, len(found.frames))


def _segment(dataset: Any, frame: int, names: dict[int, str], path: Path) -> int:  # noqa: ANN401
    item = functional_group(dataset, frame, "SegmentIdentificationSequence")
    if item is None and len(names) != 1:
        raise DataError(f"{path}: frame {frame + 1} does not say which of {len(names)} segments it shows. Replace the file.")
    number = next(iter(names)) if item is None else int(item.ReferencedSegmentNumber)
    if number < 1:
        raise DataError(f"{path}: frame {frame + 1} shows segment {number}, expected a number above 0. Replace the file.")
    return number
