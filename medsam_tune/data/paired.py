"""What sources of single images have in common: an image file, its mask files if there are any, and a case for each."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from medsam_tune.data.base import SegmentationSource, VoxelSize
from medsam_tune.data.cases import case_of
from medsam_tune.data.labels import Objects, check_ignore_label, name_labels, no_objects
from medsam_tune.errors import DataError, data_error, usable_part
from medsam_tune.samples import Sample

Pairs = list[tuple[str, Path, tuple[Path, ...]]]
"""(name, image file, its mask files), sorted by name; no mask file where nobody drew one."""


class PairedFiles(SegmentationSource):
    """Serve single images that pair with masks by name; a subclass finds the pairs and reads the pixels.

    Args:
        case_pattern: Searched in an image's name; its first group is the case. Without it every image is a case of its own.
    """

    labels: Mapping[str, Sequence[int | str]] | None
    """Name to mask values, as the recipe says; None where it says nothing."""

    def __init__(self, case_pattern: re.Pattern[str] | None) -> None:
        self.case_pattern = case_pattern
        self._pairs: Pairs = []
        self._cases: tuple[str, ...] = ()

    @abstractmethod
    def find_pairs(self, root: Path, *, require_masks: bool) -> Pairs:
        """Scan a folder and pair its files; no file is opened.

        Raises:
            DataError: If a folder is missing.
            PartlyUsable: If entries cannot be used or names do not pair.
        """

    def check_pair(self, image: Path, masks: tuple[Path, ...]) -> None:
        """Check what the headers of a pair tell without reading pixels; nothing by default.

        Raises:
            DataError: If a header cannot be read, or the two do not belong together.
        """

    @abstractmethod
    def read_image(self, path: Path) -> Tensor:
        """Read an image as (H, W) or (H, W, 3) float32 in 0..255."""

    @abstractmethod
    def read_objects(self, masks: tuple[Path, ...], size: tuple[int, int]) -> Objects:
        """Read the objects of the mask files, at least one, of an image of ``size`` (H, W)."""

    def objects_on(self, image: Path, masks: tuple[Path, ...], size: tuple[int, int]) -> Objects:
        """Return an image's objects; by default those of its mask files."""
        return self.read_objects(masks, size)

    def spacing_mm(self, path: Path) -> tuple[float, float] | None:
        """Return the (row, column) spacing that an image file states; None where it states none."""
        return None

    def open(self, root: Path, *, require_masks: bool = True) -> None:
        """Scan a folder, pair the files by name and compare the sizes of each image and its mask.

        Raises:
            DataError: If a folder is missing, names do not pair, a name gives no case, or sizes differ.
        """
        check_ignore_label(self.ignore_label, self.labels)
        faults: list[str] = []
        sound: dict[int, str] = {}
        pairs = usable_part(lambda: self.find_pairs(root, require_masks=require_masks), faults)
        for position, (name, image, masks) in enumerate(pairs):
            try:
                case = self._case_of(name, image)
                self.check_pair(image, masks)
                sound[position] = case
            except DataError as error:
                faults.append(str(error))
        # What is sound is shown all the same, so that its content can be looked at and all faults be listed together.
        self._pairs, self._cases = [pairs[position] for position in sound], tuple(sound.values())
        if faults:
            raise data_error(f"{root}: {len(faults)} faults in the data", faults)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        name, image_path, masks = self._pairs[index]
        image = self.read_image(image_path)
        image = image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)
        size = (int(image.shape[-2]), int(image.shape[-1]))
        shown = self.objects_on(image_path, masks, size) if masks else no_objects(size)
        return Sample(
            image.contiguous(),
            shown.masks,
            shown.labels,
            image_id=name,
            case_id=self._cases[index],
            spacing_mm=self.spacing_mm(image_path) or (1.0, 1.0),
            index=index,
            volume_id=name,
            ignored=shown.ignored,
            object_ids=shown.object_ids,
        )

    def case_ids(self) -> tuple[str, ...]:
        """Return the case of each image."""
        return self._cases

    def image_ids(self) -> tuple[str, ...]:
        """Return the name of each image: its path below the image folder, without the file ending."""
        return tuple(name for name, _, _ in self._pairs)

    def named_labels(self) -> dict[int, str]:
        """Return the names that the recipe gives its labels."""
        return name_labels(self.label_groups() or {})

    def label_values(self) -> dict[int, list[int]]:
        """Return the mask values of each label that the recipe names."""
        return dict(enumerate((self.label_groups() or {}).values(), start=1))

    @abstractmethod
    def label_groups(self) -> dict[str, list[int]] | None:
        """Return the mask values of each named label, or None where the recipe names none."""

    def mask_files(self) -> list[Path]:
        """Return the mask files there are."""
        return [mask for _, _, masks in self._pairs for mask in masks]

    def voxel_size(self, index: int) -> VoxelSize | None:
        """Return the spacing that the image's file states; None where it states none."""
        spacing = self.spacing_mm(self._pairs[index][1])
        return None if spacing is None else VoxelSize(*spacing)

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the item's image file and mask files."""
        _, image, masks = self._pairs[index]
        return (image, *masks)

    def describe(self) -> dict[str, object]:
        """Return rules and counts; a subclass adds its own."""
        return {
            "source": type(self).__name__,
            "images": len(self._pairs),
            "cases": len(set(self._cases)),
            "case_pattern": self.case_pattern.pattern if self.case_pattern else None,
        }

    def _case_of(self, name: str, path: Path) -> str:
        return name if self.case_pattern is None else case_of(name, self.case_pattern, path)
