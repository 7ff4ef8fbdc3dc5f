"""Folders of 2-D images and masks: PNG, JPEG and TIFF, 8 and 16 bit, grey and colour."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.cases import case_of, compile_case_pattern
from medsam_tune.data.intensity import Intensity, apply_intensity
from medsam_tune.data.labels import check_labels, label_rows, name_labels, no_objects
from medsam_tune.data.pairing import by_name, existing_folder, files_with_endings, first_names, pair_files
from medsam_tune.data.raster import ENDINGS, image_size, read_mask_values, read_pixels
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.types import Sample

_AS_STORED = Intensity("as_stored")
_PERCENTILE = Intensity("percentile")


class ImageFolder(SegmentationSource):
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
        if images == masks and not mask_suffix:
            raise RecipeError(f"data.source.masks: {masks!r} is the image folder too. Set data.source.mask_suffix.")
        self.images, self.masks, self.mask_suffix = images, masks, mask_suffix
        self.case_pattern = None if case_pattern is None else compile_case_pattern(case_pattern)
        self.labels, self.mask_threshold, self.intensity = labels, mask_threshold, intensity
        self._root = Path()
        self._pairs: list[tuple[str, Path, Path | None]] = []
        self._cases: tuple[str, ...] = ()
        self._n_other_files = 0

    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Scan a folder, pair the files by name and compare the sizes of each image and its mask.

        Raises:
            DataError: If a folder is missing, names do not pair, a name gives no case, or sizes differ.
        """
        images, masks, others = self._scan(root, require_masks=require_masks)
        pairs = pair_files(images, masks, root=root, require_masks=require_masks, hint=self._pairing())
        cases = tuple(self._case_of(name, path) for name, path, _ in pairs)
        _check_sizes(pairs)
        self._root, self._pairs, self._cases, self._n_other_files = root, pairs, cases, others

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        name, image_path, mask_path = self._pairs[index]
        image = self._read_image(image_path)
        size = (int(image.shape[-2]), int(image.shape[-1]))
        masks, labels = no_objects(size) if mask_path is None else self._read_masks(mask_path, size)
        return Sample(image, masks, labels, image_id=name, case_id=self._cases[index], index=index)

    def case_ids(self) -> tuple[str, ...]:
        """Return the case of each image."""
        return self._cases

    def image_ids(self) -> tuple[str, ...]:
        """Return the name of each image: its path below the image folder, without the file ending."""
        return tuple(name for name, _, _ in self._pairs)

    def label_names(self) -> dict[int, str]:
        """Return the names the recipe gives, or ``object`` for the only label."""
        return {1: "object"} if self.labels is None else name_labels(self.labels)

    def describe(self) -> dict[str, object]:
        """Return folder, rules and counts."""
        return {
            "source": "ImageFolder",
            "root": self._root.name,
            "images": len(self._pairs),
            "cases": len(set(self._cases)),
            "other_files": self._n_other_files,
            "intensity": asdict(self.intensity)
            if self.intensity
            else "8 bit as stored, others percentile 0.5 to 99.5 per image",
            "labels": self.labels or "one",
            "mask_threshold": self.mask_threshold,
            "case_pattern": self.case_pattern.pattern if self.case_pattern else None,
        }

    def _scan(self, root: Path, *, require_masks: bool) -> tuple[dict[str, Path], dict[str, Path], int]:
        image_folder = existing_folder(root, self.images, "images")
        image_files, others = files_with_endings(image_folder, ENDINGS)
        if self.images == self.masks:
            mask_files = [path for path in image_files if path.stem.endswith(self.mask_suffix)]
            image_files = [path for path in image_files if not path.stem.endswith(self.mask_suffix)]
        elif require_masks or (root / self.masks).is_dir():
            mask_files, _ = files_with_endings(existing_folder(root, self.masks, "masks"), ENDINGS)
        else:
            mask_files = []
        images = by_name(image_files, lambda path: _name(path, image_folder))
        masks = by_name(mask_files, lambda path: self._image_name(path, root / self.masks))
        return images, masks, others

    def _pairing(self) -> str:
        return f"image 'a.png' needs mask 'a{self.mask_suffix}.png' (data.source.mask_suffix is {self.mask_suffix!r})"

    def _image_name(self, mask: Path, folder: Path) -> str:
        name = _name(mask, folder)
        if not name.endswith(self.mask_suffix):
            raise DataError(
                f"{mask}: mask name does not end in {self.mask_suffix!r}. Rename it or change data.source.mask_suffix."
            )
        return name.removesuffix(self.mask_suffix)

    def _case_of(self, name: str, path: Path) -> str:
        if self.case_pattern is None:
            return name
        return case_of(name, self.case_pattern, path)

    def _read_image(self, path: Path) -> Tensor:
        values = read_pixels(path)
        intensity = self.intensity or (_AS_STORED if values.dtype == np.uint8 else _PERCENTILE)
        grey_levels = torch.from_numpy(apply_intensity(values, intensity, path))
        if grey_levels.ndim == 2:
            return grey_levels.expand(3, -1, -1).contiguous()
        return grey_levels.permute(2, 0, 1).contiguous()

    def _read_masks(self, path: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        values = read_mask_values(path)
        if values.shape != size:
            raise DataError(_sizes_differ(path, values.shape, size))
        if self.labels is not None:
            _check_named(values, self.labels, path)
            return label_rows(values, self.labels)
        return label_rows(_foreground(values, self.mask_threshold, path), None)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _check_sizes(pairs: list[tuple[str, Path, Path | None]]) -> None:
    differing = []
    for _, image, mask in pairs:
        if mask is not None and (found := image_size(mask)) != (expected := image_size(image)):
            differing.append((mask, found, expected))
    if differing:
        others = (
            f" ({len(differing)} masks: {first_names([mask.name for mask, _, _ in differing])})" if len(differing) > 1 else ""
        )
        raise DataError(_sizes_differ(*differing[0]) + others)


def _sizes_differ(mask: Path, found: tuple[int, ...], expected: tuple[int, int]) -> str:
    return (
        f"{mask}: mask is {found[0]} x {found[1]} (H x W), its image is {expected[0]} x {expected[1]}. "
        "Export the mask at the image's size or remove the pair."
    )


def _check_named(values: NDArray[Any], labels: dict[str, list[int]], path: Path) -> None:
    named = {0, *(value for group in labels.values() for value in group)}
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
