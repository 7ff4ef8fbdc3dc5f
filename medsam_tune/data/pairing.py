"""Pair image files with mask files by name, and say clearly what does not pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from medsam_tune.errors import DataError, PartlyUsable, all_usable

Masks = TypeVar("Masks")

_SHOWN = 5
# Licences, notes and lists that lie in both folders, and what systems leave behind.
_TEXTS = frozenset(
    f".{end}" for end in ["txt", "md", "rst", "pdf", "docx", "html", "csv", "tsv", "xlsx", "json", "yaml", "yml", "ini", "db"]
)


def first_names(names: Sequence[str]) -> str:
    """Join the first five names and count the others, for a message."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def by_name(files: Iterable[Path], name_of: Callable[[Path], str]) -> dict[str, Path]:
    """Index files by name.

    Raises:
        PartlyUsable: If two files have one name, such as ``a.png`` and ``a.jpg``; each such pair.
    """
    named: dict[str, Path] = {}
    faults: list[str] = []
    for path in files:
        name = name_of(path)
        if name in named:
            faults.append(f"{path}: has the same name {name!r} as {named[name]}. Keep one file for each image.")
        named.setdefault(name, path)
    return all_usable(named, faults, f"{len(faults)} files have the names of others")


def pair_files(
    images: Mapping[str, Path], masks: Mapping[str, Masks], *, root: Path, require_masks: bool, hint: str
) -> list[tuple[str, Path, Masks | None]]:
    """Pair images and masks of equal name, sorted by name: (name, image, mask or None).

    Args:
        images: Image files by name.
        masks: A mask file, or all of an image's, by the name of the image.
        root: For the message.
        require_masks: False accepts an image without a mask.
        hint: How names pair in this layout, for the message.

    Raises:
        DataError: If there is no image.
        PartlyUsable: If an image has no mask (unless ``require_masks`` is False) or a mask has no image.
    """
    if not images:
        raise DataError(f"{root}: no image found. Check data.root, data.source.images and the file endings.")
    lonely_images = sorted(images.keys() - masks.keys()) if require_masks else []
    lonely_masks = sorted(masks.keys() - images.keys())
    paired = [(name, images[name], masks.get(name)) for name in sorted(images) if name not in set(lonely_images)]
    if lonely_images or lonely_masks:
        raise PartlyUsable("names", [_unpaired(root, len(images), len(masks), lonely_images, lonely_masks, hint)], paired)
    return paired


def refuse_other_pairs(
    images: Iterable[Path], masks: Iterable[Path], name_of: Callable[[Path], str], *, endings: Sequence[str]
) -> None:
    """Refuse files of other endings that pair as images and masks do: they would be missing without a word.

    Args:
        images: Files of other endings in the image folder.
        masks: Those in the mask folder.
        name_of: The name of a file of either folder, without its ending.
        endings: The endings that are read.

    Raises:
        PartlyUsable: Naming the pairs.
    """
    named = {name_of(path): path for path in images if path.suffix.lower() not in _TEXTS}
    pairs = [(named[name_of(mask)], mask) for mask in masks if name_of(mask) in named and mask.suffix.lower() not in _TEXTS]
    if pairs:
        image, mask = pairs[0]
        fault = (
            f"{image}: pairs with {mask.name}, but only {', '.join(endings)} are read ({len(pairs)} such pairs: "
            f"{first_names([path.name for path, _ in pairs])}). Convert them, or move them out of the folder."
        )
        raise PartlyUsable("endings", [fault], None)


def _unpaired(root: Path, n_images: int, n_masks: int, lonely_images: list[str], lonely_masks: list[str], hint: str) -> str:
    parts = [f"{root}: {n_images} images and {n_masks} masks do not pair by name"]
    if lonely_images:
        parts.append(f"{len(lonely_images)} images without a mask: {first_names(lonely_images)}")
    if lonely_masks:
        parts.append(f"{len(lonely_masks)} masks without an image: {first_names(lonely_masks)}")
    return "; ".join(parts) + f". Add, rename or remove those files: {hint}."
