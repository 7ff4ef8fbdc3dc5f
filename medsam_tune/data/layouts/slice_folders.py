"""DICOM series whose masks are image files, one a slice, in a folder nearby, as in CHAOS."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medsam_tune.data.formats import SliceImages
from medsam_tune.data.formats.raster import ENDINGS
from medsam_tune.data.layouts.base import DataFile, Listing, Pairing
from medsam_tune.data.layouts.listed import listed_pairs


def masks_a_slice(listing: Listing, layout: str) -> Pairing | None:
    """Pair each series with the nearest folder that holds as many images as it has slices; None where most have none.

    Args:
        listing: The series.
        layout: What the layout is called.
    """
    form = SliceImages()
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in listing.others:
        if path.name.lower().endswith(ENDINGS):
            folders[path.parent].append(path)
    slices = {file: _files(file.path) for file in listing.files if file.path.is_dir()}
    pairs, taken = [], set()
    for folder, masks in sorted(folders.items()):
        series = _nearest(folder, masks, {file: held for file, held in slices.items() if file not in taken})
        if series is not None:
            taken.add(series)
            pairs.append((series, DataFile(folder, form.name_of(folder, listing.root))))
    if len(pairs) < 2 or 2 * len(pairs) < len(slices):
        return None
    note = "masks are images, one a slice: by the slice's file name where names agree, else in the order of names"
    paired = listed_pairs(f"{layout} with masks a slice", listing, pairs, note)
    return replace(paired, mask_format=form, strangers=(), without_mask=tuple(file for file in slices if file not in taken))


def _nearest(folder: Path, masks: Sequence[Path], series: Mapping[DataFile, list[str]]) -> DataFile | None:
    """Return the series with as many slices that shares most folders with the masks, best one of the same file names."""
    names = sorted(path.stem.lower() for path in masks)
    shared = {file: len(Path(os.path.commonpath((folder, file.path))).parts) for file in series}
    fitting = {file: shared[file] for file, held in series.items() if len(held) == len(masks)}
    closest = [file for file in fitting if fitting[file] == max(fitting.values())]
    alike = [file for file in closest if sorted(series[file]) == names]
    chosen = alike or closest
    return chosen[0] if len(chosen) == 1 else None


def _files(folder: Path) -> list[str]:
    return [path.name.lower().rpartition(".")[0] or path.name.lower() for path in folder.iterdir() if path.is_file()]
