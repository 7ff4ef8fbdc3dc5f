"""Images and masks that no word tells apart: files of equal names in two folders, or ``x`` beside ``x_something``.

Which of the two is the mask is told by the pixels: a mask has few values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.formats import RasterFormat
from medsam_tune.data.formats.present_values import count_values
from medsam_tune.data.formats.raster import read_values_or_colours
from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pairing, pairing_of
from medsam_tune.data.layouts.several import joined_masks
from medsam_tune.data.layouts.words import channel_span
from medsam_tune.data.patterns import PathPattern
from medsam_tune.errors import DataError

_LOOKED_AT = 3
# More grey levels than a mask of classes has, fewer than any photograph.
_MOST_VALUES = 32
_WHITE, _NEAR, _MOSTLY = 255, 25, 0.99


class EqualNames(Layout):
    """Pair folders whose files have equal names; those with few values in their files have the masks, one a class."""

    name = "two folders with equal names"

    def find(self, listing: Listing) -> Pairing | str:
        """Compare every two folders; contents are looked at only where most names agree."""
        folders = listing.by_folder()
        alike = [name for name in folders if _shares_names(folders, name)]
        masks = [name for name in alike if looks_like_masks(listing, list(folders[name].values()))]
        images = [name for name in alike if name not in masks]
        if images and masks:
            first = max(images, key=lambda name: (len(folders[name]), name))
            beside = {_place(name): len(folders[name]) for name in masks if folders[name].keys() & folders[first].keys()}
            if beside:
                chosen = joined_masks(beside) or PathPattern(max(beside, key=lambda place: (beside[place], place)))
                others = [name for name in images if name != first and folders[name].keys() & folders[first].keys()]
                notes = tuple(f"{name} holds images of the same names, which are not read" for name in sorted(others))
                return replace(pairing_of(self.name, listing, PathPattern(_place(first)), chosen), notes=notes)
        return "no two folders have files of equal names of which one holds few values"


def _shares_names(folders: Mapping[str, Mapping[str, DataFile]], name: str) -> bool:
    """Tell whether some other folder has most of a folder's files under the same names."""
    mine = folders[name].keys()
    return any(2 * len(mine & other.keys()) > min(len(mine), len(other)) for each, other in folders.items() if each != name)


def _place(folder: str) -> str:
    return f"{folder}/{{name}}" if folder else "{name}"


class AddedWord(Layout):
    """Pair ``x`` with ``x_vessels``: what is added is no known word, but the file holds few values."""

    name = "masks named after their image"

    def find(self, listing: Listing) -> Pairing | str:
        """Take the ending that most images have beside them."""
        by_stem = {file.stem: file for file in listing.files}
        endings: dict[str, list[tuple[DataFile, DataFile]]] = defaultdict(list)
        for stem, file in by_stem.items():
            for base in _bases(stem):
                if base in by_stem:
                    endings[stem[len(base) :]].append((by_stem[base], file))
        ranked = sorted(endings.items(), key=lambda each: (-len(each[1]), each[0]))
        fitting = {
            f"{{name}}{ending}": len(pairs)
            for ending, pairs in ranked
            if len(pairs) > 1 and looks_like_masks(listing, [mask for _, mask in pairs])
        }
        if fitting:
            masks = joined_masks(fitting) or PathPattern(next(iter(fitting)))
            return pairing_of(self.name, listing, PathPattern("{name}"), masks)
        return "no file is named after another and holds few values"


def looks_like_masks(listing: Listing, files: Sequence[DataFile]) -> bool:
    """Tell whether the first files hold few values, 0 among them; what cannot be read as a mask is none."""
    looked = files[:: max(1, len(files) // _LOOKED_AT)][:_LOOKED_AT]
    return bool(looked) and all(_few_values(listing, file) for file in looked)


def _few_values(listing: Listing, file: DataFile) -> bool:
    try:
        stored = stored_values(listing, file)
    except DataError:
        return False
    values, counts = count_values(stored)
    if len(values) <= _MOST_VALUES:
        return bool((values == 0).any()) or int(values[-1]) > _WHITE
    # A mask of black and white whose edges JPEG has blurred.
    ends = counts[(values <= _NEAR) | (values >= _WHITE - _NEAR)].sum()
    return int(values[-1]) == _WHITE and bool(ends >= _MOSTLY * counts.sum()) and bool(values[0] == 0)


def stored_values(listing: Listing, file: DataFile) -> NDArray[np.int32]:
    """Return mask values, or colours 0xRRGGBB of a mask that is drawn in them.

    Raises:
        DataError: If the file cannot be read as a mask.
    """
    if isinstance(listing.format, RasterFormat):
        return read_values_or_colours(file.path)[0]
    return listing.format.read_labels(file.path)


def _bases(stem: str) -> Iterable[str]:
    folder, slash, name = stem.rpartition("/")
    for place, letter in enumerate(name):
        if letter in " _-." and place and not name[place + 1 :].isdigit() and channel_span(name[place:]) is None:
            yield f"{folder}{slash}{name[:place]}"
