"""Folders of 2-D images and masks: PNG, JPEG and TIFF, 8 and 16 bit, grey and colour."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.data.cases import compile_case_pattern
from medsam_tune.data.formats.raster import ENDINGS, image_size, opened, read_mask_values, read_pixels, stored_spacing
from medsam_tune.data.intensity import Intensity, apply_intensity, default_intensity
from medsam_tune.data.labels import Objects, check_labels, find_objects, name_labels
from medsam_tune.data.paired import PairedFiles, Pairs
from medsam_tune.data.pairing import by_name, pair_files, refuse_other_pairs
from medsam_tune.data.scan import Scan, existing_folder, scan_folder
from medsam_tune.errors import DataError, RecipeError


class ImageFolder(PairedFiles):
    """Read images and masks that have the same name, from two folders or from one with a suffix.

    Files in sub-folders are found too; their name is then the path below the folder, such as ``patient_3/slice_07``.
    Pixels are read as stored: an EXIF orientation is not applied and alpha is dropped.

    Args:
        images: Folder of the images, below the root.
        masks: Folder of the masks, below the root; the same as ``images`` is allowed with a suffix.
        mask_suffix: What a mask's name adds to its image's name, such as ``_mask``.
        case_pattern: Regular expression searched in the image's name; its first group is the case. Without it every image
            is a case of its own, which is right only when no two images show the same patient.
        labels: Name to mask values. Without it a mask holds 0 and one other value, whatever that is.
        mask_threshold: Mask values above it are foreground, for masks stored with losses; not together with ``labels``.
        intensity: How stored values become 0..255. Default: 8 bit as stored, all others by the percentiles 0.5 and 99.5 of the
            image.
    """

    def __init__(
        self,
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        case_pattern: str | None = None,
        labels: dict[str, list[int]] | None = None,
        mask_threshold: int | None = None,
        intensity: Intensity | None = None,
    ) -> None:
        check_labels(labels)
        if labels is not None and mask_threshold is not None:
            raise RecipeError("data.source.mask_threshold: thresholded masks have one label. Remove it or data.source.labels.")
        if mask_threshold is not None and mask_threshold < 0:
            raise RecipeError(f"data.source.mask_threshold: expected 0 or more, got {mask_threshold}: background is 0.")
        if images == masks and not mask_suffix:
            raise RecipeError(f"data.source.masks: {masks!r} is the image folder too. Set data.source.mask_suffix.")
        super().__init__(None if case_pattern is None else compile_case_pattern(case_pattern), labels)
        self.images, self.masks, self.mask_suffix = images, masks, mask_suffix
        self.mask_threshold, self.intensity = mask_threshold, intensity
        self._n_other_files = 0

    def find_pairs(self, root: Path, *, require_masks: bool) -> Pairs:
        """Scan both folders and pair their files."""
        images, masks = self._scan(root, require_masks=require_masks)
        hint = f"image 'a.png' needs mask 'a{self.mask_suffix}.png' (data.source.mask_suffix is {self.mask_suffix!r})"
        return pair_files(images, masks, root=root, require_masks=require_masks, hint=hint)

    def check_pair(self, image: Path, mask: Path | None) -> None:
        """Compare the sizes that the headers of an image and its mask state."""
        expected = image_size(image)
        if mask is not None and (found := image_size(mask)) != expected:
            raise DataError(_sizes_differ(mask, found, expected))

    def read_image(self, path: Path) -> Tensor:
        """Read (H, W) or (H, W, 3) in 0..255."""
        values = read_pixels(path)
        intensity = self.intensity or default_intensity(values)
        return torch.from_numpy(np.ascontiguousarray(apply_intensity(values, intensity, path)))

    def read_objects(self, path: Path, size: tuple[int, int]) -> Objects:
        """Read the mask's values by the rule of ``labels`` or ``mask_threshold``."""
        values = read_mask_values(path)
        if values.shape != size:
            raise DataError(_sizes_differ(path, values.shape, size))
        if self.labels is not None:
            _check_named(values, self.labels, self.ignore_label, path)
            return find_objects(values, self.labels, ignore_label=self.ignore_label)
        known = values if self.ignore_label is None else np.where(values == self.ignore_label, 0, values)
        shown = find_objects(_foreground(known, self.mask_threshold, path), None)
        return replace(shown, ignored=find_objects(values, {}, ignore_label=self.ignore_label).ignored)

    def spacing_mm(self, path: Path) -> tuple[float, float]:
        """Return the spacing that ``medsam-tune prepare`` stored in the file."""
        with opened(path) as image:
            return stored_spacing(image, path)

    def named_labels(self) -> dict[int, str]:
        """Return the names the recipe gives, or ``object`` for the only label."""
        return self.label_names()

    def label_names(self) -> dict[int, str]:
        """Return the names the recipe gives, or ``object`` for the only label."""
        return {1: "object"} if self.labels is None else name_labels(self.labels)

    def describe(self) -> dict[str, object]:
        """Return rules and counts."""
        return {
            **super().describe(),
            "other_files": self._n_other_files,
            "intensity": asdict(self.intensity)
            if self.intensity
            else "8 bit as stored, others percentile 0.5 to 99.5 per image",
            "labels": self.labels or "one",
            "mask_threshold": self.mask_threshold,
        }

    def _scan(self, root: Path, *, require_masks: bool) -> tuple[dict[str, Path], dict[str, Path]]:
        image_folder, mask_folder = existing_folder(root, self.images, "images"), root / self.masks
        found = scan_folder(image_folder, ENDINGS)
        self._n_other_files = len(found.others)
        if self.images == self.masks:
            found, masks = _split_by_suffix(found, self.mask_suffix)
        elif require_masks or mask_folder.is_dir():
            masks = scan_folder(existing_folder(root, self.masks, "masks"), ENDINGS)
        else:
            masks = Scan([], [])
        refuse_other_pairs(found.others, masks.others, lambda path: path.stem.removesuffix(self.mask_suffix), endings=ENDINGS)
        images = by_name(found.files, lambda path: _name(path, image_folder))
        return images, by_name(masks.files, lambda path: self._image_name(path, mask_folder))

    def _image_name(self, mask: Path, folder: Path) -> str:
        name = _name(mask, folder)
        if not name.endswith(self.mask_suffix):
            raise DataError(
                f"{mask}: mask name does not end in {self.mask_suffix!r}. Rename it or change data.source.mask_suffix."
            )
        return name.removesuffix(self.mask_suffix)


