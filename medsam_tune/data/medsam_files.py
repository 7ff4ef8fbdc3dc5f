"""MedSAM's own data: ``.npz`` files that hold image and masks, and the folders of ``.npy`` slices that its scripts write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsam_tune.data.cases import compile_case_pattern
from medsam_tune.data.formats.base import check_same_grid
from medsam_tune.data.formats.npy import NpyFormat
from medsam_tune.data.formats.npz import NpzFormat
from medsam_tune.data.formats.present_values import present_values
from medsam_tune.data.intensity import Intensity
from medsam_tune.data.labels import ONE_LABEL, Objects, check_labels, name_labels, name_values, number_groups
from medsam_tune.data.paired import PairedFiles, Pairs
from medsam_tune.data.pairing import by_name, pair_files
from medsam_tune.data.scan import existing_folder, scan_folder
from medsam_tune.data.slices import ALL_SLICES, Axis, SliceRule
from medsam_tune.data.volumes import VolumeSource
from medsam_tune.errors import all_usable, usable_part

# "CT_Abd_FLARE22_Tr_0001-023" is slice 23 of case "CT_Abd_FLARE22_Tr_0001"; a name without a number is a case of its own.
CASE_PATTERN = r"^(.+?)(?:-\d+)?$"


class MedsamNpz(VolumeSource):
    """Read MedSAM's ``.npz`` files below a folder; one file is one case, a volume gives one item a slice.

    Args:
        axis: The axis along which volumes are cut; ``axial`` shows the slices as they are stored.
        labels: Name to label ids; other ids are background. Without it every id above 0 is a label of its own.
        intensity: How stored values become 0..255. Default: 8 bit as stored, all others by the percentiles 0.5 and 99.5 of the
            whole file.
        slices: Which slices of a volume are evaluated (and trained on, unless ``train_slices`` says otherwise).
        train_slices: Which slices are trained on.
        predict_slices: Which slices of new volumes are predicted; all of them by default.
        exclude: Files that are left out: paths below the root, with or without ending, where ``*`` is any text.
    """

    def __init__(
        self,
        *,
        axis: Axis = "axial",
        labels: dict[str, list[int]] | None = None,
        intensity: Intensity | None = None,
        slices: SliceRule = ALL_SLICES,
        train_slices: SliceRule | None = None,
        predict_slices: SliceRule = ALL_SLICES,
        exclude: list[str] | None = None,
    ) -> None:
        self._npz = NpzFormat()
        chosen = (slices, train_slices, predict_slices)
        super().__init__(self._npz, ".", ".", axis, labels, intensity, *chosen, exclude=exclude)

    def boxes(self, index: int) -> Tensor:
        """Return the file's own boxes on an item: (K, 4) float32 XYXY pixels of the original image.

        Of a volume those boxes are returned whose first to last slice, both included, hold the item's.

        Raises:
            DataError: If the file has no ``boxes``, they have another shape, lie outside the image, or end before they begin.
        """
        case_id, position = self.position(index)
        header = self.header(case_id)
        boxes = torch.from_numpy(self._npz.read_boxes(header.path, header))
        if not header.is_volume:
            return boxes
        shown = (boxes[:, 2] <= position) & (boxes[:, 5] >= position)
        return boxes[shown][:, [0, 1, 3, 4]]


class MedsamNpy(PairedFiles):
    """Read the slices that MedSAM's pre-processing scripts wrote: ``imgs/*.npy`` and ``gts/*.npy`` of the same names.

    An image is (H, W) or (H, W, 3), either floating point in 0..1 or uint8; anything else is refused. The mask has the size of
    its image and holds label ids. Every label of a slice is an object, and slices of one case stay in one part of the split;
    MedSAM's own training draws one random label and stops at a slice without any.

    Args:
        images: Folder of the images, below the root.
        masks: Folder of the masks, below the root.
        labels: Name to label ids; other ids are background. Without it every id above 0 is a label of its own.
        case_pattern: Regular expression searched in the image's name; its first group is the case.
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
        super().__init__(compile_case_pattern(case_pattern))
        self.format = NpyFormat()
        self.images, self.masks, self.labels = images, masks, labels

    def find_pairs(self, root: Path, *, require_masks: bool) -> Pairs:
        """Scan both folders and pair their files."""
        folder, mask_folder = existing_folder(root, self.images, "images"), root / self.masks
        faults: list[str] = []
        images = self._named(folder, faults)
        masks: dict[str, Path] = {}
        if require_masks or mask_folder.is_dir():
            masks = self._named(existing_folder(root, self.masks, "masks"), faults)
        hint = f"image '{self.images}/a.npy' needs mask '{self.masks}/a.npy'"
        pairs = usable_part(lambda: pair_files(images, masks, root=root, require_masks=require_masks, hint=hint), faults)
        found: Pairs = [(name, image, () if mask is None else (mask,)) for name, image, mask in pairs]
        return all_usable(found, faults, f"{root}: {len(faults)} faults in names and links")

    def _named(self, folder: Path, faults: list[str]) -> dict[str, Path]:
        scan = usable_part(lambda: scan_folder(folder, self.format.endings), faults)
        return usable_part(lambda: by_name(scan.files, lambda path: self.format.name_of(path, folder)), faults)

    def check_pair(self, image: Path, masks: tuple[Path, ...]) -> None:
        """Compare the shapes that the headers of an image and its mask state."""
        header = self.format.read_header(image)
        for mask in masks:
            check_same_grid(header, self.format.read_header(mask))

    def read_image(self, path: Path) -> Tensor:
        """Read (H, W) or (H, W, 3) in 0..255."""
        return torch.from_numpy(np.ascontiguousarray(self.format.read_image(path)[0], np.float32))

    def label_groups(self) -> dict[str, list[int]] | None:
        """Return the label ids of each named label."""
        return number_groups(self.labels)

    def read_objects(self, masks: tuple[Path, ...], size: tuple[int, int]) -> Objects:
        """Read the label ids."""
        (path,) = masks
        return self.objects_of(self.format.read_labels(path)[0], self.label_groups())

    def label_names(self) -> dict[int, str]:
        """Return the recipe's names; without them read every mask once and call each id found ``label <id>``."""
        if self.labels is not None:
            return name_labels(self.labels)
        if self.target == "per_instance":
            return dict(ONE_LABEL)
        return name_values([present_values(self.format.read_labels(mask)) for mask in self.mask_files()], self.ignore_label)

    def describe(self) -> dict[str, object]:
        """Return rules and counts."""
        rules = {"intensity": "0..1 times 255, or 8 bit as stored", "labels": self.labels or "each id above 0"}
        return {**super().describe(), **rules}
