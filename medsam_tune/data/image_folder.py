"""Folders of 2-D images and masks: PNG, JPEG and TIFF, 8 and 16 bit, grey and colour, one mask file an image or several."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.data.cases import compile_case_pattern
from medsam_tune.data.colours import ColourTable
from medsam_tune.data.formats.present_values import present_values
from medsam_tune.data.formats.raster import (
    ENDINGS,
    image_size,
    is_lossy,
    opened,
    read_foreground,
    read_mask_values,
    read_pixels,
    stored_spacing,
)
from medsam_tune.data.intensity import UNNAMED_RULE, Intensity, apply_intensity, default_intensity
from medsam_tune.data.labels import (
    ONE_LABEL,
    Objects,
    check_labels,
    find_objects,
    groups_of_names,
    holds_ids,
    inverted,
    join_objects,
    name_labels,
    no_rows,
    number_groups,
    refuse_labels,
)
from medsam_tune.data.mask_files import MaskFile, NamePattern, masks_of_images, missing_labels, tell_apart
from medsam_tune.data.pair_table import named_rows, read_table
from medsam_tune.data.paired import PairedFiles, Pairs
from medsam_tune.data.pairing import by_name, pair_files, refuse_other_pairs
from medsam_tune.data.scan import Scan, existing_folder, leave_out, outside, scan_folder
from medsam_tune.errors import DataError, DataWarning, RecipeError, all_usable, usable_part


class ImageFolder(PairedFiles):
    """Read images and masks that have the same name, from two folders or from one with a suffix, or pair them by patterns.

    Files in sub-folders are found too; their name is then the path below the folder, such as ``patient_3/slice_07``.
    Pixels are read as stored: an EXIF orientation is not applied and alpha is dropped.

    Args:
        images: Folder of the images, below the root.
        masks: Folder of the masks, below the root; the same as ``images`` is allowed with a suffix or a pattern.
        mask_suffix: What a mask's name adds to its image's name, such as ``_mask``.
        case_pattern: Regular expression searched in the image's name; its first group is the case. Without it every image
            is a case of its own, which is right only when no two images show the same patient.
        labels: Name to mask values, or to names of ``data.colours`` or of the files' classes. Without it a mask holds 0 and one
            other value, whatever that is; colours and files are labels by their own names.
        mask_threshold: Mask values above it are foreground, for masks stored with losses; not together with ``labels``.
        intensity: How stored values become 0..255. Default: 8 bit as stored, all others by the percentiles 0.5 and 99.5 of the
            image.
        mask_pattern: Regular expression searched in a mask's name: plain brackets hold its image's name, ``(?P<label>...)`` the
            class that the file is for, ``(?P<instance>...)`` the one object that it shows. In place of ``mask_suffix``.
        image_pattern: Regular expression searched in an image's file name: its brackets, joined by ``/``, are the image's name.
        exclude: Files that are left out: paths below the root, with or without ending, where ``*`` is any text.
        pairs: A table of images and masks (``data.pair_table``), below the root or absolute, in place of folders and patterns.
    """

    def __init__(
        self,
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        case_pattern: str | None = None,
        labels: dict[str, list[int | str]] | None = None,
        mask_threshold: int | None = None,
        intensity: Intensity | None = None,
        mask_pattern: str | None = None,
        image_pattern: str | None = None,
        exclude: list[str] | None = None,
        pairs: str | None = None,
    ) -> None:
        check_labels(labels)
        if labels is not None and mask_threshold is not None and mask_pattern is None and pairs is None:
            raise RecipeError("data.source.mask_threshold: thresholded masks have one label. Remove it or data.source.labels.")
        if mask_threshold is not None and mask_threshold < 0:
            raise RecipeError(f"data.source.mask_threshold: expected 0 or more, got {mask_threshold}: background is 0.")
        if images == masks and not mask_suffix and mask_pattern is None and pairs is None:
            raise RecipeError(
                f"data.source.masks: {masks!r} is the image folder too. Set data.source.mask_suffix or mask_pattern."
            )
        if mask_suffix and mask_pattern is not None:
            raise RecipeError("data.source.mask_suffix: data.source.mask_pattern says it too. Keep one of them.")
        super().__init__(None if case_pattern is None else compile_case_pattern(case_pattern))
        self.images, self.masks, self.mask_suffix, self.labels = images, masks, mask_suffix, labels
        self.mask_threshold, self.intensity, self.exclude, self.pairs = mask_threshold, intensity, exclude or [], pairs
        self.mask_pattern = _mask_pattern(mask_pattern, mask_suffix)
        self.image_pattern = NamePattern("data.source.image_pattern", image_pattern or "^(.+)$", named=())
        self.colours: ColourTable | None = None
        self._mask_files: dict[Path, MaskFile] = {}
        self._file_labels: tuple[str, ...] = ()
        self._n_other_files = 0

    def use_colours(self, colours: Mapping[str, Sequence[int]]) -> None:
        """Read the colours of masks by a table.

        Raises:
            RecipeError: If the table is none, or something else says what a mask's pixels are.
        """
        others = {"mask_threshold": self.mask_threshold is not None, "mask_pattern": self.mask_pattern.has_labels}
        for key, is_set in others.items():
            if is_set:
                raise RecipeError(f"data.colours: data.source.{key} says what a mask shows too. Keep one of them.")
        if self.ignore_label is not None:
            raise RecipeError("data.ignore_label: masks in colours hold no numbers. Call the colour `ignored` in data.colours.")
        self.colours = ColourTable(colours)
        self.ignore_label = self.colours.ignored_value

    def invert_masks(self) -> None:
        """Take what is 0, or not above ``mask_threshold``, as the object.

        Raises:
            RecipeError: If labels or colours say what a mask's pixels are.
        """
        refuse_labels(self.labels is not None or self.colours is not None or self.mask_pattern.has_labels)
        self.inverted = True

    def find_pairs(self, root: Path, *, require_masks: bool) -> Pairs:
        """Scan both folders and pair their files."""
        faults: list[str] = []
        if self.pairs is not None and require_masks:
            images, masks = self._listed(root, Path(self.pairs), faults)
        else:
            images, masks = self._scan(root, faults, require_masks=require_masks)
        hint = self._hint()
        pairs = usable_part(lambda: pair_files(images, masks, root=root, require_masks=require_masks, hint=hint), faults)
        self._mask_files = {file.path: file for files in masks.values() for file in files}
        if classes := {file.label for file in self._mask_files.values() if file.label}:
            self._file_labels = tuple(sorted(classes))
            self._warn_of_missing(masks)
        self.label_groups()  # refuses names that are none
        found = [(name, image, tuple(file.path for file in files or ())) for name, image, files in pairs]
        return all_usable(found, faults, f"{root}: {len(faults)} faults in names and links")

    def check_pair(self, image: Path, masks: tuple[Path, ...]) -> None:
        """Compare the sizes that the headers of an image and its masks state."""
        expected = image_size(image)
        for mask in masks:
            if (found := image_size(mask)) != expected:
                raise DataError(_sizes_differ(mask, found, expected))

    def read_image(self, path: Path) -> Tensor:
        """Read (H, W) or (H, W, 3) in 0..255."""
        values = read_pixels(path)
        intensity = self.intensity or default_intensity(values)
        return torch.from_numpy(np.ascontiguousarray(apply_intensity(values, intensity, path)))

    def read_objects(self, masks: tuple[Path, ...], size: tuple[int, int]) -> Objects:
        """Read the masks' values by the rule of ``labels``, ``data.colours`` or ``mask_threshold``."""
        files = [self._mask_files.get(path, MaskFile(path)) for path in masks]
        shown = [self._read_file(file, size) for file in files]
        return shown[0] if len(shown) == 1 else join_objects(shown)

    def label_groups(self) -> dict[str, list[int]] | None:
        """Return the mask values of each named label; colours and classes of files are numbered 1, 2, ... in their order."""
        if self.colours is not None:
            return groups_of_names(self.labels, self.colours.labels, where="data.colours")
        if self._file_labels:
            return groups_of_names(self.labels, self._file_labels, where="the mask files")
        return number_groups(self.labels)

    def spacing_mm(self, path: Path) -> tuple[float, float] | None:
        """Return the spacing that ``medsam-tune prepare`` stored in the file; None where it stored none."""
        with opened(path) as image:
            return stored_spacing(image, path)

    def size(self, index: int) -> tuple[int, int]:
        """Return (H, W) from an image's header."""
        return image_size(self._pairs[index][1])

    def named_labels(self) -> dict[int, str]:
        """Return the names that recipe or files give, or ``object`` for the only label."""
        return self.label_names()

    def label_names(self) -> dict[int, str]:
        """Return the names that recipe or files give, or ``object`` for the only label."""
        groups = self.label_groups()
        return dict(ONE_LABEL) if groups is None else name_labels(groups)

    def describe(self) -> dict[str, object]:
        """Return rules and counts."""
        return {
            **super().describe(),
            "other_files": self._n_other_files,
            "intensity": asdict(self.intensity) if self.intensity else UNNAMED_RULE,
            "labels": self.label_groups() or "one",
            "mask_threshold": self.mask_threshold,
            "inverted_masks": self.inverted,
            "colours": None if self.colours is None else list(self.colours.labels),
            "pairs": self.pairs,
            "mask_pattern": self.mask_pattern.pattern.pattern,
            "image_pattern": self.image_pattern.pattern.pattern,
        }

    def _read_file(self, file: MaskFile, size: tuple[int, int]) -> Objects:
        read = read_foreground if file.label or file.instance else read_mask_values
        values = read(file.path) if self.colours is None else self.colours.read(file.path)
        if values.shape != size:
            raise DataError(_sizes_differ(file.path, values.shape, size))
        values = inverted(values, self.ignore_label, self.mask_threshold or 0) if self.inverted else values
        if file.instance:
            return self._one_instance(file, values)
        if file.label:
            return self._in_groups(file, self._of_one_label(values, file.path))
        groups = self.label_groups()
        if groups is None:
            return self._of_one_label(values, file.path)
        if self.colours is None:
            _check_named(values, groups, self.ignore_label, file.path)
        return self.objects_of(values, groups)

    def _of_one_label(self, values: NDArray[Any], path: Path) -> Objects:
        """Return the objects of a mask whose values name no classes: foreground, or numbers of instances."""
        known = values if self.ignore_label is None else np.where(values == self.ignore_label, 0, values)
        ignored = find_objects(values, {}, ignore_label=self.ignore_label).ignored
        by_number = self.target == "per_instance" and self.mask_threshold is None
        if by_number and is_lossy(path):
            raise DataError(
                f"{path}: JPEG changes values, so its numbers are no instances. Save the mask as PNG, or set "
                "data.source.mask_threshold: 127, which makes each connected piece an instance."
            )
        ids = by_number and holds_ids(known)
        shown = self.objects_of(known if ids else _foreground(known, self.mask_threshold, path), None, ids=ids)
        return replace(shown, labels=torch.ones_like(shown.labels), ignored=ignored)

    def _one_instance(self, file: MaskFile, values: NDArray[Any]) -> Objects:
        """Return the one object of a file, whether or not it hangs together."""
        known = values if self.ignore_label is None else np.where(values == self.ignore_label, 0, values)
        ignored = find_objects(values, {}, ignore_label=self.ignore_label).ignored
        shown = find_objects(_foreground(known, self.mask_threshold, file.path), {"object": [1]})
        ids = torch.ones_like(shown.labels) if self.target == "per_instance" else None
        return self._in_groups(file, replace(shown, ignored=ignored, object_ids=ids))

    def _in_groups(self, file: MaskFile, shown: Objects) -> Objects:
        """Return the objects of a file once for each group that its class is in."""
        groups = self.label_groups()
        if not file.label or groups is None:
            return shown
        number = self._file_labels.index(file.label) + 1
        labels = [label for label, numbers in enumerate(groups.values(), start=1) if number in numbers]
        return join_objects(
            [replace(shown, labels=torch.full_like(shown.labels, label)) for label in labels] or [no_rows(shown)]
        )

    def _scan(
        self, root: Path, faults: list[str], *, require_masks: bool
    ) -> tuple[dict[str, Path], dict[str, tuple[MaskFile, ...]]]:
        image_folder, mask_folder = existing_folder(root, self.images, "images"), root / self.masks
        found = leave_out(usable_part(lambda: scan_folder(image_folder, ENDINGS), faults), root, self.exclude)
        self._n_other_files = len(found.others)
        if self.images == self.masks:
            found, masks = self._told_apart(found, image_folder)
        elif require_masks or mask_folder.is_dir():
            existing_folder(root, self.masks, "masks")
            masks = leave_out(usable_part(lambda: scan_folder(mask_folder, ENDINGS), faults), root, self.exclude)
            found = Scan(*(outside(paths, image_folder, mask_folder) for paths in (found.files, found.others)))
            masks = Scan(*(outside(paths, mask_folder, image_folder) for paths in (masks.files, masks.others)))
        else:
            masks = Scan([], [])
        others = (found.others, masks.others)
        usable_part(lambda: refuse_other_pairs(*others, self._bare_name, endings=ENDINGS), faults)
        files = found.files
        images = usable_part(lambda: by_name(files, lambda path: self._image_name(path, image_folder)), faults)
        return images, masks_of_images([(_name(path, mask_folder), path) for path in masks.files], self.mask_pattern)

    def _listed(self, root: Path, table: Path, faults: list[str]) -> tuple[dict[str, Path], dict[str, tuple[MaskFile, ...]]]:
        rows = read_table(table, root)
        return usable_part(lambda: named_rows(rows, lambda path: _name(path, root), f"data.source.pairs: {table}"), faults)

    def _told_apart(self, found: Scan, folder: Path) -> tuple[Scan, Scan]:
        """Tell the images of a folder from its masks."""
        images, masks = tell_apart([(_name(path, folder), path) for path in found.files], self.image_pattern, self.mask_pattern)
        others = [[path for path in found.others if bool(self.mask_pattern.read(path.stem)) is mask] for mask in (False, True)]
        return Scan([path for _, path in images], others[0]), Scan([path for _, path in masks], others[1])

    def _image_name(self, image: Path, folder: Path) -> str:
        parts = self.image_pattern.read(_name(image, folder))
        if parts is None:
            raise DataError(
                f"{image}: image name does not {self.image_pattern.rule}. Rename it or change {self.image_pattern.key}."
            )
        return parts[0]

    def _bare_name(self, path: Path) -> str:
        parts = self.mask_pattern.read(path.stem)
        return path.stem if parts is None else parts[0]

    def _hint(self) -> str:
        if self.mask_pattern.key.endswith("mask_suffix"):
            return f"image 'a.png' needs mask 'a{self.mask_suffix}.png' (data.source.mask_suffix is {self.mask_suffix!r})"
        return (
            f"a mask's name is what stands in the brackets of data.source.mask_pattern {self.mask_pattern!r}, "
            f"an image's in those of image_pattern {self.image_pattern!r}"
        )

    def _warn_of_missing(self, masks: Mapping[str, tuple[MaskFile, ...]]) -> None:
        missing = missing_labels(masks.values(), self._file_labels)
        if missing:
            told = ", ".join(f"{count} for {label}" for label, count in missing.items())
            warnings.warn(
                f"{len(masks)} images have masks, but no file: {told}. They count as showing none; add files that are lost.",
                DataWarning,
                stacklevel=2,
            )


