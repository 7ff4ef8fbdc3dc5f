"""MedSAM's ``.npz`` files, as its pre-processing and the challenge of CVPR 2024 use them.

Keys: ``imgs`` (H, W, 3), (H, W) or (D, H, W); ``gts`` of label ids (H, W) or (D, H, W); ``spacing`` of volumes, as SimpleITK
gives it: (x, y, z) in mm; ``boxes`` (K, 4) XYXY or, of a volume, (K, 6) as x1, y1, z1, x2, y2, z2. Only ``imgs`` is in every
file.

Layout: bowang-lab/MedSAM @ d71e8a1, ``pre_CT_MR.py``, and its LiteMedSAM branch.

Differs from the authors' code:
- Files never run code: pickled arrays are refused.
- 16-bit and floating-point images become grey levels by a rule for the whole volume; there they wrap when cast to 8 bits.
- All slices are kept, or those that a rule chooses; there only slices with an object.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.data.base import Purpose, SegmentationSource
from medsam_tune.data.intensity import Intensity, apply_intensity
from medsam_tune.data.labels import check_labels, label_rows, name_labels, no_objects
from medsam_tune.data.medsam_layout import channels_first, is_image_shape, label_values
from medsam_tune.data.pairing import by_name, files_with_endings
from medsam_tune.data.recent import RecentArrays
from medsam_tune.data.slices import ALL_SLICES, SliceRule
from medsam_tune.errors import DataError
from medsam_tune.types import Sample

ENDINGS = (".npz",)
_AS_STORED = Intensity("as_stored")
_PERCENTILE = Intensity("percentile")
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class NpzCase:
    """Hold what one file says without its pixels.

    Attributes:
        path: The file.
        size: (H, W) of its images.
        n_slices: D of a volume; None for a single image.
        has_masks: Whether it has ``gts``.
        spacing_mm: Row and column spacing in mm; (1, 1) for a single image or where the file states none.
    """

    path: Path
    size: tuple[int, int]
    n_slices: int | None
    has_masks: bool
    spacing_mm: tuple[float, float]


class MedsamNpz(SegmentationSource):
    """Read MedSAM's ``.npz`` files below a folder; one file is one case, a volume gives one item a slice.

    Args:
        labels: Name to label ids; other ids are background. Without it every id above 0 is a label of its own.
        intensity: How stored values become 0..255. Default: 8 bit as stored, all others by the percentiles 0.5 and 99.5 of the
            whole file.
        slices: Which slices of a volume are evaluated (and trained on, unless ``train_slices`` says otherwise).
        train_slices: Which slices are trained on.
    """

    def __init__(
        self,
        *,
        labels: dict[str, list[int]] | None = None,
        intensity: Intensity | None = None,
        slices: SliceRule = ALL_SLICES,
        train_slices: SliceRule | None = None,
    ) -> None:
        check_labels(labels)
        self.labels, self.intensity = labels, intensity
        self.slices, self.train_slices = slices, train_slices or slices
        self._root = Path()
        self._cases: dict[str, NpzCase] = {}
        self._items: list[tuple[str, int]] = []
        self._files: RecentArrays[str] = RecentArrays(max_items=4, max_bytes=2 * 1024**3)

    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Find the files and compare the shapes that their headers state; no pixel is read.

        Raises:
            DataError: If there is no file, one cannot be read, misses a key, or its shapes do not fit.
        """
        if not root.is_dir():
            raise DataError(f"{root}: no such folder. Set data.root to the folder that holds your .npz files.")
        files, _ = files_with_endings(root, ENDINGS)
        if not files:
            raise DataError(f"{root}: holds no .npz file. Set data.root to the folder that holds them.")
        named = by_name(files, lambda path: path.relative_to(root).with_suffix("").as_posix())
        cases = {name: read_case(path, require_masks=require_masks) for name, path in sorted(named.items())}
        self._root, self._cases = root, cases
        self._items = [(name, position) for name, case in cases.items() for position in self._positions(case)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        name, position = self._items[index]
        case = self._cases[name]
        levels, *values = self._files.get(name, lambda: self._read(case))
        masks, labels = no_objects(case.size)
        if values:
            masks, labels = label_rows(_slice_of(values[0], case, position), self.labels)
        return Sample(
            channels_first(_slice_of(levels, case, position)),
            masks,
            labels,
            image_id=_image_id(name, case, position),
            case_id=name,
            spacing_mm=case.spacing_mm,
            index=index,
        )

    def case_ids(self) -> tuple[str, ...]:
        """Return the file of each item."""
        return tuple(name for name, _ in self._items)

    def image_ids(self) -> tuple[str, ...]:
        """Return the name of each item: the file's, with the slice number where it is a volume."""
        return tuple(_image_id(name, self._cases[name], position) for name, position in self._items)

    def label_names(self) -> dict[int, str]:
        """Return the recipe's names; without them read every file once and call each id found ``label <id>``."""
        if self.labels is not None:
            return name_labels(self.labels)
        found = [np.unique(_array(case.path, "gts")) for case in self._cases.values() if case.has_masks]
        return {value: f"label {value}" for value in sorted({int(v) for part in found for v in part if v != 0})}

    def describe(self) -> dict[str, object]:
        """Return folder, rules and counts."""
        return {
            "source": "MedsamNpz",
            "root": self._root.name,
            "images": len(self._items),
            "cases": len(self._cases),
            "intensity": asdict(self.intensity)
            if self.intensity
            else "8 bit as stored, others percentile 0.5 to 99.5 per file",
            "labels": self.labels or "each id above 0",
            "slices": asdict(self.slices),
            "train_slices": asdict(self.train_slices),
        }

    def select(self, indices: Sequence[int], purpose: Purpose) -> list[int]:
        """Keep the slices that ``train_slices`` (to train) or ``slices`` (to evaluate) choose."""
        rule = self.train_slices if purpose == "train" else self.slices
        chosen = {name: set(rule.positions(case.n_slices or 1)) for name, case in self._cases.items()}
        return [index for index in indices if self._items[index][1] in chosen[self._items[index][0]]]

    def boxes(self, index: int) -> Tensor:
        """Return the file's own boxes on an item: (K, 4) float32 XYXY pixels of the original image.

        Of a volume those boxes are returned whose first to last slice, both included, hold the item's.

        Raises:
            DataError: If the file has no ``boxes``, they have another shape, lie outside the image, or end before they begin.
        """
        name, position = self._items[index]
        case = self._cases[name]
        boxes = torch.from_numpy(_array(case.path, "boxes").astype(np.float32))
        _check_boxes(boxes, case)
        if case.n_slices is None:
            return boxes
        shown = (boxes[:, 2] <= position) & (boxes[:, 5] >= position)
        return boxes[shown][:, [0, 1, 3, 4]]

    def _positions(self, case: NpzCase) -> list[int]:
        length = case.n_slices or 1
        return sorted({*self.slices.positions(length), *self.train_slices.positions(length)})

    def _read(self, case: NpzCase) -> tuple[NDArray[Any], ...]:
        values = _array(case.path, "imgs")
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            n_bad = int((~np.isfinite(values)).sum())
            raise DataError(f"{case.path}: {n_bad} of {values.size} values are NaN or infinite. Repair or remove the file.")
        intensity = self.intensity or (_AS_STORED if values.dtype == np.uint8 else _PERCENTILE)
        levels = apply_intensity(values, intensity, case.path)
        return (levels, label_values(_array(case.path, "gts"), case.path)) if case.has_masks else (levels,)


def read_case(path: Path, *, require_masks: bool = True) -> NpzCase:
    """Read the shapes and the spacing of a file.

    Raises:
        DataError: If the file cannot be read, misses ``imgs`` (or ``gts``, if ``require_masks``), or shapes do not fit.
    """
    shapes = _shapes(path)
    missing = [key for key in (("imgs", "gts") if require_masks else ("imgs",)) if key not in shapes]
    if missing:
        raise DataError(f"{path}: has no {' and no '.join(missing)}; its keys are {sorted(shapes)}. Add it or remove the file.")
    shape = shapes["imgs"]
    if 0 in shape or not (is_image_shape(shape) or len(shape) == 3):
        raise DataError(f"{path}: imgs has shape {shape}, expected (H, W), (H, W, 3) or (D, H, W). Split the file.")
    volume = not is_image_shape(shape)
    expected = shape if volume else shape[:2]
    if "gts" in shapes and shapes["gts"] != expected:
        raise DataError(f"{path}: gts has shape {shapes['gts']}, expected {expected}, as imgs {shape}. Make them one size.")
    size = (expected[-2], expected[-1])
    spacing = _spacing(path) if volume and "spacing" in shapes else (1.0, 1.0)
    return NpzCase(path, size, shape[0] if volume else None, "gts" in shapes, spacing)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array from its header, without unpacking the values."""
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shapes[member.removesuffix(".npy")] = tuple(read(file)[0])
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as .npz ({error}). Replace or remove the file.") from error
    return shapes


def _array(path: Path, key: str) -> NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if key not in archive.files:
                raise DataError(f"{path}: has no {key}; its keys are {sorted(archive.files)}. Add it or remove the file.")
            array: NDArray[Any] = archive[key]
    except _UNREADABLE as error:
        raise DataError(f"{path}: {key} cannot be read as a plain array ({error}). Replace or remove the file.") from error
    return array


def _spacing(path: Path) -> tuple[float, float]:
    values = _array(path, "spacing")
    if values.shape != (3,) or values.dtype.kind not in "iuf" or not (np.isfinite(values).all() and (values > 0).all()):
        raise DataError(f"{path}: spacing is {values.tolist()}, expected three sizes above 0 in mm as (x, y, z). Correct it.")
    return float(values[1]), float(values[0])


def _check_boxes(boxes: Tensor, case: NpzCase) -> None:
    columns = 4 if case.n_slices is None else 6
    if boxes.ndim != 2 or boxes.shape[1] != columns:
        raise DataError(f"{case.path}: boxes has shape {tuple(boxes.shape)}, expected (K, {columns}). Correct the file.")
    low, high = boxes[:, : columns // 2], boxes[:, columns // 2 :]
    # A box may end at the image's edge, one beyond the last pixel.
    largest = torch.tensor([case.size[1], case.size[0], case.n_slices or 1][: columns // 2], dtype=torch.float32)
    wrong = ((low > high) | (low < 0) | (high > largest) | ~torch.isfinite(low + high)).any(dim=1)
    if wrong.any():
        raise DataError(
            f"{case.path}: box {boxes[wrong][0].tolist()} lies outside the image of {case.size} (H, W) "
            "or ends before it begins. Correct the file."
        )


def _slice_of(values: NDArray[Any], case: NpzCase, position: int) -> NDArray[Any]:
    return values if case.n_slices is None else values[position]


def _image_id(name: str, case: NpzCase, position: int) -> str:
    return name if case.n_slices is None else f"{name}_{position:03d}"
