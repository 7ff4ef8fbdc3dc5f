"""Masks that lie among the images that a model is asked about, as in the very folder that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medsam_tune.data.formats import Format
from medsam_tune.data.layouts.alike import EqualStems
from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pairing
from medsam_tune.data.layouts.bids import BidsFolders
from medsam_tune.data.layouts.case_folders import EqualFiles, OneImageAFolder
from medsam_tune.data.layouts.content import AddedWord, EqualNames
from medsam_tune.data.layouts.roles import NamedRoles, is_mask

_LAYOUTS: tuple[Layout, ...] = (
    BidsFolders(),
    NamedRoles(),
    OneImageAFolder(),
    EqualNames(),
    AddedWord(),
    EqualStems(),
    EqualFiles(),
)


def masks_among(root: Path, read_by: Mapping[Path, Format]) -> frozenset[Path]:
    """Return those files that are masks of others among them, told as a first recipe tells them.

    Args:
        root: The folder.
        read_by: Its files with the format that reads each.
    """
    masks: set[Path] = set()
    for form in {id(form): form for form in read_by.values()}.values():
        files = tuple(DataFile(path, form.name_of(path, root)) for path, read in sorted(read_by.items()) if read is form)
        masks |= _masks_of(Listing(root, form, files, ()))
    return frozenset(masks)


def _masks_of(listing: Listing) -> set[Path]:
    for layout in _LAYOUTS:
        found = layout.find(listing)
        if isinstance(found, Pairing) and found.pairs:
            others = [file for file in found.strangers if is_mask(file.stem)]
            return _paths([*(mask for pair in found.pairs for mask in pair.masks), *found.without_image, *others])
    return set()


def _paths(files: Sequence[DataFile]) -> set[Path]:
    return {file.path for file in files}
