"""Images whose objects stand in a COCO file: polygons and run lengths, one annotation an object."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.data.cases import compile_case_pattern
from medsam_tune.data.formats.raster import ENDINGS, image_size, opened, read_pixels, stored_spacing
from medsam_tune.data.intensity import Intensity, apply_intensity, default_intensity
from medsam_tune.data.labels import Objects, check_labels, groups_of_names, join_objects, name_labels, no_objects
from medsam_tune.data.paired import PairedFiles, Pairs
from medsam_tune.data.pairing import first_names
from medsam_tune.data.scan import existing_folder, scan_folder
from medsam_tune.errors import DataError
from medsam_tune.files import read_json

_REMEDY = "Give a COCO file with images, annotations and categories."


class CocoImages(PairedFiles):
    """Read images and a COCO file of their objects.

    Objects may overlap, and with the target ``per_instance`` each annotation is one. What is marked ``iscrowd`` is a region
    that nobody drew object by object: its pixels leave loss and metric.

    Args:
        images: Folder of the images, below the root; the file names them by their paths below it.
        annotations: The COCO file, below the root.
        labels: Name to category names; other categories are background. Without it every category is a label.
        case_pattern: Regular expression searched in the image's name; its first group is the case.
        intensity: How stored values become 0..255. Default: 8 bit as stored, all others by percentiles of the image.
    """

    def __init__(
        self,
        images: str = "images",
        annotations: str = "annotations.json",
        *,
        labels: dict[str, list[str]] | None = None,
        case_pattern: str | None = None,
        intensity: Intensity | None = None,
    ) -> None:
        super().__init__(None if case_pattern is None else compile_case_pattern(case_pattern))
        check_labels(labels)
        self.images, self.annotations, self.labels, self.intensity = images, annotations, labels, intensity
        self._objects: dict[Path, list[Mapping[str, Any]]] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._categories: dict[int, str] = {}

    def find_pairs(self, root: Path, *, require_masks: bool) -> Pairs:
        """Pair the images of the folder with what the file says of them.

        Raises:
            DataError: If the file is damaged, names an image that is not there, or, with masks required, misses one.
        """
        folder = existing_folder(root, self.images, "images")
        path = root / self.annotations
        found = scan_folder(folder, ENDINGS).files
        if not path.exists() and not require_masks:
            return [(_name(image, folder), image, ()) for image in found]
        self._read(path, folder)
        gone = sorted(str(image) for image in self._objects if image not in set(found))
        if gone:
            raise DataError(f"{path}: names {len(gone)} images that are not there: {first_names(gone)}. Correct file_name.")
        unknown = sorted(image.name for image in found if image not in self._objects)
        if unknown and require_masks:
            raise DataError(f"{path}: says nothing of {len(unknown)} images: {first_names(unknown)}. Add or remove them.")
        return [(_name(image, folder), image, (path,) if image in self._objects else ()) for image in found]

    def check_pair(self, image: Path, masks: tuple[Path, ...]) -> None:
        """Compare the image's size with the one that the file states."""
        if masks and (found := image_size(image)) != (stated := self._sizes[image]):
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
        rows, crowd = [], np.zeros(size, np.bool_)
        for each in self._objects[image]:
            mask = _decode(each, size, masks[0])
            if each.get("iscrowd"):
                crowd |= mask
                continue
            number = _position(self._categories, each["category_id"])
            named = [label for label, members in enumerate(groups.values(), start=1) if number in members]
            rows += [(label, mask) for label in named if mask.any()]
        ignored = torch.from_numpy(crowd) if crowd.any() else None
        if not rows:
            return no_objects(size, ignored)
        drawn = torch.from_numpy(np.stack([mask for _, mask in rows]))
        labels = torch.tensor([label for label, _ in rows], dtype=torch.int64)
        if self.target == "per_instance":
            return Objects(drawn, labels, ignored, torch.arange(1, len(rows) + 1))
        return join_objects([Objects(drawn, labels, ignored)])

    def spacing_mm(self, path: Path) -> tuple[float, float]:
        """Return the spacing that ``medsam-tune prepare`` stored in the file."""
        with opened(path) as image:
            return stored_spacing(image, path)

    def label_groups(self) -> dict[str, list[int]] | None:
        """Return the position of each category, from 1, in the recipe's groups; without groups each category is one."""
        return groups_of_names(self.labels, list(self._categories.values()), where=f"the categories of {self.annotations}")

    def label_names(self) -> dict[int, str]:
        """Return the names of the recipe's groups, or of the categories."""
        return name_labels(self.label_groups() or {})

    def describe(self) -> dict[str, object]:
        """Return rules and counts."""
        return {
            **super().describe(),
            "objects": sum(len(found) for found in self._objects.values()),
            "labels": self.labels or "each category",
            "intensity": asdict(self.intensity)
            if self.intensity
            else "8 bit as stored, others percentile 0.5 to 99.5 per image",
        }

    def _read(self, path: Path, folder: Path) -> None:
        content = read_json(path, _REMEDY)
        try:
            files = {image["id"]: folder / image["file_name"] for image in content["images"]}
            self._sizes = {files[image["id"]]: (int(image["height"]), int(image["width"])) for image in content["images"]}
            self._categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
            objects: dict[Path, list[Mapping[str, Any]]] = defaultdict(list, {image: [] for image in files.values()})
            for each in content["annotations"]:
                _ = each["segmentation"], self._categories[each["category_id"]]
                objects[files[each["image_id"]]].append(each)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: is no COCO file ({type(error).__name__}: {error}). {_REMEDY}") from error
        self._objects = dict(objects)
        if len(set(self._categories.values())) < len(self._categories):
            raise DataError(f"{path}: two categories have one name. Name each differently.")


def _position(categories: Mapping[int, str], category: int) -> int:
    return list(categories).index(category) + 1


def _decode(annotation: Mapping[str, Any], size: tuple[int, int], path: Path) -> NDArray[np.bool_]:
    """Return the mask (H, W) of polygons, of run lengths, or of run lengths packed as text, by COCO's own rules."""
    from pycocotools import mask as coco

    height, width = size
    shape = annotation["segmentation"]
    try:
        if isinstance(shape, Sequence):
            polygons = [[float(value) for value in polygon] for polygon in shape]
            if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
                raise ValueError("a polygon needs three corners or more")
            drawn = coco.merge(coco.frPyObjects(polygons, height, width))
            shape = {"size": drawn["size"], "counts": drawn["counts"].decode("ascii")}
        counts = _unpacked(shape["counts"]) if isinstance(shape["counts"], str) else [int(count) for count in shape["counts"]]
        if list(shape["size"]) != [height, width] or sum(counts) != height * width or min(counts) < 0:
            raise ValueError(f"runs of {sum(counts)} pixels for {shape['size']}, expected {[height, width]}")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{path}: annotation {annotation.get('id')} cannot be read ({error}). Repair or remove it.") from error
    # Runs of background and object take turns, down the columns.
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size, order="F")


def _unpacked(text: str) -> list[int]:
    """Return the run lengths that COCO packs as text: five bits a letter, each but the first three as a difference.

    Source: rleFrString in https://github.com/cocodataset/cocoapi, common/maskApi.c. It does not check what it reads.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text.encode("ascii"):
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        signed = value - (1 << shift) if bits & 16 else value
        counts.append(signed + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def _name(image: Path, folder: Path) -> str:
    return image.relative_to(folder).with_suffix("").as_posix()
