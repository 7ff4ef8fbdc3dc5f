"""Pair image files with mask files by name, and say clearly what does not pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from medsam_tune.errors import DataError

_SHOWN = 5


def first_names(names: Sequence[str]) -> str:
    """Join the first five names and count the others, for a message."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def existing_folder(root: Path, name: str, key: str) -> Path:
    """Return ``root / name``.

    Raises:
        DataError: If it is not a folder; the message lists what ``root`` holds.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Set data.root to the folder that holds your images and masks.")
    folder = root / name
    if not folder.is_dir():
        there = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        raise DataError(f"{folder}: no such folder; {root} holds the folders {there}. Set data.source.{key} to one of them.")
    return folder


def files_with_endings(folder: Path, endings: tuple[str, ...]) -> tuple[list[Path], int]:
    """Return the files below ``folder`` whose lower-case name has one of the endings, sorted, and the number of other files."""
    files = [path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder))]
    wanted = sorted(path for path in files if path.name.lower().endswith(endings))
    return wanted, len(files) - len(wanted)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def by_name(files: Iterable[Path], name_of: Callable[[Path], str]) -> dict[str, Path]:
    """Index files by name.

    Raises:
        DataError: If two files have one name, such as ``a.png`` and ``a.jpg``.
    """
    named: dict[str, Path] = {}
    for path in files:
        name = name_of(path)
        if name in named:
            raise DataError(f"{path}: has the same name {name!r} as {named[name]}. Keep one file for each image.")
        named[name] = path
    return named


def pair_files(
    images: Mapping[str, Path], masks: Mapping[str, Path], *, root: Path, require_masks: bool, hint: str
) -> list[tuple[str, Path, Path | None]]:
    """Pair images and masks of equal name, sorted by name: (name, image, mask or None).

    Args:
        images: Image files by name.
        masks: Mask files by the name of their image.
        root: For the message.
        require_masks: False accepts an image without a mask.
        hint: How names pair in this layout, for the message.

    Raises:
        DataError: If there is no image, an image has no mask (unless ``require_masks`` is False) or a mask has no image.
    """
    if not images:
        raise DataError(f"{root}: no image found. Check data.root, data.source.images and the file endings.")
    lonely_images = sorted(images.keys() - masks.keys()) if require_masks else []
    lonely_masks = sorted(masks.keys() - images.keys())
    if lonely_images or lonely_masks:
        raise DataError(_unpaired(root, len(images), len(masks), lonely_images, lonely_masks, hint))
    return [(name, images[name], masks.get(name)) for name in sorted(images)]


def _unpaired(root: Path, n_images: int, n_masks: int, lonely_images: list[str], lonely_masks: list[str], hint: str) -> str:
    parts = [f"{root}: {n_images} images and {n_masks} masks do not pair by name"]
    if lonely_images:
        parts.append(f"{len(lonely_images)} images without a mask: {first_names(lonely_images)}")
    if lonely_masks:
        parts.append(f"{len(lonely_masks)} masks without an image: {first_names(lonely_masks)}")
    return "; ".join(parts) + f". Add, rename or remove those files: {hint}."
