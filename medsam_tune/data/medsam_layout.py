"""MedSAM's own training folders: ``imgs/*.npy`` and ``gts/*.npy`` of the same names.

Layout: bowang-lab/MedSAM @ d71e8a1, ``pre_CT_MR.py`` and ``pre_grey_rgb.py``: images (1024, 1024, 3) float in 0..1, masks
(1024, 1024) of label ids, names ``<prefix><case>-<slice>.npy``.

Differs from the authors' code:
- Every label of a slice is an object; there one random label is drawn, and a slice without any stops the training.
- 8-bit images of any size are read too, so a folder need not hold 24 MB a slice.
- Slices of one case stay in one part of the split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.cases import case_of, compile_case_pattern
from medsam_tune.data.labels import check_labels, label_rows, name_labels, no_objects
from medsam_tune.data.pairing import by_name, existing_folder, files_with_endings, pair_files
from medsam_tune.errors import DataError
from medsam_tune.types import Sample

ENDINGS = (".npy",)
# "CT_Abd_FLARE22_Tr_0001-023" is slice 23 of case "CT_Abd_FLARE22_Tr_0001"; a name without a number is a case of its own.
CASE_PATTERN = r"^(.+?)(?:-\d+)?$"
# A cubic resize of values in 0..1 leaves that range by a little.
_OVERSHOOT = 1e-3


class MedsamNpy(SegmentationSource):
    """Read the slices that MedSAM's pre-processing scripts wrote.

    An image is (H, W) or (H, W, 3), either floating point in 0..1 or uint8; anything else is refused. The mask has the size of
    its image and holds label ids.

    Args:
        images: Folder of the images, below the root.
        masks: Folder of the masks.
        labels: Name to label ids; other ids are background. Without it every id above 0 is a label of its own.
        case_pattern: Regular expression searched in a file's name; its first group is the case. By default the name without
            the slice number.
    """

    def __init__(
        self,
        images: str = "imgs",
        masks: str = "gts",
        *,
        labels: dict[str, list[int]] | None = None,
        case_pattern: str = CASE_PATTERN,
    ) -> None:
        check_labels(labels)
        self.images, self.masks, self.labels = images, masks, labels
        self.case_pattern = compile_case_pattern(case_pattern)
        self._root = Path()
        self._pairs: list[tuple[str, Path, Path | None]] = []
        self._cases: tuple[str, ...] = ()

    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Scan a folder, pair files by name and compare the sizes of each image and its mask; no pixel is read.

        Raises:
            DataError: If a folder is missing, names do not pair, a name gives no case, or sizes or types do not fit.
        """
        image_files, _ = files_with_endings(existing_folder(root, self.images, "images"), ENDINGS)
        mask_files: list[Path] = []
        if require_masks or (root / self.masks).is_dir():
            mask_files, _ = files_with_endings(existing_folder(root, self.masks, "masks"), ENDINGS)
        pairs = pair_files(
            by_name(image_files, lambda path: path.stem),
            by_name(mask_files, lambda path: path.stem),
            root=root,
            require_masks=require_masks,
            hint=f"image '{self.images}/a.npy' needs mask '{self.masks}/a.npy'",
        )
        for _, image, mask in pairs:
            _check_pair(image, mask)
        cases = tuple(case_of(name, self.case_pattern, path) for name, path, _ in pairs)
        self._root, self._pairs, self._cases = root, pairs, cases

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        name, image_path, mask_path = self._pairs[index]
        image = image_levels(read_array(image_path), image_path)
        size = (image.shape[0], image.shape[1])
        masks, labels = no_objects(size)
        if mask_path is not None:
            masks, labels = label_rows(label_values(read_array(mask_path), mask_path), self.labels)
        return Sample(channels_first(image), masks, labels, image_id=name, case_id=self._cases[index], index=index)

    def case_ids(self) -> tuple[str, ...]:
        """Return the case of each slice."""
        return self._cases

    def image_ids(self) -> tuple[str, ...]:
        """Return the name of each file without its ending."""
        return tuple(name for name, _, _ in self._pairs)

    def label_names(self) -> dict[int, str]:
        """Return the recipe's names; without them read every mask once and call each id found ``label <id>``."""
        if self.labels is not None:
            return name_labels(self.labels)
        values = [np.unique(label_values(read_array(mask), mask)) for _, _, mask in self._pairs if mask is not None]
        return {value: f"label {value}" for value in sorted({int(v) for part in values for v in part if v != 0})}

    def describe(self) -> dict[str, object]:
        """Return folder, rules and counts."""
        return {
            "source": "MedsamNpy",
            "root": self._root.name,
            "images": len(self._pairs),
            "cases": len(set(self._cases)),
            "intensity": "0..1 times 255, or 8 bit as stored",
            "labels": self.labels or "each id above 0",
            "case_pattern": self.case_pattern.pattern,
        }


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read a ``.npy`` file without running any code it may hold.

    Args:
        path: The file.
        mapped: Leave the values on the disk until they are used.

    Raises:
        DataError: If the file is truncated, no array, or holds pickled objects.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a plain array ({error}). Replace or remove the file.") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: is an archive of arrays, not one array. Rename it to .npz and use MedsamNpz.")
    return array


def image_levels(values: NDArray[Any], path: object) -> NDArray[np.float32]:
    """Bring an image in 0..1 (floating point) or 0..255 (uint8) to float32 in 0..255.

    Raises:
        DataError: If the type is another, or a value is NaN or outside 0..1.
    """
    if values.dtype == np.uint8:
        return values.astype(np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{path}: stores {values.dtype}, expected uint8 or floating point in 0..1. Scale it, do not cast it.")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        raise DataError(f"{path}: holds {low:.6g} to {high:.6g}, expected 0..1 for {values.dtype}. Scale it by a fixed window.")
    levels: NDArray[np.float32] = (np.clip(values, 0, 1) * 255).astype(np.float32)
    return levels


def label_values(values: NDArray[Any], path: object) -> NDArray[np.int32]:
    """Return label ids as int32.

    Raises:
        DataError: If an id is not a whole number from 0 to 2**31 - 1.
    """
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: stores {values.dtype}, expected label ids. Save the mask as integers.")
    wrong = ~np.isfinite(values) | (values < 0) | (values > np.iinfo(np.int32).max) | (np.floor(values) != values)
    if wrong.any():
        examples = [float(value) for value in np.unique(values[wrong])[:4]]
        raise DataError(
            f"{path}: {int(wrong.sum())} label ids are no whole numbers of 0 or more, such as {examples}. "
            "Resize masks by nearest neighbour and save them as integers."
        )
    return values.astype(np.int32)


def channels_first(image: NDArray[np.float32]) -> torch.Tensor:
    """Turn grey levels (H, W) or (H, W, 3) into a tensor (3, H, W)."""
    levels = torch.from_numpy(np.ascontiguousarray(image))
    return levels.expand(3, -1, -1).contiguous() if levels.ndim == 2 else levels.permute(2, 0, 1).contiguous()


def is_image_shape(shape: tuple[int, ...]) -> bool:
    """Tell whether a shape is (H, W) or (H, W, 3) with at least one pixel."""
    return 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3))


def _check_pair(image: Path, mask: Path | None) -> None:
    shape = read_array(image, mapped=True).shape
    if not is_image_shape(shape):
        raise DataError(f"{image}: has shape {shape}, expected (H, W) or (H, W, 3). Save each slice as a file of its own.")
    if mask is not None and (found := read_array(mask, mapped=True).shape) != shape[:2]:
        raise DataError(f"{mask}: mask has shape {found}, its image {shape[:2]} (H, W). Make them one size or remove the pair.")