def _mask_pattern(pattern: str | None, suffix: str) -> NamePattern:
    if pattern is not None:
        return NamePattern("data.source.mask_pattern", pattern)
    return NamePattern("data.source.mask_suffix", f"^(.+){re.escape(suffix)}$", rule=f"end in {suffix!r}")


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _sizes_differ(mask: Path, found: tuple[int, ...], expected: tuple[int, int]) -> str:
    return (
        f"{mask}: mask is {found[0]} x {found[1]} (H x W), its image is {expected[0]} x {expected[1]}. "
        "Export the mask at the image's size or remove the pair."
    )


def _check_named(values: NDArray[Any], labels: dict[str, list[int]], ignore_label: int | None, path: Path) -> None:
    named = {0, ignore_label, *(value for group in labels.values() for value in group)}
    unexpected = [int(value) for value in present_values(values) if value not in named]
    if unexpected:
        raise DataError(
            f"{path}: mask values {_short(unexpected)} are in no group of data.source.labels {labels}. "
            "Name them there, or correct the mask."
        )


def _foreground(values: NDArray[Any], threshold: int | None, path: Path) -> NDArray[np.uint8]:
    """Return 1 where the mask is foreground, else 0."""
    if threshold is not None:
        return np.asarray(values > threshold, np.uint8)
    found = [int(value) for value in present_values(values)]
    if len([value for value in found if value != 0]) > 1:
        raise DataError(
            f"{path}: mask holds the values {_short(found)}, expected 0 and one other. If the file was compressed with losses, "
            "set data.source.mask_threshold: 127; if the values are classes, name them in data.source.labels: {name: [values]}."
        )
    return np.asarray(values != 0, np.uint8)


def _short(values: list[int]) -> str:
    return f"{values[:8]} and {len(values) - 8} more" if len(values) > 8 else f"{values}"
