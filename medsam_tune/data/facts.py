"""What one image and its mask are: sizes, spacing, types, values and objects, read once from the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.coco_files import CocoContent
from medsam_tune.data.formats import Format, RasterFormat, VolumeHeader
from medsam_tune.data.formats.present_values import count_values, number_values
from medsam_tune.data.formats.raster import read_foreground, read_values_or_colours
from medsam_tune.data.inverted import labels_the_rim
from medsam_tune.data.layouts.base import Pair
from medsam_tune.data.slices import AXIS_NUMBER, Axis
from medsam_tune.errors import DataError

# Slices of a volume whose objects are measured; more of them say little more.
_MEASURED_SLICES = 24
# As nnU-Net's fingerprint: a sample of the labelled voxels is enough for percentiles.
_SAMPLED_VOXELS = 2000
_MOST_VALUES = 4096


@dataclass(frozen=True)
class ObjectFacts:
    """Hold the size of one connected piece of one mask value in a slice.

    Attributes:
        area: Pixels.
        thickness: Diameter of the largest disc inside, in pixels.
    """

    area: int
    thickness: float


@dataclass(frozen=True)
class PairFacts:
    """Hold what a pair of files tells.

    Attributes:
        name: Of the image.
        shape: (X, Y, Z) of a volume in RAS order, (H, W) of an image.
        axis: The patient axis across which the voxels of a volume are thickest, axial where that is no axis; None of an image.
        voxel_mm: (x, y, z) in the patient.
        channels: 1 or 3.
        dtype: Of the stored image.
        image_range: Least and greatest stored value.
        counts: Pixels of each mask value above 0.
        pieces: Connected pieces of each mask value, over the slices looked at.
        objects: Their sizes.
        empty_slices: How many of the measured slices show nothing.
        measured_slices: How many slices were measured.
        patient_id: The file's own name of the patient; compared, never shown.
        labelled_values: A sample of the image's values where the mask is not 0.
        in_colours: Whether mask values are colours 0xRRGGBB.
        label_names: What the file calls its mask values, where it does.
        overlaps: Whether a pixel belongs to several objects.
        labels_rim: Whether the mask labels the image's rim as background does, in most of the slices that show something.
    """

    name: str
    shape: tuple[int, ...]
    axis: Axis | None
    voxel_mm: tuple[float, float, float]
    channels: int
    dtype: str
    image_range: tuple[float, float]
    counts: dict[int, int]
    pieces: dict[int, int]
    objects: tuple[ObjectFacts, ...]
    empty_slices: int
    measured_slices: int
    patient_id: str | None
    labelled_values: tuple[float, ...]
    in_colours: bool = False
    label_names: tuple[str, ...] = ()
    overlaps: bool = False
    labels_rim: bool = False

    @property
    def is_volume(self) -> bool:
        """Tell whether the image has slices."""
        return self.axis is not None

    @property
    def slice_size(self) -> tuple[int, ...]:
        """Return the lengths of a slice's two sides, in no order."""
        if self.axis is None:
            return self.shape
        return tuple(length for place, length in enumerate(self.shape) if place != AXIS_NUMBER[self.axis])

    @property
    def n_slices(self) -> int:
        """Return how many slices the volume gives along its axis; 1 of an image."""
        return 1 if self.axis is None else self.shape[AXIS_NUMBER[self.axis]]

    def as_json(self) -> dict[str, Any]:
        """Return what a fingerprint keeps of it: no patient, no sample of values."""
        kept = asdict(self)
        for name in ("patient_id", "labelled_values", "objects"):
            del kept[name]
        return {**kept, "objects": len(self.objects)}


def read_pair(pair: Pair, form: Format, mask_format: Format | None = None, annotations: CocoContent | None = None) -> PairFacts:
    """Read an image and its mask to their ends and measure them.

    Args:
        pair: The files.
        form: Reads the image.
        mask_format: Reads the masks; ``form`` by default.
        annotations: Has the objects, where annotation files hold them.

    Raises:
        DataError: If a file cannot be read, or the two do not lie on one grid.
    """
    header = form.read_header(pair.image.path)
    image = form.read_image(pair.image.path)
    drawn = [] if annotations is None else _drawn(pair, annotations, header)
    labels, in_colours = _painted(drawn, header) if annotations else _read_masks(pair, mask_format or form, header)
    if labels.shape[:3] != header.stored_shape:
        _refuse_size(pair, labels, header)
    overlaps = labels.ndim > 3
    labels = labels.max(axis=3) if overlaps else labels
    axis = thickest_axis(header.voxel_mm) if header.is_volume else None
    slices = [labels[0]] if axis is None else _slices(header.to_ras(labels), axis)
    measured = [_measure(part) for part in slices] if annotations is None else [_measure_drawn(drawn)]
    objects = tuple(each for pieces in measured for found in pieces.values() for each in found)
    pieces: dict[int, int] = {}
    for part in measured:
        for value, found in part.items():
            pieces[value] = pieces.get(value, 0) + len(found)
    return PairFacts(
        pair.name,
        header.shape if header.is_volume else header.stored_shape[1:],
        axis,
        header.voxel_mm,
        3 if image.ndim == 4 else 1,
        str(image.dtype),
        (float(image.min()), float(image.max())),
        value_counts(labels),
        pieces,
        objects,
        sum(not part for part in measured),
        len(measured),
        header.patient_id,
        _sample(image, labels),
        in_colours,
        () if annotations else _names(pair, mask_format or form),
        overlaps,
        _labels_rims(slices),
    )


