"""Images and masks that no word tells apart: files of equal names in two folders, or ``x`` beside ``x_something``.

Which of the two is the mask is told by the pixels: a mask has few values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pairing, pairing_of
from medsam_tune.data.layouts.words import channel_span
from medsam_tune.data.patterns import PathPattern
from medsam_tune.errors import DataError

_LOOKED_AT = 3
# More grey levels than a mask of classes has, fewer than any photograph.
_MOST_VALUES = 32


class EqualNames(Layout):
    """Pair two folders whose files have equal names; the folder with few values in its files has the masks."""

    name = "two folders with equal names"

    def find(self, listing: Listing) -> Pairing | str:
        """Compare every two folders; contents are looked at only where most names agree."""
        folders: dict[str, dict[str, DataFile]] = defaultdict(dict)
        for file in listing.files:
            folder, _, name = file.stem.rpartition("/")
            folders[folder][name] = file
        found = []
        for first in sorted(folders):
            for second in sorted(folders):
                common = folders[first].keys() & folders[second].keys()
                if first < second and 2 * len(common) > min(len(folders[first]), len(folders[second])):
                    found.append((len(common), first, second))
        for _, first, second in sorted(found, key=lambda each: (-each[0], each[1:])):
            for images, masks in ((first, second), (second, first)):
                common = sorted(folders[images].keys() & folders[masks].keys())
                if looks_like_masks(listing, [folders[masks][name] for name in common]) and not looks_like_masks(
                    listing, [folders[images][name] for name in common]
                ):
                    places = ("/".join(filter(None, (folder, "{name}"))) for folder in (images, masks))
                    return pairing_of(self.name, listing, *map(PathPattern, places))
        return "no two folders have files of equal names of which one holds few values"


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
        for ending, pairs in sorted(endings.items(), key=lambda each: (-len(each[1]), each[0])):
            if looks_like_masks(listing, [mask for _, mask in pairs]):
                return pairing_of(self.name, listing, PathPattern("{name}"), PathPattern(f"{{name}}{ending}"))
        return "no file is named after another and holds few values"


def looks_like_masks(listing: Listing, files: Sequence[DataFile]) -> bool:
    """Tell whether the first files hold few values, 0 among them; what cannot be read as a mask is none."""
    looked = files[:: max(1, len(files) // _LOOKED_AT)][:_LOOKED_AT]
    return bool(looked) and all(_few_values(listing, file) for file in looked)


def _few_values(listing: Listing, file: DataFile) -> bool:
    try:
        values = np.unique(listing.format.read_labels(file.path))
    except DataError:
        return False
    return len(values) <= _MOST_VALUES and bool((values == 0).any())


def _bases(stem: str) -> Iterable[str]:
    folder, slash, name = stem.rpartition("/")
    for place, letter in enumerate(name):
        if letter in " _-." and place and not name[place + 1 :].isdigit() and channel_span(name[place:]) is None:
            yield f"{folder}{slash}{name[:place]}"
