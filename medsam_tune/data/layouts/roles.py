"""Images and masks told apart by words of their names: ``images`` and ``masks``, ``x`` and ``x_seg``, ``p1/img`` and ``p1/gt``.

A mask is a file whose last telling word, folder or name, is a mask's. What is left of its path without that word is looked for
among the paths of the images without theirs. Both paths then become patterns that share what was left.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile

from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pairing, pairing_of
from medsam_tune.data.layouts.channels import channel_endings, with_channels
from medsam_tune.data.layouts.listed import joined_classes, joined_places
from medsam_tune.data.layouts.several import joined_masks
from medsam_tune.data.layouts.words import (
    CHANNEL_WORDS,
    DRAWN_WORDS,
    IMAGE_WORDS,
    MASK_WORDS,
    Span,
    channel_rank,
    channel_span,
    role_spans,
)
from medsam_tune.data.patterns import PathPattern

Found = dict[tuple[str, str], list[tuple[DataFile, DataFile]]]
"""Pairs of image and mask, by the two patterns that describe them."""

_SEPARATORS = " _-./"


@dataclass(frozen=True)
class Rest:
    """Hold what is left of a path without the words of its role.

    Attributes:
        kept: The places in the path that are left.
        rank: How much was taken away beyond the plain words; less is better.
    """

    file: DataFile
    kept: tuple[int, ...]
    rank: int

    @property
    def key(self) -> str:
        """Return the text that is left."""
        return "".join(self.file.stem[place] for place in self.kept)


class NamedRoles(Layout):
    """Find masks by the words of their names."""

    name = "masks told by their names"

    def find(self, listing: Listing) -> Pairing | str:
        """Pair by what is left of both paths; the place with the most pairs counts."""
        tried = [_matched(listing, tells) for tells in (is_mask, is_in_mask_folder)]
        best = max(tried, key=lambda each: len(each.found and max(each.found.values(), key=len)))
        if best.found:
            return chosen_pairing(self.name, listing, best.found)
        images, masks = max((len(each.images), len(each.masks)) for each in tried)
        if not masks:
            return "no file or folder has a word such as mask, label, seg or gt in its name"
        return f"{images} images and {masks} masks have no names in common"


@dataclass(frozen=True)
class _Matched:
    images: list[DataFile]
    masks: list[DataFile]
    found: Found


def _matched(listing: Listing, tells_mask: Callable[[str], bool]) -> _Matched:
    # A folder that all files lie in, such as Dataset_with_GT, tells none of them from another.
    below = len(common_folder([file.stem.rpartition("/")[0] for file in listing.files]))
    masks = [file for file in listing.files if tells_mask(file.stem[below:])]
    images = [file for file in listing.files if not tells_mask(file.stem[below:])]
    return _Matched(images, masks, match_files(images, masks))


def common_folder(folders: Sequence[str]) -> str:
    """Return the folders that all paths begin with, with a slash behind them.

    Examples:
        >>> common_folder(["a/b/1", "a/b/2"]), common_folder(["a", "b"]), common_folder(["a/b", "a/b"])
        ('a/b/', '', 'a/b/')
    """
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*(folder.split("/") for folder in folders), strict=False))
    return "".join(f"{level[0]}/" for level in shared if level[0])


def is_mask(stem: str) -> bool:
    """Tell whether the last telling part of a path is a mask's.

    Examples:
        >>> [is_mask(stem) for stem in ("masks_and_images/images/3", "p01/seg", "a_gt", "labelsTr/x")]
        [False, True, True, True]
    """
    for part in reversed(stem.split("/")):
        if role_spans(part, MASK_WORDS):
            return True
        if role_spans(part, IMAGE_WORDS):
            return False
    return False


def is_in_mask_folder(stem: str) -> bool:
    """Tell whether the last telling folder of a path is a mask's, whatever the file is called.

    Examples:
        >>> is_in_mask_folder("masks/image_3"), is_in_mask_folder("a_gt")
        (True, False)
    """
    folder = stem.rpartition("/")[0]
    return bool(folder) and is_mask(folder)


def match_files(images: Iterable[DataFile], masks: Iterable[DataFile]) -> Found:
    """Pair files by what is left of their paths, grouped by the two patterns that describe them."""
    index: dict[str, list[Rest]] = defaultdict(list)
    for image in images:
        for rest in _image_rests(image):
            index[rest.key].append(rest)
    found: Found = defaultdict(list)
    for mask in masks:
        candidates = [(left, right) for left in _mask_rests(mask) for right in index.get(left.key, ())]
        if not candidates:
            continue
        best = min(left.rank + right.rank for left, right in candidates)
        seen = set()
        for left, right in candidates:
            if left.rank + right.rank == best and right.file.stem not in seen:
                seen.add(right.file.stem)
                found[_patterns(right, left)].append((right.file, mask))
    return dict(found)


def chosen_pairing(layout: str, listing: Listing, found: Found) -> Pairing:
    """Take the pair of patterns that most files fit, and say what else there was."""
    merged = _with_literals(found)
    (images, masks), *others = _ranked(merged)
    beside = {masks: len(merged[images, masks])} | {each[1]: len(merged[each]) for each in others if each[0] == images}
    several = joined_masks(beside)
    if several is not None:
        return pairing_of(f"{layout}, several an image", listing, PathPattern(images), several)
    if endings := channel_endings([images, *(each[0] for each in others if each[1] == masks)]):
        return with_channels(pairing_of(layout, listing, PathPattern(images), PathPattern(masks)), endings, {})
    if joined := joined_classes(layout, listing, merged, images) or joined_places(layout, listing, merged, (images, masks)):
        return joined
    notes = [f"'{other[0]}' with '{other[1]}' would pair {len(merged[other])} files too" for other in others[:3]]
    return replace(pairing_of(layout, listing, PathPattern(images), PathPattern(masks)), notes=tuple(notes))


def best_patterns(found: Found) -> tuple[str, str]:
    """Return the patterns of images and masks that most files fit."""
    return _ranked(_with_literals(found))[0]


def _ranked(merged: Found) -> list[tuple[str, str]]:
    most = max(map(len, merged.values()))

    def rank(patterns: tuple[str, str]) -> tuple[bool, int, int, int, tuple[str, str]]:
        images, masks = patterns
        # A `mask` beside what an expert drew, as in DRIVE, is the field of view.
        drawn = 2 * len(merged[patterns]) >= most and bool(role_spans(masks, DRAWN_WORDS))
        return not drawn, -len(merged[patterns]), images.count("{"), channel_rank(images), patterns

    return sorted(merged, key=rank)


def _mask_rests(file: DataFile) -> Iterator[Rest]:
    """Return what may be left of a mask's path, also without the word of a class at the end or beginning of its name."""
    last = file.stem.rpartition("/")[2]
    offset = len(file.stem) - len(last)
    words = [
        re.search(r"[ _\-.][A-Za-z][A-Za-z0-9]*$", last),
        re.match(r"[A-Za-z]+[ _\-.]", last),
        re.fullmatch(r"[A-Za-z_]+", last),
        re.search(r"[ _\-.]\d+$", last),
    ]
    for rest in _rests(file, MASK_WORDS):
        yield rest
        for rank, found in enumerate(words, start=10):
            if found is not None:
                kept = [place for place in rest.kept if not found.start() <= place - offset < found.end()]
                if kept and file.stem[kept[-1]] == "/":
                    kept.pop()
                if kept and len(kept) < len(rest.kept):
                    yield Rest(file, tuple(kept), rest.rank + rank)


