"""Try the layouts in their order and take the first that fits; say why the others do not where none does."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from medsam_tune.data.folder_parts import held_out
from medsam_tune.data.layouts.alike import EqualNumbers, EqualStems
from medsam_tune.data.layouts.base import Layout, Listing, Pairing, list_folder, pairing_of
from medsam_tune.data.layouts.bids import BidsFolders
from medsam_tune.data.layouts.case_folders import EqualFiles, MaskFolders, OneImageAFolder
from medsam_tune.data.layouts.channels import with_fourth_axis
from medsam_tune.data.layouts.coco import CocoFiles, LabelmeFiles, YoloFiles
from medsam_tune.data.layouts.content import AddedWord, EqualNames
from medsam_tune.data.layouts.dicom import DicomSeries, named_after
from medsam_tune.data.layouts.drawn_files import CvatFiles, ImageScopeFiles, SuperviselyFiles, ViaFiles
from medsam_tune.data.layouts.nnunet import NnUnetFolders
from medsam_tune.data.layouts.one_file import OneFile
from medsam_tune.data.layouts.roles import NamedRoles, is_mask
from medsam_tune.data.layouts.sharded import pairing_of_shards
from medsam_tune.data.layouts.tables import PairTable
from medsam_tune.data.patterns import PathPattern, check_patterns
from medsam_tune.data.scan import scan_folder
from medsam_tune.data.shards.scanning import holds_shards
from medsam_tune.errors import DataError

LAYOUTS: tuple[Layout, ...] = (
    NnUnetFolders(),
    CocoFiles(),
    BidsFolders(),
    OneFile(),
    DicomSeries(),
    PairTable(),
    NamedRoles(),
    OneImageAFolder(),
    MaskFolders(),
    EqualNames(),
    AddedWord(),
    EqualStems(),
    EqualFiles(),
    LabelmeFiles(),
    YoloFiles(),
    CvatFiles(),
    ViaFiles(),
    SuperviselyFiles(),
    ImageScopeFiles(),
    EqualNumbers(),
)
"""Tried in this order: what a description says, then what names say, then what pixels say."""


_SHOWN = 8


def detect(root: Path) -> Pairing:
    """Return how the images and masks of a folder belong together.

    Args:
        root: The data folder.

    Raises:
        DataError: If the folder holds nothing that any format reads, or no layout fits; the message says why for each.
    """
    if holds_shards(root):
        return pairing_of_shards(root)
    refusals: list[str] = []
    found: list[Pairing] = []
    listings = list_folder(root)
    for listing in listings:
        first = _first(listing, refusals)
        if first is not None:
            found.append(first)
    if not found and len(listings) > 1:
        across = (named_after(listing, f"{listing.format.endings[0]} files") for listing in listings)
        found = [each for each in across if each is not None and not any(is_mask(pair.image.stem) for pair in each.pairs)]
    if not found:
        there = [f"{place}: {held}" for place, held in _what_is_there(root)]
        told = [f"{root}: no images with masks were found. There are:", *there, *refusals, _ADVICE]
        raise DataError("\n  ".join(told))
    best, *others = sorted(found, key=lambda pairing: -len(pairing.pairs))
    also = [f"{len(each.pairs)} pairs of {_kind(each)} lie there too and are not read" for each in others]
    best = with_fourth_axis(best)
    return replace(best, notes=(*best.notes, *also), new_images=best.new_images or _new_images(best))


def _new_images(found: Pairing) -> str | None:
    """Return the folder of images without masks that is called ``test``, ``val`` or the like; None where there is none."""
    used = {pair.image.stem.rpartition("/")[0] for pair in found.pairs}
    lonely = Counter(file.stem.rpartition("/")[0] for file in (*found.without_mask, *found.strangers))
    fresh = [folder for folder in lonely if folder not in used and held_out(folder) and not is_mask(f"{folder}/x")]
    if not fresh:
        return None
    shared = os.path.commonpath(fresh)
    return shared if held_out(shared) else max(fresh, key=lambda folder: (lonely[folder], folder))


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
    "What pairs: images in DIR/images and masks of the same names in DIR/masks; a mask x_mask beside its image x; a CSV file "
    "with the columns image and mask. Or say where they lie: medsam-tune init DIR --images='{folder}/a/{name}' "
    "--masks='{folder}/b/{name}'."
)


def _what_is_there(root: Path) -> list[tuple[str, str]]:
    """Return the folders that hold files, and how many of which kind, with a name of each; few lines for many folders."""
    held: dict[str, Counter[str]] = defaultdict(Counter)
    example: dict[tuple[str, str], str] = {}
    for path in scan_folder(root, ("",)).files:
        folder = path.parent.relative_to(root).as_posix()
        kind = path.suffix.lower() or "no ending"
        held[folder][kind] += 1
        example.setdefault((folder, kind), path.name)
    lines = [
        (f"{folder}/", ", ".join(f"{count} {kind} ({example[folder, kind]})" for kind, count in kinds.most_common()))
        for folder, kinds in sorted(held.items())
    ]
    more = [(f"and {len(lines) - _SHOWN} more folders", "of this kind")] if len(lines) > _SHOWN else []
    return lines[:_SHOWN] + more


def _first(listing: Listing, refusals: list[str]) -> Pairing | None:
    kind = listing.format.endings[0]
    best: Pairing | None = None
    for layout in LAYOUTS:
        # Masks are left that do not pair by these names: another layout may tell more.
        if best is not None and not any(is_mask(file.stem) for file in (*best.without_image, *best.strangers)):
            return best
        found = layout.find(listing)
        if isinstance(found, Pairing):
            best = found if best is None or len(found.pairs) > len(best.pairs) else best
        elif found:
            refusals.append(f"{layout.name} ({len(listing.files)} {kind} files): {found}.")
    return best


def _kind(pairing: Pairing) -> str:
    return pairing.format.endings[0]
