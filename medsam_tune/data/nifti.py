"""NIfTI volumes as 2-D slices along one axis of the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_tune.data.base import Purpose, SegmentationSource
from medsam_tune.data.intensity import check_percentiles, check_window
from medsam_tune.data.labels import check_labels, label_rows, name_labels, no_objects
from medsam_tune.data.pairing import by_name, existing_folder, files_with_endings, pair_files
from medsam_tune.data.recent import RecentArrays
from medsam_tune.data.slices import ALL_SLICES, AXIS_NUMBER, Axis, SliceRule, put_slice, slice_spacing, take_slice
from medsam_tune.data.volume_files import (
    ENDINGS,
    VolumeHeader,
    check_same_grid,
    read_grey_levels,
    read_header,
    read_label_values,
)
from medsam_tune.errors import RecipeError
from medsam_tune.types import Sample


@dataclass(frozen=True)
class VolumeCase:
    """Hold one case: its image file and, where there is one, its mask file."""

    case_id: str
    image: VolumeHeader
    mask: VolumeHeader | None


class NiftiVolumes(SegmentationSource):
    """Read volumes (.nii, .nii.gz) and show them as slices; one volume is one case.

    Volumes are turned to RAS order, grey values become 0..255 (rounded to 8 bits) by one rule for the whole volume, and the
    spacing of the slice's rows and columns is kept. An image ``name_0000.nii.gz``, as nnU-Net stores it, pairs with the mask
    ``name.nii.gz``.

    Args:
        images: Folder of the volumes, below the root; ``imagesTr`` in the Medical Segmentation Decathlon.
        masks: Folder of the label maps; ``labelsTr`` there.
        axis: The patient axis along which slices are cut.
        labels: Name to label values; other values are background. Without it every value above 0 is a label of its own.
        window: Fixed lower and upper value of the grey window, such as (-160, 240) HU for soft tissue in CT.
        percentiles: Without a window: percentiles of each volume that become 0 and 255.
        slices: Which slices are evaluated (and trained on, unless ``train_slices`` says otherwise).
        train_slices: Which slices are trained on.
    """

    def __init__(
        self,
        images: str = "images",
        masks: str = "labels",
        axis: Axis = "axial",
        labels: dict[str, list[int]] | None = None,
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] = (0.5, 99.5),
        slices: SliceRule = ALL_SLICES,
        train_slices: SliceRule | None = None,
    ) -> None:
        check_labels(labels)
        check_window(window, "data.source.window")
        check_percentiles(percentiles, "data.source.percentiles")
        if axis not in AXIS_NUMBER:
            raise RecipeError(f"data.source.axis: expected one of {list(AXIS_NUMBER)}, got {axis!r}.")
        self.images, self.masks, self.axis, self.labels = images, masks, axis, labels
        self.window, self.percentiles = window, percentiles
        self.slices, self.train_slices = slices, train_slices or slices
        self._root = Path()
        self._cases: dict[str, VolumeCase] = {}
        self._items: list[tuple[str, int]] = []
        self._volumes: RecentArrays[str] = RecentArrays(max_items=4, max_bytes=2 * 1024**3)
        self._cuts: RecentArrays[tuple[str, int]] = RecentArrays(max_items=100_000, max_bytes=256 * 1024**2)

    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Scan a folder, pair volumes by name and compare the headers of each image and its mask; no voxel is read.

        Raises:
            DataError: If a folder is missing, names do not pair, or shape, spacing or affine of a pair differ.
        """
        image_files, _ = files_with_endings(existing_folder(root, self.images, "images"), ENDINGS)
        mask_files: list[Path] = []
        if require_masks or (root / self.masks).is_dir():
            mask_files, _ = files_with_endings(existing_folder(root, self.masks, "masks"), ENDINGS)
        pairs = pair_files(
            by_name(image_files, lambda path: _case_name(path).removesuffix("_0000")),
            by_name(mask_files, _case_name),
            root=root,
            require_masks=require_masks,
            hint="image 'a.nii.gz' or 'a_0000.nii.gz' needs mask 'a.nii.gz'",
        )
        cases = {name: _open_case(name, image, mask) for name, image, mask in pairs}
        self._root, self._cases = root, cases
        self._items = [(name, position) for name, case in cases.items() for position in self._positions(case)]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        case_id, position = self._items[index]
        case = self._cases[case_id]
        grey, *values = self._cuts.get((case_id, position), lambda: self._cut(case, position))
        masks, labels = label_rows(values[0], self.labels) if values else no_objects(grey.shape)
        return Sample(
            torch.from_numpy(grey).float().expand(3, -1, -1).contiguous(),
            masks,
            labels,
            image_id=self._image_id(case_id, position),
            case_id=case_id,
            spacing_mm=slice_spacing(case.image.voxel_mm, self.axis),
            index=index,
        )

    def case_ids(self) -> tuple[str, ...]:
        """Return the volume of each slice."""
        return tuple(case_id for case_id, _ in self._items)

    def image_ids(self) -> tuple[str, ...]:
        """Return the name of each slice: volume, axis and position in RAS order."""
        return tuple(self._image_id(case_id, position) for case_id, position in self._items)

    def label_names(self) -> dict[int, str]:
        """Return the recipe's names; without them read every mask once and call each value found ``label <value>``."""
        if self.labels is not None:
            return name_labels(self.labels)
        values = [np.unique(read_label_values(case.mask.path)) for case in self._cases.values() if case.mask is not None]
        found = sorted({int(value) for part in values for value in part if value != 0})
        return {value: f"label {value}" for value in found}

    def describe(self) -> dict[str, object]:
        """Return folder, rules and counts."""
        return {
            "source": "NiftiVolumes",
            "root": self._root.name,
            "images": len(self._items),
            "cases": len(self._cases),
            "axis": self.axis,
            "intensity": {"window": self.window} if self.window else {"percentiles of each volume": self.percentiles},
            "labels": self.labels or "each value above 0",
            "slices": asdict(self.slices),
            "train_slices": asdict(self.train_slices),
        }

    def select(self, indices: Sequence[int], purpose: Purpose) -> list[int]:
        """Keep the slices that ``train_slices`` (to train) or ``slices`` (to evaluate) choose."""
        rule = self.train_slices if purpose == "train" else self.slices
        chosen = {name: set(rule.positions(self._length(case))) for name, case in self._cases.items()}
        return [index for index in indices if self._items[index][1] in chosen[self._items[index][0]]]

    def position(self, index: int) -> tuple[str, int]:
        """Return the case of an item and its position along the axis, in RAS order."""
        return self._items[index]

    def header(self, case_id: str) -> VolumeHeader:
        """Return the header of a case's image: its path, its affine, its shape."""
        return self._cases[case_id].image

    def assemble(self, case_id: str, slices: Mapping[int, NDArray[Any]]) -> NDArray[np.uint8]:
        """Put slices (H, W) of values 0..255 back into a volume in the file's own order, so that the image's affine fits.

        Args:
            case_id: The volume.
            slices: Position along the axis to values; other positions stay 0.
        """
        header = self._cases[case_id].image
        volume = np.zeros(header.shape, np.uint8)
        for position, values in slices.items():
            put_slice(volume, self.axis, position, np.asarray(values))
        return header.to_stored(volume)

    def _cut(self, case: VolumeCase, position: int) -> tuple[NDArray[Any], ...]:
        volumes = self._volumes.get(case.case_id, lambda: self._read(case))
        return tuple(take_slice(volume, self.axis, position) for volume in volumes)

    def _read(self, case: VolumeCase) -> tuple[NDArray[Any], ...]:
        grey = read_grey_levels(case.image.path, window=self.window, percentiles=self.percentiles)
        return (grey,) if case.mask is None else (grey, read_label_values(case.mask.path))

    def _length(self, case: VolumeCase) -> int:
        return case.image.shape[AXIS_NUMBER[self.axis]]

    def _positions(self, case: VolumeCase) -> list[int]:
        length = self._length(case)
        return sorted({*self.slices.positions(length), *self.train_slices.positions(length)})

    def _image_id(self, case_id: str, position: int) -> str:
        return f"{case_id}_{self.axis}{position:03d}"


def _case_name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _open_case(case_id: str, image: Path, mask: Path | None) -> VolumeCase:
    image_header = read_header(image)
    mask_header = None if mask is None else read_header(mask)
    if mask_header is not None:
        check_same_grid(image_header, mask_header)
    return VolumeCase(case_id, image_header, mask_header)