def _read_masks(pair: Pair, form: Format, header: VolumeHeader) -> tuple[NDArray[np.int32], bool]:
    """Return mask values, and whether they are colours 0xRRGGBB; of several files, each is a value of its own: 1, 2, ..."""
    if not pair.numbers and isinstance(form, RasterFormat):
        values, in_colours = read_values_or_colours(pair.masks[0].path)
        return values[None], in_colours
    if isinstance(form, RasterFormat):
        for file in pair.masks:
            form.check_labels(file.path, header)
        read = [read_foreground(file.path)[None] for file in pair.masks]
    else:
        read = [form.read_labels_on(file.path, header) for file in pair.masks]
    if not pair.numbers:
        return read[0], False
    layers = [np.where(labels > 0, np.int32(number), np.int32(0)) for number, labels in zip(pair.numbers, read, strict=True)]
    overlaps = np.sum([layer > 0 for layer in layers], axis=0).max(initial=0) > 1
    return np.stack(layers, axis=-1) if overlaps else np.max(layers, axis=0), False


def _drawn(pair: Pair, annotations: CocoContent, header: VolumeHeader) -> list[tuple[int, NDArray[np.bool_]]]:
    """Return the category, from 1, and the mask of each object of an image."""
    size = header.stored_shape[1:]
    if (stated := annotations.sizes[pair.image.path]) != size:
        raise DataError(
            f"{pair.image.path}: is {size[0]} x {size[1]} (H x W), {pair.masks[0].path.name} says {stated[0]} x {stated[1]}. "
            "Correct the file, or take the image that was annotated."
        )
    found = [each for each in annotations.objects[pair.image.path] if not each.is_crowd]
    return [(list(annotations.categories).index(each.category) + 1, each.mask(size)) for each in found]


def _painted(drawn: Sequence[tuple[int, NDArray[np.bool_]]], header: VolumeHeader) -> tuple[NDArray[np.int32], bool]:
    labels = np.zeros(header.stored_shape, np.int32)
    for number, mask in drawn:
        labels[0][mask] = number
    return labels, False


def _measure_drawn(drawn: Sequence[tuple[int, NDArray[np.bool_]]]) -> dict[int, list[ObjectFacts]]:
    """Measure each object, whatever it touches."""
    found: dict[int, list[ObjectFacts]] = {}
    for number, mask in drawn:
        for sizes in _measure(mask.astype(np.int32)).values():
            found.setdefault(number, []).append(max(sizes, key=lambda each: each.area))
    return found


def _labels_rims(slices: list[NDArray[np.int32]]) -> bool:
    shown = [labels_the_rim(part) for part in slices if part.any()]
    return bool(shown) and 2 * sum(shown) > len(shown)


def _names(pair: Pair, form: Format) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for file in pair.masks for name in form.read_label_names(file.path).values()))


def value_counts(labels: NDArray[np.int32]) -> dict[int, int]:
    """Return the pixels of each value above 0, of the first thousands of values."""
    values, counts = count_values(labels)
    kept = [(int(value), int(count)) for value, count in zip(values, counts, strict=True) if value != 0]
    return dict(kept[:_MOST_VALUES])


def thickest_axis(voxel_mm: tuple[float, float, float]) -> Axis:
    """Return the axis along which voxels are longest by half, so that slices across it show most; axial by default.

    Example:
        >>> thickest_axis((0.5, 0.5, 3.0)), thickest_axis((1.0, 4.0, 1.0)), thickest_axis((1.0, 1.0, 1.2))
        ('axial', 'coronal', 'axial')
    """
    axes: tuple[Axis, ...] = ("sagittal", "coronal", "axial")
    longest = max(range(3), key=lambda place: voxel_mm[place])
    return axes[longest] if voxel_mm[longest] >= 1.5 * sorted(voxel_mm)[1] else "axial"


def _refuse_size(pair: Pair, labels: NDArray[np.int32], header: VolumeHeader) -> None:
    raise DataError(
        f"{pair.masks[0].path}: mask shape {labels.shape[1:3]} differs from image shape {header.stored_shape[1:]}. "
        "Export the mask at the image's size, or remove the case."
    )


def _slices(labels: NDArray[np.int32], axis: Axis) -> list[NDArray[np.int32]]:
    """Return evenly spaced slices of a volume (X, Y, Z)."""
    length = labels.shape[AXIS_NUMBER[axis]]
    chosen = np.unique(np.linspace(0, length - 1, min(length, _MEASURED_SLICES)).round().astype(int))
    return [np.take(labels, place, axis=AXIS_NUMBER[axis]) for place in chosen]


def _measure(values: NDArray[np.int32]) -> dict[int, list[ObjectFacts]]:
    """Measure each 8-connected piece of each value of a slice."""
    from scipy import ndimage

    found: dict[int, list[ObjectFacts]] = {}
    present, places = number_values(values)
    if len(present) > _MOST_VALUES:
        return found
    ordered = places + 1
    for place, (value, box) in enumerate(zip(present.tolist(), ndimage.find_objects(ordered), strict=True), start=1):
        if value == 0:
            continue
        mask = np.pad(ordered[box] == place, 1)
        numbered, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
        depth = ndimage.distance_transform_edt(mask)
        numbers = np.arange(1, count + 1)
        areas = ndimage.sum_labels(mask, numbered, numbers)
        deepest = ndimage.maximum(depth, numbered, numbers)
        found[value] = [ObjectFacts(int(area), 2 * float(deep) - 1) for area, deep in zip(areas, deepest, strict=True)]
    return found


def _sample(image: NDArray[Any], labels: NDArray[np.int32]) -> tuple[float, ...]:
    if image.ndim != labels.ndim:
        return ()
    values = image[labels > 0]
    step = max(1, values.size // _SAMPLED_VOXELS)
    return tuple(float(value) for value in values[::step])
