"""Which image a mask file belongs to, and what it shows, told from its name by a pattern with brackets.

What stands in plain brackets, joined by ``/``, is the image's name. A bracket called ``label`` holds the class that the file is
for, one called ``instance`` the single object that it shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medsam_tune.data.pairing import first_names
from medsam_tune.errors import DataError, RecipeError, data_error

LABEL, INSTANCE = "label", "instance"


@dataclass(frozen=True)
class MaskFile:
    """Hold a mask file, the class that it is for, and whether it shows one instance.

    Attributes:
        path: The file.
        label: Name of the class; empty where the file's values say what is what.
        instance: Name of the one object that it shows; empty where it may show several.
    """

    path: Path
    label: str = ""
    instance: str = ""


class NamePattern:
    """Read names of files below a folder, without ending, by a regular expression that is searched in them.

    Args:
        key: The recipe's key, for messages.
        pattern: With at least one plain bracket; brackets may be called ``label`` and ``instance``.
        named: Which names brackets may have.
        rule: What a name must do, for messages; ``match`` the pattern by default.

    Raises:
        RecipeError: If it is no regular expression, or its brackets are others.

    Example:
        >>> NamePattern("data.source.mask_pattern", r"^(.+)_(?P<label>lumen|wall)$").read("p1/x_wall")
        ('p1/x', 'wall', '')
    """

    def __init__(self, key: str, pattern: str, *, named: tuple[str, ...] = (LABEL, INSTANCE), rule: str = "") -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise RecipeError(f"{key}: {pattern!r} is no regular expression ({error}). Correct it.") from error
        others = sorted(set(self.pattern.groupindex) - set(named))
        if others:
            allowed = f"Only {' and '.join(named)} may be." if named else "Leave the names out."
            raise RecipeError(f"{key}: brackets of {pattern!r} are called {others}. {allowed}")
        if self.pattern.groups == len(self.pattern.groupindex):
            raise RecipeError(f"{key}: {pattern!r} has no plain bracket. Put the image's name in brackets: '^mask_(.+)$'.")
        self.key, self.rule = key, rule or f"match {pattern!r}"
        self._plain = sorted(set(range(1, self.pattern.groups + 1)) - set(self.pattern.groupindex.values()))

    def __repr__(self) -> str:
        return repr(self.pattern.pattern)

    @property
    def has_labels(self) -> bool:
        """Tell whether a file's name says its class."""
        return LABEL in self.pattern.groupindex

    def read(self, name: str) -> tuple[str, str, str] | None:
        """Return the image's name, the class and the instance that a name holds; None where the pattern does not match."""
        found = self.pattern.search(name)
        if found is None:
            return None
        image = "/".join(part for group in self._plain if (part := found.group(group)))
        label, instance = (found.groupdict().get(group) or "" for group in (LABEL, INSTANCE))
        return (image, label, instance) if image else None


def masks_of_images(files: Iterable[tuple[str, Path]], pattern: NamePattern) -> dict[str, tuple[MaskFile, ...]]:
    """Gather the mask files of each image.

    Args:
        files: Name below the folder and path, in order.
        pattern: Reads a name.

    Raises:
        DataError: If a name does not match, or two files are for the same image, class and instance; all are listed.
    """
    found: dict[str, dict[tuple[str, str], MaskFile]] = {}
    faults: list[str] = []
    for name, path in files:
        parts = pattern.read(name)
        if parts is None:
            faults.append(f"{path}: mask name does not {pattern.rule}. Rename it or change {pattern.key}.")
            continue
        image, *what = parts
        files_of_image = found.setdefault(image, {})
        first = files_of_image.setdefault((what[0], what[1]), MaskFile(path, *what))
        if first.path != path:
            faults.append(f"{path}: is for the same image {image!r} and label as {first.path}. Keep one of them.")
    if faults:
        raise data_error(f"{len(faults)} mask files cannot be used", faults)
    return {image: tuple(files_of_image.values()) for image, files_of_image in found.items()}


def tell_apart(
    files: Iterable[tuple[str, Path]], images: NamePattern | None, masks: NamePattern
) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """Return which files of one folder are images and which are masks; without a pattern an image is what is no mask.

    Raises:
        DataError: If a file is neither.
    """
    named = list(files)
    mask_files = [(name, path) for name, path in named if masks.read(name)]
    rest = [(name, path) for name, path in named if not masks.read(name)]
    strangers = [path.as_posix() for name, path in rest if images is not None and images.read(name) is None]
    if strangers:
        raise DataError(
            f"{strangers[0]}: {len(strangers)} files match neither data.source.image_pattern nor data.source.mask_pattern: "
            f"{first_names(strangers)}. Move them out of the folder, or change the patterns."
        )
    return rest, mask_files


def missing_labels(masks: Iterable[tuple[MaskFile, ...]], labels: Iterable[str]) -> dict[str, int]:
    """Return, for each label that some image has no file for, how many have none."""
    shown = [{file.label for file in files} for files in masks if files]
    counts = {label: sum(label not in found for found in shown) for label in labels}
    return {label: count for label, count in counts.items() if count}