def _split_by_suffix(found: Scan, suffix: str) -> tuple[Scan, Scan]:
    """Tell the images of a folder from its masks, whose names end in ``suffix``."""

    def part(*, masks: bool) -> Scan:
        chosen = [[path for path in paths if path.stem.endswith(suffix) is masks] for paths in (found.files, found.others)]
        return Scan(*chosen)

    return part(masks=False), part(masks=True)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _sizes_differ(mask: Path, found: tuple[int, ...], expected: tuple[int, int]) -> str:
    return (
        f"{mask}: mask is {found[0]} x {found[1]} (H x W), its image is {expected[0]} x {expected[1]}. "
        "Export the mask at the image's size or remove the pair."
    )


def _check_named(values: NDArray[Any], labels: dict[str, list[int]], ignore_label: int | None, path: Path) -> None:
    named = {0, ignore_label, *(value for group in labels.values() for value in group)}
    unexpected = [int(value) for value in np.unique(values) if value not in named]
    if unexpected:
        raise DataError(
            f"{path}: mask values {_short(unexpected)} are in no group of data.source.labels {labels}. "
            "Name them there, or correct the mask."
        )


def _foreground(values: NDArray[Any], threshold: int | None, path: Path) -> NDArray[np.uint8]:
    """Return 1 where the mask is foreground, else 0."""
    if threshold is not None:
        return np.asarray(values > threshold, np.uint8)
    found = [int(value) for value in np.unique(values)]
    if len([value for value in found if value != 0]) > 1:
        raise DataError(
            f"{path}: mask holds the values {_short(found)}, expected 0 and one other. If the file was compressed with losses, "
            "set data.source.mask_threshold: 127; if the values are classes, name them in data.source.labels: {name: [values]}."
        )
    return np.asarray(values != 0, np.uint8)


def _short(values: list[int]) -> str:
    return f"{values[:8]} and {len(values) - 8} more" if len(values) > 8 else f"{values}"
