"""DICOM series with segmentations or structure sets, or with masks of another format that are named after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medsam_tune.data.formats import FORMATS, DicomFormat, Format, format_of
from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pair, Pairing
from medsam_tune.data.layouts.listed import listed_pairs, same_names, same_numbers
from medsam_tune.data.layouts.roles import best_patterns, match_files
from medsam_tune.data.layouts.slice_folders import masks_a_slice
from medsam_tune.data.patterns import PathPattern

_EVERYTHING = PathPattern("{name}")


class DicomSeries(Layout):
    """Pair series with the masks that refer to them, else with files named after them."""

    name = "DICOM series"

    def find(self, listing: Listing) -> Pairing | str:
        """Look for segmentations and structure sets first: they say which series they belong to."""
        if not isinstance(listing.format, DicomFormat):
            return ""
        images = {file.stem: file for file in listing.files}
        found = _referring(listing, images) or masks_a_slice(listing, self.name) or named_after(listing, self.name)
        return found or "no segmentation, structure set or mask of another format belongs to a series"


def _referring(listing: Listing, images: dict[str, DataFile]) -> Pairing | None:
    paths = {file.path for file in listing.files}
    masks = [path for path in listing.format.find_labels(listing.root).files if path not in paths]
    names = listing.format.image_names(masks, listing.root, {name: file.path for name, file in images.items()})
    of_image: dict[str, list[DataFile]] = {}
    for path, name in names.items():
        of_image.setdefault(name, []).append(DataFile(path, listing.format.name_of(path, listing.root)))
    both = sorted(images.keys() & of_image.keys())
    if not both:
        return None
    return Pairing(
        f"{DicomSeries.name} with DICOM masks",
        listing.format,
        _EVERYTHING,
        _EVERYTHING,
        tuple(Pair(name, images[name], tuple(of_image[name])) for name in both),
        without_mask=tuple(images[name] for name in sorted(images.keys() - of_image.keys())),
    )


def named_after(listing: Listing, layout: str) -> Pairing | None:
    """Pair the images of a listing with files of the other formats by their names.

    Args:
        listing: The images.
        layout: What the layout is called.
    """
    for form in FORMATS:
        if isinstance(form, (DicomFormat, type(listing.format))):
            continue
        masks = [DataFile(path, form.name_of(path, listing.root)) for path in listing.others if format_of(path) is form]
        found = match_files(listing.files, masks)
        if not found:
            alone = _alone(listing, layout, form, masks)
            if alone is not None:
                return alone
            continue
        of_images, of_masks = map(PathPattern, best_patterns(found))
        image_of = {name: file for file in listing.files if (name := of_images.name_of(file.stem)) is not None}
        mask_of = {name: file for file in masks if (name := of_masks.name_of(file.stem)) is not None}
        both = sorted(image_of.keys() & mask_of.keys())
        pairing = Pairing(
            f"{layout} with {form.endings[0]} masks",
            listing.format,
            of_images,
            of_masks,
            tuple(Pair(name, image_of[name], (mask_of[name],)) for name in both),
            without_mask=tuple(image_of[name] for name in sorted(image_of.keys() - mask_of.keys())),
            strangers=tuple(file for file in masks if of_masks.name_of(file.stem) is None),
        )
        return replace(pairing, mask_format=form)
    return None


def _alone(listing: Listing, layout: str, form: Format, masks: Sequence[DataFile]) -> Pairing | None:
    """Pair by the file's name alone, else by its number, where most of the masks find an image."""
    for told, pairs in (
        ("name", same_names(listing.files, masks)),
        ("number", same_numbers(listing.files, masks)),
    ):
        if len(pairs) > 1 and 2 * len(pairs) > len(masks):
            note = f"masks have their image's {told}, in other folders: {pairs[0][1].stem} is of {pairs[0][0].stem}"
            return replace(
                listed_pairs(f"{layout} with {form.endings[0]} masks of their {told}", listing, pairs, note), mask_format=form
            )
    return None
