"""A folder a case that holds one image: its masks belong to it whatever they are called."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pair, Pairing, pairing_of
from medsam_tune.data.layouts.content import looks_like_masks
from medsam_tune.data.layouts.listed import joined_classes
from medsam_tune.data.layouts.roles import best_patterns, common_folder, is_mask, match_files
from medsam_tune.data.layouts.words import IMAGE_WORDS, channel_rank, role_spans
from medsam_tune.data.patterns import INSTANCE, LABEL, PathPattern


class OneImageAFolder(Layout):
    """Pair the only image below a folder with all masks below it, as ``id/images/x`` and ``id/masks/*`` of DSB-2018."""

    name = "one image a folder, its masks beside it"

    def find(self, listing: Listing) -> Pairing | str:
        """Tell masks by the words of their names, and gather them with the image that lies nearest."""
        cases = _cases(listing.files)
        if not cases:
            return ""
        found = _by_pattern(listing, cases)
        return found if found is not None and len(found.pairs) == len(cases) else _listed(listing, cases)


def _cases(files: Sequence[DataFile]) -> dict[str, tuple[DataFile, list[DataFile]]]:
    """Return the folders that hold one image and some masks: the folder, its image and its masks."""
    images: dict[str, list[DataFile]] = defaultdict(list)
    for file in files:
        if not is_mask(file.stem):
            for folder in _above(file.stem):
                images[folder].append(file)
    masks: dict[str, list[DataFile]] = defaultdict(list)
    for file in files:
        if is_mask(file.stem):
            nearest = next((folder for folder in _above(file.stem) if folder in images), None)
            if nearest is not None and len(images[nearest]) == 1:
                masks[nearest].append(file)
    return {folder: (images[folder][0], found) for folder, found in sorted(masks.items())}


def _above(stem: str) -> list[str]:
    """Return the folders above a file, the nearest first; the data folder is none of them."""
    parts = stem.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _by_pattern(listing: Listing, cases: Mapping[str, tuple[DataFile, list[DataFile]]]) -> Pairing | None:
    """Say by patterns what lies in the first folder, with its name as the field and any name for several masks."""
    folder, (image, masks) = next(iter(cases.items()))
    above, _, name = folder.rpartition("/")
    prefix = f"{above}/{{name}}" if above else "{name}"
    below = masks[0].stem.removeprefix(f"{folder}/")
    if _classes(cases):
        return None
    if any(len(found) > 1 for _, found in cases.values()):
        between, _, _ = below.rpartition("/")
        if not between:
            return None
        below = f"{between}/{{{INSTANCE}}}"
    whole = re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])")
    of_image, of_mask = (whole.sub("{name}", text) for text in (image.stem.removeprefix(f"{folder}/"), below))
    patterns = (f"{prefix}/{of_image}", f"{prefix}/{of_mask}")
    return pairing_of(OneImageAFolder.name, listing, *map(PathPattern, patterns))


def _classes(cases: Mapping[str, tuple[DataFile, list[DataFile]]]) -> tuple[str, ...]:
    """Return the names of masks where the same few, which are no numbers, lie in all folders: classes. Others are objects."""
    names = [[mask.stem.removeprefix(f"{folder}/") for mask in masks] for folder, (_, masks) in cases.items()]
    counts = Counter(name for found in names for name in found)
    known = sorted(name for name, count in counts.items() if 2 * count > len(names))
    if max(map(len, names)) < 2 or len(known) < len(counts) or all(name.rpartition("/")[2].isdigit() for name in known):
        return ()
    return tuple(known)


def _listed(listing: Listing, cases: Mapping[str, tuple[DataFile, list[DataFile]]]) -> Pairing:
    classes = _classes(cases)
    several = any(len(masks) > 1 for _, masks in cases.values())
    pairs = []
    for folder, (image, masks) in cases.items():
        names = [mask.stem.removeprefix(f"{folder}/") for mask in masks]
        numbers = [classes.index(name) + 1 if classes else place for place, name in enumerate(names, start=1)]
        pairs.append(Pair(image.stem, image, tuple(masks), tuple(numbers) if several else ()))
    short = tuple(name.rpartition("/")[2] for name in classes)
    classes = short if len(set(short)) == len(short) else classes
    field = LABEL if classes else INSTANCE
    pattern = PathPattern(f"{{name}}/{{{field}}}", {LABEL: classes} if classes else {}) if several else PathPattern("{name}")
    taken = {file.stem for image, masks in cases.values() for file in (image, *masks)}
    rest = tuple(file for file in listing.files if file.stem not in taken)
    named = PathPattern("{name}")
    return Pairing(OneImageAFolder.name, listing.format, named, pattern, tuple(pairs), strangers=rest, listed=True)


class MaskFolders(Layout):
    """Pair ``images/x`` with all files in ``masks/x/``: one object each."""

    name = "a folder of masks for each image"

    def find(self, listing: Listing) -> Pairing | str:
        """Match the folders of masks with the images as if they were files."""
        # The folder is called like the image, perhaps IMG_3, so what lies above it tells.
        masks = [file for file in listing.files if is_mask(f"{file.stem.rpartition('/')[0].rpartition('/')[0]}/x")]
        folders = dict.fromkeys(file.stem.rpartition("/")[0] for file in masks)
        images = [file for file in listing.files if file not in masks]
        found = match_files(images, [DataFile(listing.root / folder, folder) for folder in folders if folder])
        if not found:
            return ""
        of_images, of_folders = best_patterns(found)
        pattern = PathPattern(f"{of_folders}/{{{INSTANCE}}}")
        paired = pairing_of(self.name, listing, PathPattern(of_images), pattern)
        if not any(len(pair.masks) > 1 for pair in paired.pairs):
            return ""
        return _as_classes(listing, paired) or paired


def _as_classes(listing: Listing, found: Pairing) -> Pairing | None:
    """Return masks whose names, the image's aside, are the same in most folders as classes; None for objects."""
    places: dict[tuple[str, str], list[tuple[DataFile, DataFile]]] = defaultdict(list)
    for pair in found.pairs:
        name = pair.image.stem.rpartition("/")[2]
        for mask in pair.masks:
            places[found.images.text, mask.stem.replace(name, "{}")].append((pair.image, mask))
    if any(2 * len(files) <= len(found.pairs) for files in places.values()):
        return None
    return joined_classes(found.layout, listing, places, found.images.text)


class EqualFiles(Layout):
    """Pair ``case/image`` with ``case/liver`` and ``case/spleen``: the same names everywhere, told apart by values."""

    name = "a folder a case with equal file names"

    def find(self, listing: Listing) -> Pairing | str:
        """Compare what folders hold; contents are looked at only where most of them hold the same names."""
        found: Pairing | str = ""
        for folders in _by_depth(listing):
            found = _equal_files(self.name, listing, folders) or found
            if isinstance(found, Pairing):
                break
        return found


def _by_depth(listing: Listing) -> Iterator[dict[str, dict[str, DataFile]]]:
    """Return the files of each folder, then of each folder above with all that lies below it, the deepest first."""
    yield listing.by_folder()
    for depth in range(max((file.stem.count("/") for file in listing.files), default=0) - 1, 0, -1):
        folders: dict[str, dict[str, DataFile]] = defaultdict(dict)
        for file in listing.files:
            parts = file.stem.split("/")
            if len(parts) > depth:
                folders["/".join(parts[:depth])]["/".join(parts[depth:])] = file
        yield folders


def _equal_files(layout: str, listing: Listing, folders: Mapping[str, Mapping[str, DataFile]]) -> Pairing | str:
    counts = Counter(name for files in folders.values() for name in files)
    shared = [name for name, count in sorted(counts.items()) if count > 1 and 2 * count >= len(folders)]
    if len(folders) < 2 or len(shared) < 2:
        return ""
    of_name = {name: [files[name] for files in folders.values() if name in files] for name in shared}
    masks = [name for name in shared if looks_like_masks(listing, of_name[name])]
    images = sorted((name for name in shared if name not in masks), key=_image_rank)
    if not masks or not images:
        return "of the names in every folder none holds few values, or all do"
    below = f"{common_folder([folder.rpartition('/')[0] for folder in folders if folder])}{{name}}"
    pattern = PathPattern(f"{below}/{masks[0]}" if len(masks) == 1 else f"{below}/{{{LABEL}}}", _choices(masks))
    paired = pairing_of(layout, listing, PathPattern(f"{below}/{images[0]}"), pattern)
    return paired if paired.pairs else ""


def _choices(masks: Sequence[str]) -> Mapping[str, Sequence[str]]:
    return {LABEL: tuple(masks)} if len(masks) > 1 else {}


def _image_rank(name: str) -> tuple[bool, int, str]:
    return not role_spans(name, IMAGE_WORDS), channel_rank(name), name
