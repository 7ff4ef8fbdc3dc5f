"""From any source to a folder of 8-bit PNG images and masks at their native size, which ``ImageFolder`` reads.

MedSAM stores float64 slices of 1024 x 1024 x 3 (24 MB each); here a slice keeps its size and one byte a pixel and channel, and
resizing happens when it is read. The grey window is fixed for a volume and written down, so one stored value always gives one
grey level: MedSAM's scripts rescale by the values left after clipping, which differ from case to case.

Source of the windows: Ma et al. 2024, Nat. Commun. 15:654, methods (width and level in HU).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.formats.raster import encode_png
from medsam_tune.data.names import flat_file_name
from medsam_tune.data.split_file import save_splits
from medsam_tune.data.splits import Splits
from medsam_tune.errors import DataError
from medsam_tune.files import atomic_folder, write_json
from medsam_tune.samples import Sample

CT_WINDOWS: dict[str, tuple[float, float]] = {
    "soft_tissue": (-160.0, 240.0),
    "lung": (-910.0, 590.0),
    "brain": (0.0, 80.0),
}
"""Lower and upper HU: width 400 level 40, width 1500 level -160, width 80 level 40."""

CASE_PATTERN = "^(.+)/[^/]+$"
"""How ``ImageFolder`` finds the case of a prepared image: the folder it lies in."""


IGNORE_LABEL = 255
"""What pixels that nobody annotated become in prepared masks."""


@dataclass(frozen=True)
class Prepared:
    """Say what was written.

    Attributes:
        folder: With ``images/<case>/<image>.png``, ``masks/<case>/<image>.png`` or shards, ``splits.json``, ``prepared.json``.
        images: Number of images.
        cases: Number of cases.
        empty: Images without an object.
        labels: Mask value to name.
        ignore_label: Mask value of pixels that nobody annotated, or None.
        shards: Number of shards; None where every image is a file.
    """

    folder: Path
    images: int
    cases: int
    empty: int
    labels: dict[int, str]
    ignore_label: int | None = None
    shards: int | None = None


def prepare_folder(source: SegmentationSource, folder: Path, *, splits: Splits, keep_empty: bool = True) -> Prepared:
    """Write every item of an opened source; the folder appears when all of it is there, or not at all.

    Args:
        source: Opened with masks.
        folder: Must not exist.
        splits: Written as ``splits.json``, for ``data.split.file``.
        keep_empty: False leaves out images without an object.

    Raises:
        DataError: If the folder exists, an item cannot be read, two labels overlap, a label does not fit 8 bits, or
            leaving out empty images leaves a case without any.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already. Name a new folder, or remove this one.")
    with atomic_folder(folder) as unfinished:
        spacings, empty = _write_items(source, unfinished, keep_empty=keep_empty)
        check_kept_cases(source, [name.rpartition("/")[0] for name in spacings], folder)
        labels = source.label_names()
        save_splits(splits, unfinished / "splits.json")
        record = {
            "source": source.describe(),
            "labels": {name: [value] for value, name in labels.items()},
            "case_pattern": CASE_PATTERN,
            "ignore_label": None if source.ignore_label is None else IGNORE_LABEL,
            "images": len(spacings),
            "images_without_object": empty,
            "spacing_mm": spacings,
        }
        write_json(unfinished / "prepared.json", record)
    n_cases = len({Path(name).parent for name in spacings})
    return Prepared(folder, len(spacings), n_cases, empty, labels, None if source.ignore_label is None else IGNORE_LABEL)


def _write_items(source: SegmentationSource, folder: Path, *, keep_empty: bool) -> tuple[dict[str, tuple[float, float]], int]:
    """Write images and masks; return (row, column) spacing by name, and how many images show no object."""
    spacings: dict[str, tuple[float, float]] = {}
    empty = 0
    for index in source.select(range(len(source)), "evaluate"):
        sample = source[index]
        shows_object = bool(sample.masks.any())
        empty += not shows_object
        if not (shows_object or keep_empty):
            continue
        name = f"{flat_file_name(sample.case_id)}/{flat_file_name(sample.image_id)}"
        for part, values in (("images", pixels_of(sample)), ("masks", label_map(sample))):
            path = folder / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Plainly: the folder appears when it is whole, so no file needs to wait for the disk.
            path.write_bytes(encode_png(values, spacing_mm=stated_spacing(source, index, sample)))
        spacings[name] = sample.spacing_mm
    return spacings, empty


def stated_spacing(source: SegmentationSource, index: int, sample: Sample) -> tuple[float, float] | None:
    """Return the (row, column) spacing of an item; None where its file states none, for which a sample has 1 mm."""
    return None if source.voxel_size(index) is None else sample.spacing_mm


def pixels_of(sample: Sample) -> NDArray[np.uint8]:
    """Return the grey levels (H, W) where the three channels are equal, else (H, W, 3)."""
    levels = np.rint(sample.image.numpy()).astype(np.uint8)
    grey = bool((levels == levels[:1]).all())
    return np.ascontiguousarray(levels[0] if grey else levels.transpose(1, 2, 0))


def label_map(sample: Sample) -> NDArray[np.uint8]:
    """Return the label of each pixel (H, W), 0 where there is none, ``IGNORE_LABEL`` where nobody annotated.

    Raises:
        DataError: If two labels overlap, or one does not fit 8 bits.
    """
    labels = sample.labels.numpy()
    if bool((sample.masks.counts() > 1).any()):
        raise DataError(
            f"{sample.image_id}: labels {labels.tolist()} overlap, and one value a pixel is stored. Name groups that do not."
        )
    largest = np.iinfo(np.uint8).max - (sample.ignored is not None)
    if labels.size and labels.max() > largest:
        raise DataError(
            f"{sample.image_id}: label {labels.max()} is above {largest}. Name the labels; then they are numbered from 1."
        )
    values = np.zeros(sample.masks.size, np.uint8)
    for mask, label in zip(sample.masks, labels, strict=True):
        values[mask.numpy()] = label
    if sample.ignored is not None:
        values[sample.ignored.numpy()] = IGNORE_LABEL
    return values


def check_kept_cases(source: SegmentationSource, kept: Iterable[str], folder: Path) -> None:
    """Refuse a preparation that lost a case.

    Args:
        source: An opened source.
        kept: The cases of the written images.
        folder: That is written, for the message.

    Raises:
        DataError: If a case of the source has no image left.
    """
    left = set(kept)
    gone = sorted({case for case in source.case_ids() if flat_file_name(case) not in left})
    if gone:
        raise DataError(
            f"{folder}: {len(gone)} cases show no object on any image, such as {gone[0]}. Remove them, or keep empty images."
        )
