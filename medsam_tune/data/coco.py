"""Images whose objects stand in a COCO file: polygons and run lengths, one annotation an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsam_tune.data.cases import compile_case_pattern
from medsam_tune.data.coco_files import CocoContent, read_coco
from medsam_tune.data.formats.raster import ENDINGS, image_size, opened, read_pixels, stored_spacing
from medsam_tune.data.intensity import UNNAMED_RULE, Intensity, apply_intensity, default_intensity
from medsam_tune.data.labels import Objects, check_labels, groups_of_names, join_objects, name_labels, no_objects
from medsam_tune.data.paired import PairedFiles, Pairs
from medsam_tune.data.pairing import first_names
from medsam_tune.data.scan import existing_folder, leave_out, scan_folder
from medsam_tune.errors import DataError
from medsam_tune.masks import ObjectMasks


class CocoImages(PairedFiles):
    """Read images and a COCO file of their objects.

    Objects may overlap, and with the target ``per_instance`` each annotation is one; with ``per_class`` a pixel belongs to the
    one that was drawn last. What is marked ``iscrowd`` is a region that nobody drew object by object: its pixels leave loss and
    metric.

    Args:
        images: Folder of the images, below the root; the file names them by the ends of their paths.
        annotations: The COCO file, or several that belong together, below the root.
        labels: Name to category names; other categories are background. Without it every category is a label.
        case_pattern: Regular expression searched in the image's name; its first group is the case.
        intensity: How stored values become 0..255. Default: 8 bit as stored, all others by percentiles of the image.
        exclude: Images that are left out: paths below the root, with or without ending, where ``*`` is any text.
    """

    def __init__(
        self,
        images: str = "images",
        annotations: str | list[str] = "annotations.json",
        *,
        labels: dict[str, list[str]] | None = None,
        case_pattern: str | None = None,
        intensity: Intensity | None = None,
        exclude: list[str] | None = None,
    ) -> None:
        super().__init__(None if case_pattern is None else compile_case_pattern(case_pattern))
        check_labels(labels)
        self.images, self.labels, self.intensity, self.exclude = images, labels, intensity, exclude or []
        self.annotations = [annotations] if isinstance(annotations, str) else list(annotations)
        self._content = CocoContent({}, {}, {}, ())

    def find_pairs(self, root: Path, *, require_masks: bool) -> Pairs:
        """Pair the images of the folder with what the file says of them.

        Raises:
            DataError: If the file is damaged, names an image that is not there, or, with masks required, misses one.
        """
        folder = existing_folder(root, self.images, "images")
        files = [root / file for file in self.annotations]
        found = leave_out(scan_folder(folder, ENDINGS), root, self.exclude).files
        if not require_masks and not all(file.exists() for file in files):
            return [(_name(image, folder), image, ()) for image in found]
        self._content = read_coco(files, scan_folder(folder, ENDINGS).files)
        unknown = sorted(image.name for image in found if image not in self._content.objects)
        if unknown and require_masks:
            raise DataError(
                f"{files[0]}: says nothing of {len(unknown)} images: {first_names(unknown)}. Add or remove them, or name them "
                "in data.source.exclude."
            )
        of_image = self._content.files
        return [(_name(image, folder), image, (of_image[image],) if image in of_image else ()) for image in found]

    def check_pair(self, image: Path, masks: tuple[Path, ...]) -> None:
        """Compare the image's size with the one that the file states."""
        if masks and (found := image_size(image)) != (stated := self._content.sizes[image]):
            raise DataError(
                f"{image}: is {found[0]} x {found[1]} (H x W), {masks[0].name} says {stated[0]} x {stated[1]}. "
                "Correct the file, or take the image that was annotated."
            )

    def read_image(self, path: Path) -> Tensor:
        """Read (H, W) or (H, W, 3) in 0..255."""
        values = read_pixels(path)
        levels = apply_intensity(values, self.intensity or default_intensity(values), path)
        return torch.from_numpy(np.ascontiguousarray(levels))

    def read_objects(self, masks: tuple[Path, ...], size: tuple[int, int]) -> Objects:
        """Objects follow from the image, not from the file alone: see ``objects_on``."""
        raise DataError(f"{masks[0]}: holds the objects of many images. Ask for those of one.")

    def objects_on(self, image: Path, masks: tuple[Path, ...], size: tuple[int, int]) -> Objects:
        """Return the objects of an image, one row for each label present, or for each annotation."""
        groups = self.label_groups() or {}
        categories = list(self._content.categories)
        crowd = np.zeros(size, np.bool_)
        drawn: list[tuple[int, ObjectMasks]] = []
        for each in self._content.objects[image]:
            mask = each.mask(size)
            if each.is_crowd:
                crowd |= mask
            else:
                # Cut at once: an image may have a thousand annotations.
                drawn.append((categories.index(each.category) + 1, ObjectMasks.of(torch.from_numpy(mask)[None])))
        if self.target == "per_class":
            drawn = _apart(drawn, size)
        rows = [
            (label, mask)
            for number, mask in drawn
            for label, members in enumerate(groups.values(), start=1)
            if number in members and mask.any()
        ]
        ignored = torch.from_numpy(crowd) if crowd.any() else None
        if not rows:
            return no_objects(size, ignored)
        shown = ObjectMasks.join([mask for _, mask in rows])
        labels = torch.tensor([label for label, _ in rows], dtype=torch.int64)
        if self.target == "per_instance":
            return Objects(shown, labels, ignored, torch.arange(1, len(rows) + 1))
        return join_objects([Objects(shown, labels, ignored)])

    def spacing_mm(self, path: Path) -> tuple[float, float] | None:
        """Return the spacing that ``medsam-tune prepare`` stored in the file; None where it stored none."""
        with opened(path) as image:
            return stored_spacing(image, path)

    def label_groups(self) -> dict[str, list[int]] | None:
        """Return the position of each category, from 1, in the recipe's groups; without groups each category is one."""
        return groups_of_names(self.labels, self._content.categories, where=f"the categories of {', '.join(self.annotations)}")

    def label_names(self) -> dict[int, str]:
        """Return the names of the recipe's groups, or of the categories."""
        return name_labels(self.label_groups() or {})

    def describe(self) -> dict[str, object]:
        """Return rules and counts."""
        return {
            **super().describe(),
            "objects": sum(len(found) for found in self._content.objects.values()),
            "labels": self.labels or "each category",
            "intensity": asdict(self.intensity) if self.intensity else UNNAMED_RULE,
        }


def _apart(drawn: Sequence[tuple[int, ObjectMasks]], size: tuple[int, int]) -> list[tuple[int, ObjectMasks]]:
    """Give each pixel to the object that was drawn last."""
    owner = np.zeros(size, np.int32)
    for place, (_, mask) in enumerate(drawn, start=1):
        owner[mask[0].numpy()] = place
    kept = ObjectMasks.of_numbers(owner, len(drawn))
    return [(number, kept.rows(torch.tensor([place]))) for place, (number, _) in enumerate(drawn)]


def _name(image: Path, folder: Path) -> str:
    return image.relative_to(folder).with_suffix("").as_posix()