def _image_rests(file: DataFile) -> Iterator[Rest]:
    for rest in _rests(file, IMAGE_WORDS):
        yield rest
        last = file.stem.rpartition("/")[2]
        part = re.search(r"[_\-. ](?:training|train|test)$", last, re.IGNORECASE)
        channel = channel_span(last) or (Span(0, len(last)) if last.lower() in CHANNEL_WORDS else None)
        span = channel if part is None else Span(part.start(), part.end())
        if span is not None:
            offset = len(file.stem) - len(last)
            kept = [place for place in rest.kept if not span.start <= place - offset < span.end]
            if kept and file.stem[kept[-1]] == "/":
                kept.pop()
            if kept and len(kept) < len(rest.kept):
                yield Rest(file, tuple(kept), rest.rank + 4)


def _rests(file: DataFile, words: frozenset[str]) -> Iterator[Rest]:
    """Return what may be left of a path: without its words, its folders of that role, and one more folder."""
    *folders, last = _parts(file.stem)
    seen: set[tuple[int, ...]] = set()
    by_words = [_without(part, role_spans(text, words)) for text, part in folders]
    whole = [() if role_spans(text, words) else part for text, part in folders]
    plain = [part for _, part in folders]
    name_words, name_plain = _without(last[1], role_spans(last[0], words)), last[1]
    choices: list[tuple[int, list[tuple[int, ...]], tuple[int, ...]]] = []
    for rank, above in ((0, by_words), (1, whole), (2, plain)):
        choices += [(rank, above, name_words), (rank if name_words == name_plain else rank + 1, above, name_plain)]
    for dropped in range(len(folders)):
        fewer = [() if position == dropped else part for position, part in enumerate(whole)]
        choices += [(5, fewer, name_words), (6, fewer, name_plain)]
    for rank, above, name in choices:
        kept = _joined(file.stem, [part for part in above if part], name)
        if kept and kept not in seen:
            seen.add(kept)
            yield Rest(file, kept, rank)


