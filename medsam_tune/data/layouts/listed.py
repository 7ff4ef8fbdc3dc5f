"""Pairings that no pattern can say, so that a recipe needs a table: several places, classes under names of their own."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from medsam_tune.data.layouts.base import DataFile, Listing, Pair, Pairing
from medsam_tune.data.layouts.content import stored_values
from medsam_tune.data.layouts.words import IMAGE_WORDS, MASK_WORDS, SAYS_NOTHING, channel_rank, channel_span, role_spans, tokens
from medsam_tune.data.patterns import LABEL, PathPattern
from medsam_tune.errors import DataError

Found = Mapping[tuple[str, str], Sequence[tuple[DataFile, DataFile]]]
"""Pairs of image and mask, by the two patterns that describe them."""

_LOOKED_AT = 3
_MOST_CLASSES = 32
# Two drawings of one thing share more than that of their pixels; classes of one image do not.
_ALIKE = 0.55
_NUMBER = re.compile(r"\d+")


def joined_places(layout: str, listing: Listing, found: Found, first: tuple[str, str]) -> Pairing | None:
    """Return the pairs of all places whose images and masks no other place uses, as ``part_1`` and ``part_2``; None for one.

    Args:
        layout: The layout's name.
        listing: The files.
        found: The pairs of each place.
        first: The place with the most pairs.
    """
    taken = {file.stem for pair in found[first] for file in pair}
    pairs, used = list(found[first]), [first]
    for patterns in sorted(found.keys() - {first}, key=lambda each: (-len(found[each]), each)):
        fresh = [pair for pair in found[patterns] if not taken & {file.stem for file in pair}]
        if len(fresh) == len(found[patterns]) > 1:
            taken |= {file.stem for pair in fresh for file in pair}
            pairs, used = [*pairs, *fresh], [*used, patterns]
    if len(used) < 2:
        return None
    places = "; ".join(f"'{images}' with '{masks}'" for images, masks in used)
    return _listed(layout, listing, [(image, (mask,)) for image, mask in pairs], (), f"{len(used)} places are read: {places}")


def joined_classes(layout: str, listing: Listing, found: Found, images: str) -> Pairing | None:
    """Return the masks of one place of images under all their patterns, a class each; None where they are no classes.

    Masks that cover nearly the same pixels are drawings of one thing by several people.

    Args:
        layout: The layout's name.
        listing: The files.
        found: The pairs of each place.
        images: The pattern of the images.
    """
    patterns = [masks for of_images, masks in found if of_images == images]
    names = class_names([re.sub(r"\{\w+\}", "{}", text) for text in patterns])
    if names is None or not _differ(listing, [found[images, text] for text in patterns]):
        return None
    of_image: dict[DataFile, dict[str, DataFile]] = defaultdict(dict)
    for name, text in zip(names, patterns, strict=True):
        for image, mask in found[images, text]:
            of_image[image][name] = mask
    classes = tuple(sorted(names))
    rows = [(image, tuple(masks[name] for name in classes if name in masks)) for image, masks in of_image.items()]
    numbers = {image.stem: [classes.index(name) + 1 for name in classes if name in of_image[image]] for image in of_image}
    return _listed(layout, listing, rows, classes, f"masks are classes: {', '.join(sorted(patterns))}", numbers)


def class_names(texts: Sequence[str]) -> list[str] | None:
    """Return the class that each text is about: its word that no other has; None where one has none of its own.

    Example:
        >>> class_names(["truth/1. Haemorrhages/{}_HE", "truth/2. Exudates/{}_EX"])
        ['Haemorrhages', 'Exudates']
        >>> class_names(["{}_ODsegSoftmap", "{}_cupsegSoftmap"])
        ['ODsegSoftmap', 'cupsegSoftmap']
        >>> class_names(["masks/{}", "labels/{}"]) is None
        True
    """
    parts = [[part.strip(" _-.") for part in re.split(r"[/{}]+", text)] for text in texts]
    counts = Counter(part for each in parts for part in set(each))
    names = []
    for each in parts:
        own = [part for part in each if counts[part] == 1 and _tells_class(part)]
        if not own:
            return None
        names.append(re.sub(r"^[\d. _-]+", "", own[0]).strip() or own[0])
    return names if len(set(names)) == len(names) and 1 < len(names) <= _MOST_CLASSES else None


def _tells_class(part: str) -> bool:
    known = MASK_WORDS | IMAGE_WORDS | SAYS_NOTHING
    words = [word for word, _ in tokens(part) if not word.isdigit()]
    return any(word not in known for word in words)


def _differ(listing: Listing, places: Sequence[Sequence[tuple[DataFile, DataFile]]]) -> bool:
    """Tell whether masks of one image differ by more than people do; what cannot be read tells nothing."""
    shared: list[float] = []
    for number, first in enumerate(places):
        of_image = {image.stem: mask for image, mask in first}
        for second in places[number + 1 :]:
            both = [(of_image[image.stem], mask) for image, mask in second if image.stem in of_image][:_LOOKED_AT]
            shared += [share for masks in both if (share := _overlap(listing, *masks)) is not None]
    return not shared or median(shared) < _ALIKE


def _overlap(listing: Listing, one: DataFile, other: DataFile) -> float | None:
    try:
        first, second = (stored_values(listing, file) > 0 for file in (one, other))
    except DataError:
        return None
    if first.shape != second.shape or not (first.any() and second.any()):
        return None
    return float(np.sum(first & second) / np.sum(first | second))


def same_names(images: Sequence[DataFile], masks: Sequence[DataFile]) -> list[tuple[DataFile, DataFile]]:
    """Pair each mask with the image of its name, whatever folders they lie in; of several contrasts the one that shows most.

    A name that several images have counts only where they lie in one folder.
    """
    of_name: dict[str, list[DataFile]] = defaultdict(list)
    for image in images:
        of_name[_bare(image.stem, IMAGE_WORDS)].append(image)
    named = Counter(_bare(mask.stem, MASK_WORDS) for mask in masks)
    pairs = []
    for mask in masks:
        name = _bare(mask.stem, MASK_WORDS)
        fitting = of_name.get(name, [])
        if name and named[name] == 1 and len({image.stem.rpartition("/")[0] for image in fitting}) == 1:
            pairs.append((min(fitting, key=lambda image: (channel_rank(image.stem), image.stem)), mask))
    return pairs


def same_numbers(images: Sequence[DataFile], masks: Sequence[DataFile]) -> list[tuple[DataFile, DataFile]]:
    """Pair masks that are numbered with images of which a folder or name has the same number: ``label0001``, ``P_0001/x``.

    All images must have one number each, and most of them a mask.
    """
    kinds = {_NUMBER.sub("#", mask.stem) for mask in masks}
    number_of = {mask: int(found[-1]) for mask in masks if (found := _NUMBER.findall(mask.stem.rpartition("/")[2]))}
    if len(kinds) != 1 or len(set(number_of.values())) < len(masks) or len(masks) < 2:
        return []
    for level in range(max((image.stem.count("/") for image in images), default=-1) + 1):
        deep = [image for image in images if image.stem.count("/") >= level]
        counted = [(image, _NUMBER.findall(image.stem.split("/")[level])) for image in deep]
        of_number = {int(numbers[-1]): image for image, numbers in counted if numbers}
        pairs = [(of_number[number], mask) for mask, number in number_of.items() if number in of_number]
        if len(of_number) == len(images) and 2 * len(pairs) > len(images):
            return pairs
    return []


def _bare(stem: str, words: frozenset[str]) -> str:
    """Return a file's name in small letters without the words of its role and without its channel."""
    name = stem.rpartition("/")[2]
    channel = channel_span(name)
    spans = role_spans(name, words) + ([channel] if channel is not None and not name[channel.start + 1].isdigit() else [])
    return "".join(
        letter for place, letter in enumerate(name) if not any(span.start <= place < span.end for span in spans)
    ).lower()


def listed_pairs(layout: str, listing: Listing, pairs: Sequence[tuple[DataFile, DataFile]], note: str) -> Pairing:
    """Return a pairing of one mask an image, in the order of their names."""
    return _listed(layout, listing, [(image, (mask,)) for image, mask in pairs], (), note)


def _listed(
    layout: str,
    listing: Listing,
    rows: Sequence[tuple[DataFile, tuple[DataFile, ...]]],
    classes: tuple[str, ...],
    note: str,
    numbers: Mapping[str, Sequence[int]] | None = None,
) -> Pairing:
    pairs = [Pair(image.stem, image, masks, tuple((numbers or {}).get(image.stem, ()))) for image, masks in rows]
    pattern = PathPattern("{name}/{label}", {LABEL: classes}) if classes else PathPattern("{name}")
    taken = {file.stem for image, masks in rows for file in (image, *masks)}
    return replace(
        Pairing(layout, listing.format, PathPattern("{name}"), pattern, tuple(sorted(pairs, key=lambda pair: pair.name))),
        strangers=tuple(file for file in listing.files if file.stem not in taken),
        notes=(note,),
        listed=True,
    )
