"""A table of pairs: a CSV file of which one column names images and another their masks."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pair, Pairing
from medsam_tune.data.layouts.content import looks_like_masks
from medsam_tune.data.layouts.roles import is_mask
from medsam_tune.data.layouts.words import MASK_WORDS, role_spans
from medsam_tune.data.patterns import LABEL, PathPattern

_ENDINGS = (".csv", ".tsv")
_LARGEST = 64 * 1024**2
# Cells of other things: an empty mask, a row of images that are not here.
_ENOUGH = 0.5


class PairTable(Layout):
    """Pair what stands in one line of a table; a column more is a class more."""

    name = "a table of pairs"

    def find(self, listing: Listing) -> Pairing | str:
        """Take the table that names most of the files."""
        tables = [path for path in listing.others if path.suffix.lower() in _ENDINGS]
        if not tables:
            return ""
        runs = [path.name for path in tables if any(_is_of_runs(column) for column in columns_of(path))]
        if runs:
            return f"{runs[0]} holds masks as run lengths, which have no common rule. Save them as mask files, or as COCO"
        found = [pairing for path in tables if (pairing := _pairing(listing, path)) is not None]
        if not found:
            names = ", ".join(path.name for path in tables[:3])
            return f"no two columns of {names} name images and masks that are here"
        return max(found, key=lambda pairing: len(pairing.pairs))


def _pairing(listing: Listing, path: Path) -> Pairing | None:
    columns = columns_of(path)
    finder = _Finder(listing)
    files = {name: [finder.find(cell) for cell in cells] for name, cells in columns.items()}
    files = {name: found for name, found in files.items() if sum(map(bool, found)) >= max(2, _ENOUGH * len(found))}
    masks = [name for name in files if role_spans(name, MASK_WORDS)] or [
        name for name, found in files.items() if _are_masks(listing, [file for file in found if file])
    ]
    images = [name for name in files if name not in masks]
    if not images or not masks:
        return None
    # Two columns of one thing, such as a name and a path.
    masks = list({tuple(file.stem for file in files[name] if file): name for name in masks}.values())
    pairs = _pairs(files[images[0]], [files[name] for name in masks])
    several = {LABEL: tuple(_class(name) for name in masks)} if len(masks) > 1 else {}
    pattern = PathPattern("{name}/{label}", several) if several else PathPattern("{name}")
    note = f"{path.relative_to(listing.root).as_posix()} pairs its column {images[0]!r} with {', '.join(map(repr, masks))}"
    taken = {file.stem for pair in pairs for file in (pair.image, *pair.masks)}
    return Pairing(
        PairTable.name,
        listing.format,
        PathPattern("{name}"),
        pattern,
        tuple(pairs),
        notes=(note,),
        strangers=tuple(file for file in listing.files if file.stem not in taken),
        listed=True,
    )


def _pairs(images: Sequence[DataFile | None], columns: Sequence[Sequence[DataFile | None]]) -> list[Pair]:
    held: dict[DataFile, dict[DataFile, int]] = defaultdict(dict)
    for row, image in enumerate(images):
        for number, column in enumerate(columns, start=1):
            mask = column[row]
            if image is not None and mask is not None:
                held[image].setdefault(mask, number)
    numbered = len(columns) > 1
    return [
        Pair(image.stem, image, tuple(masks), tuple(masks.values()) if numbered or len(masks) > 1 else ())
        for image, masks in sorted(held.items(), key=lambda each: each[0].stem)
    ]


def find_tables(root: Path) -> list[Path]:
    """Return the tables that lie in a folder or in one of its folders, sorted."""
    return sorted(path for place in ("*", "*/*") for path in root.glob(place) if path.suffix.lower() in _ENDINGS)


def columns_of(path: Path) -> dict[str, list[str]]:
    """Return the cells of each column of a table; empty where the file is no table of text.

    Args:
        path: A file of cells with commas, semicolons or tabs between them, and a first line of names.
    """
    if path.stat().st_size > _LARGEST:
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return {}
    lines = text.splitlines()
    delimiter = max(",;\t", key=lambda sign: lines[0].count(sign)) if lines else ","
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:
        return {}
    if len(rows) < 2:
        return {}
    return {name: [row[place] if place < len(row) else "" for row in rows[1:]] for place, name in enumerate(rows[0])}


def _is_of_runs(column: str) -> bool:
    return column.lower().replace("_", "") in ("encodedpixels", "rle", "rlemask")


def _class(column: str) -> str:
    """Return a column's name without the words that say that it holds masks."""
    spans = role_spans(column, MASK_WORDS) + role_spans(column, frozenset({"path", "file", "filename"}))
    plain = "".join(letter for place, letter in enumerate(column) if not any(span.start <= place < span.end for span in spans))
    return plain.strip(" _-.") or column


def _are_masks(listing: Listing, files: Sequence[DataFile]) -> bool:
    return all(is_mask(file.stem) for file in files) or looks_like_masks(listing, files)


class _Finder:
    """Find the file that a cell names: by the end of its path, with or without ending."""

    def __init__(self, listing: Listing) -> None:
        self._by_name: dict[str, list[DataFile]] = defaultdict(list)
        for file in listing.files:
            for name in dict.fromkeys((file.path.name, file.stem.rpartition("/")[2])):
                self._by_name[name].append(file)

    def find(self, cell: str) -> DataFile | None:
        """Return the only file that fits best, or None."""
        parts = PurePosixPath(cell.strip().replace("\\", "/")).parts
        ranked = _ranked(parts, self._by_name.get(parts[-1], ()) if parts else ())
        best = [file for rank, file in ranked.items() if rank == max(ranked)]
        return best[0][0] if best and len(best[0]) == 1 else None


def _ranked(parts: Sequence[str], files: Iterable[DataFile]) -> Mapping[int, list[DataFile]]:
    """Return the files by how many folders above them are those of a path."""
    found: dict[int, list[DataFile]] = defaultdict(list)
    for file in files:
        same = 0
        for one, other in zip(reversed(parts[:-1]), reversed(file.stem.split("/")[:-1]), strict=False):
            if one != other:
                break
            same += 1
        found[same].append(file)
    return found