def _parts(stem: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(found[0], tuple(range(found.start(), found.end()))) for found in re.finditer(r"[^/]+", stem)]


def _without(part: tuple[int, ...], spans: list[Span]) -> tuple[int, ...]:
    return tuple(place for offset, place in enumerate(part) if not any(span.start <= offset < span.end for span in spans))


def _joined(stem: str, folders: list[tuple[int, ...]], name: tuple[int, ...]) -> tuple[int, ...]:
    """Join what is left of the parts, each folder with the slash behind it; a name that is gone takes the last slash along."""
    kept: list[int] = []
    for part in folders:
        slash = stem.index("/", part[-1])
        kept += [*part, slash]
    if not name and kept:
        kept.pop()
    return (*kept, *name)


def _patterns(image: Rest, mask: Rest) -> tuple[str, str]:
    """Turn the two paths of a pair into patterns that share the fields."""
    key = image.key
    cuts = {0, len(key)}
    for rest in (image, mask):
        cuts |= {place for place in range(1, len(key)) if rest.kept[place] != rest.kept[place - 1] + 1}
    order = sorted(cuts)
    fields = [_trimmed(key, start, end) for start, end in pairwise(order)]
    fields = [each for each in fields if each.start < each.end]
    names = ["name", "folder", *(f"folder{number}" for number in range(2, len(fields)))][: len(fields)]
    named = dict(zip(fields, [*names[1:], "name"], strict=True))
    return _pattern(image, named), _pattern(mask, named)


def _trimmed(key: str, start: int, end: int) -> Span:
    while start < end and key[start] in _SEPARATORS:
        start += 1
    while start < end and key[end - 1] in _SEPARATORS:
        end -= 1
    return Span(start, end)


def _pattern(rest: Rest, fields: dict[Span, str]) -> str:
    stem, text, place = rest.file.stem, "", 0
    for field, name in fields.items():
        text += stem[place : rest.kept[field.start]] + f"{{{name}}}"
        place = rest.kept[field.end - 1] + 1
    return text + stem[place:]


def _with_literals(found: Found) -> Found:
    """Write a folder that is the same in every pair as it is, where the name is another field."""
    merged: Found = defaultdict(list)
    for (images, masks), pairs in found.items():
        pattern = PathPattern(images)
        held = [pattern.match(image.stem) or {} for image, _ in pairs]
        for field in pattern.fields:
            values = Counter(each.get(field) for each in held)
            if field != "name" and len(values) == 1 and len(pairs) > 1:
                value = next(iter(values)) or ""
                images, masks = (text.replace(f"{{{field}}}", value) for text in (images, masks))
        merged[images, masks] += pairs
    return dict(merged)
