"""Names that are alike: ``x.jpg`` beside ``x.png``, or names that differ by anything but their numbers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pair, Pairing
from medsam_tune.data.layouts.content import looks_like_masks
from medsam_tune.data.layouts.several import joined_masks
from medsam_tune.data.patterns import LABEL, PathPattern

_NUMBER = re.compile(r"\d+")


class EqualStems(Layout):
    """Pair ``x.jpg`` with ``x.png``: one name, two endings, of which one holds few values."""

    name = "images and masks of one name and two endings"

    def find(self, listing: Listing) -> Pairing | str:
        """Gather the files of each name, and look into those of each ending."""
        of_stem: dict[str, dict[str, DataFile]] = defaultdict(dict)
        for file in listing.files:
            of_stem[file.stem][_ending(file)] = file
        twice = {stem: found for stem, found in of_stem.items() if len(found) == 2}
        endings: dict[str, list[DataFile]] = defaultdict(list)
        for found in twice.values():
            for ending, file in found.items():
                endings[ending].append(file)
        masks = {ending for ending, files in endings.items() if looks_like_masks(listing, files)}
        pairs = []
        for stem, found in sorted(twice.items()):
            mask, image = (
                next((file for end, file in found.items() if (end in masks) is held), None) for held in (True, False)
            )
            if mask is not None and image is not None:
                pairs.append(Pair(stem, image, (mask,)))
        if not pairs:
            return "" if not twice else "names with two endings are there, but neither of the two files holds few values"
        named = PathPattern("{name}")
        lonely = [next(iter(found.values())) for found in of_stem.values() if len(found) == 1]
        sides = {ending: tuple(file for file in lonely if _ending(file) == ending) for ending in endings}
        kept = tuple(file for ending, files in sides.items() if ending not in masks for file in files)
        rest = tuple(file for ending, files in sides.items() if ending in masks for file in files)
        return Pairing(
            self.name, listing.format, named, named, tuple(pairs), without_mask=kept, without_image=rest, listed=True
        )


def _ending(file: DataFile) -> str:
    """Return what stands behind a file's stem: ``.seg.nrrd`` is another ending than ``.nrrd``."""
    return file.path.name.lower().removeprefix(file.stem.rpartition("/")[2].lower())


class EqualNumbers(Layout):
    """Pair names that hold the same numbers: ``X/x_003`` with ``Y/y_003``, ``NI000_slice004`` with ``MA000_slice004``."""

    name = "names with the same numbers"

    def find(self, listing: Listing) -> Pairing | str:
        """Gather names that differ by numbers alone, and look into each kind of name."""
        kinds: dict[str, dict[tuple[int, ...], DataFile]] = defaultdict(dict)
        for file in listing.files:
            if numbers := _NUMBER.findall(file.stem):
                kinds[_NUMBER.sub("#", file.stem)][tuple(map(int, numbers))] = file
        alike = {kind: files for kind, files in kinds.items() if len(files) > 1 and _partners(kinds, kind)}
        masks = [kind for kind, files in alike.items() if looks_like_masks(listing, list(files.values()))]
        images = [kind for kind in alike if kind not in masks]
        if not masks or not images:
            return "no two kinds of names have their numbers in common, or none of them holds few values"
        image = max(images, key=lambda kind: (len(kinds[kind]), kind))
        beside = {kind: len(kinds[kind].keys() & kinds[image].keys()) for kind in masks}
        beside = {kind: count for kind, count in beside.items() if count}
        return _paired(self.name, listing, kinds, image, beside) if beside else "images and masks have no numbers in common"


def _partners(kinds: Mapping[str, Mapping[tuple[int, ...], DataFile]], kind: str) -> bool:
    """Tell whether another kind of name has most of the numbers."""
    mine = kinds[kind].keys()
    return any(2 * len(mine & other.keys()) > min(len(mine), len(other)) for name, other in kinds.items() if name != kind)


def _paired(
    layout: str,
    listing: Listing,
    kinds: Mapping[str, Mapping[tuple[int, ...], DataFile]],
    image: str,
    beside: Mapping[str, int],
) -> Pairing:
    joined = joined_masks(beside)
    classes = tuple(joined.choices.get(LABEL, ())) if joined is not None else ()
    used = sorted(beside) if classes else [max(beside, key=lambda kind: (beside[kind], kind))]
    pairs, taken = [], set()
    for numbers, file in kinds[image].items():
        masks = {place: kinds[kind][numbers] for place, kind in enumerate(used, start=1) if numbers in kinds[kind]}
        if masks:
            pairs.append(Pair(file.stem, file, tuple(masks.values()), tuple(masks) if classes else ()))
            taken |= {file.stem, *(mask.stem for mask in masks.values())}
    lonely = tuple(file for file in kinds[image].values() if file.stem not in taken)
    pattern = PathPattern("{name}/{label}", {LABEL: classes}) if classes else PathPattern("{name}")
    strangers = tuple(file for file in listing.files if file.stem not in taken and file not in lonely)
    notes = (f"images are called {image}, masks {', '.join(used)}, where # is any number",)
    pairs.sort(key=lambda pair: pair.name)
    return Pairing(
        layout,
        listing.format,
        PathPattern("{name}"),
        pattern,
        tuple(pairs),
        without_mask=lonely,
        notes=notes,
        strangers=strangers,
        listed=True,
    )
