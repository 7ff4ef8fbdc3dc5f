"""Try the layouts in their order and take the first that fits; say why the others do not where none does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medsam_tune.data.layouts.base import Layout, Listing, Pairing, list_folder, pairing_of
from medsam_tune.data.layouts.bids import BidsFolders
from medsam_tune.data.layouts.content import AddedWord, EqualNames
from medsam_tune.data.layouts.dicom import DicomSeries
from medsam_tune.data.layouts.nnunet import NnUnetFolders
from medsam_tune.data.layouts.one_file import OneFile
from medsam_tune.data.layouts.roles import NamedRoles
from medsam_tune.data.patterns import PathPattern, check_patterns
from medsam_tune.errors import DataError

LAYOUTS: tuple[Layout, ...] = (
    NnUnetFolders(),
    BidsFolders(),
    OneFile(),
    DicomSeries(),
    NamedRoles(),
    EqualNames(),
    AddedWord(),
)
"""Tried in this order: what a description says, then what names say, then what pixels say."""


def detect(root: Path) -> Pairing:
    """Return how the images and masks of a folder belong together.

    Args:
        root: The data folder.

    Raises:
        DataError: If the folder holds nothing that any format reads, or no layout fits; the message says why for each.
    """
    refusals: list[str] = []
    found: list[Pairing] = []
    for listing in list_folder(root):
        first = _first(listing, refusals)
        if first is not None:
            found.append(first)
    if not found:
        raise DataError("\n  ".join([f"{root}: no images with masks were found:", *refusals, _ADVICE]))
    best, *others = sorted(found, key=lambda pairing: -len(pairing.pairs))
    also = [f"{len(each.pairs)} pairs of {_kind(each)} lie there too and are not read" for each in others]
    return replace(best, notes=(*best.notes, *also))


def pairing_of_patterns(root: Path, images: str, masks: str) -> Pairing:
    """Return the pairing that two patterns say, for a folder in no known layout.

    Raises:
        RecipeError: If the patterns do not go together.
        DataError: If no image and mask fit them.
    """
    check_patterns(images, masks)
    found = [pairing_of("your patterns", each, PathPattern(images), PathPattern(masks)) for each in list_folder(root)]
    best = max(found, key=lambda pairing: len(pairing.pairs))
    if best.pairs:
        return best
    raise DataError(f"{root}: no image at {images!r} has a mask at {masks!r}. A pattern has no ending: '{{name}}_mask'.")


_ADVICE = (
    "Put images into DIR/images and masks of the same names into DIR/masks, name a mask x_mask beside its image x, or say "
    "where they lie: medsam-tune init DIR --images='{folder}/a/{name}' --masks='{folder}/b/{name}'."
)


def _first(listing: Listing, refusals: list[str]) -> Pairing | None:
    kind = listing.format.endings[0]
    for layout in LAYOUTS:
        found = layout.find(listing)
        if isinstance(found, Pairing):
            return found
        refusals.append(f"{layout.name} ({len(listing.files)} {kind} files): {found}")
    return None


def _kind(pairing: Pairing) -> str:
    return pairing.format.endings[0]
