"""Answers as COCO: one annotation an object, its mask as run lengths or polygons, with the score that the network gave it.

Source of the fields: https://cocodataset.org/#format-data and #format-results; pycocotools reads what is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.coco_files import decode
from medsam_tune.data.formats.base import VolumeHeader
from medsam_tune.data.formats.dicom.polygons import outline_pixels
from medsam_tune.data.formats.present_values import present_values
from medsam_tune.data.formats.raster import RasterFormat
from medsam_tune.errors import DataError
from medsam_tune.files import read_json, write_json

JOINED = "coco.json"
ENDING = ".coco.json"


@dataclass(frozen=True)
class FoundObject:
    """Hold one object that was found in an image.

    Attributes:
        value: The number of its label.
        run_lengths: Its mask, as pycocotools packs it.
        score: What the network thinks of its mask, from 0 to 1; None where it says nothing.
    """

    value: int
    run_lengths: Mapping[str, Any]
    score: float | None

    @classmethod
    def of(cls, value: int, mask: NDArray[np.bool_], score: float | None) -> FoundObject:
        """Pack a mask (H, W)."""
        from pycocotools import mask as coco

        packed = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        return cls(value, {"size": [int(n) for n in packed["size"]], "counts": packed["counts"].decode("ascii")}, score)


class CocoFormat(RasterFormat):
    """Write the objects of an image as a COCO file of their own; images alone, for COCO knows no slices."""

    endings: tuple[str, ...] = (ENDING,)

    def write_labels(
        self, stem: Path, labels: NDArray[Any], header: VolumeHeader, names: Mapping[int, str] | None = None
    ) -> Path:
        """Write ``<stem>.coco.json``: all pixels of a label are one annotation."""
        values = sorted({int(value) for value in present_values(labels)} - {0})
        found = [FoundObject.of(value, labels[0] == value, None) for value in values]
        return self.write_objects(stem, found, header, names or {})

    def write_objects(self, stem: Path, objects: Sequence[FoundObject], header: VolumeHeader, names: Mapping[int, str]) -> Path:
        """Write ``<stem>.coco.json``.

        Raises:
            DataError: If the image is a volume, or the file cannot be written.
        """
        if header.is_volume:
            known = "nifti, nrrd, mha, seg or rtstruct"
            raise DataError(f"{header.path}: is a volume, and COCO describes images. Write --to {known}.")
        height, width = header.stored_shape[1:]
        annotations = [self._annotation(number, each) for number, each in enumerate(objects, start=1)]
        content = {
            "images": [{"id": 1, "file_name": header.path.name, "height": height, "width": width}],
            "annotations": annotations,
            "categories": [{"id": value, "name": name} for value, name in sorted(names.items())],
        }
        return write_json(stem.with_name(f"{stem.name}{ENDING}"), content)

    def _annotation(self, number: int, found: FoundObject) -> dict[str, Any]:
        from pycocotools import mask as coco

        packed = {**found.run_lengths, "counts": found.run_lengths["counts"].encode("ascii")}
        described = {
            "id": number,
            "image_id": 1,
            "category_id": found.value,
            "segmentation": dict(found.run_lengths),
            "area": int(coco.area(packed)),
            "bbox": [float(value) for value in coco.toBbox(packed)],
            "iscrowd": 0,
        }
        return described if found.score is None else {**described, "score": round(found.score, 6)}


class CocoPolygons(CocoFormat):
    """Write objects as COCO does, with polygons in place of run lengths, as CVAT, Roboflow and labelme take them."""

    def _annotation(self, number: int, found: FoundObject) -> dict[str, Any]:
        height, width = found.run_lengths["size"]
        mask = decode(found.run_lengths, (height, width), f"object {number}")
        return {**super()._annotation(number, found), "segmentation": outlines_of(mask)}


def join_files(files: Mapping[str, Path], path: Path) -> Path:
    """Write one COCO file of several of one image each, numbered anew.

    Args:
        files: The file of each image, by the image's path below the folder that was asked about.
        path: The file to write.

    Raises:
        DataError: If one cannot be read.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[int, dict[str, Any]] = {}
    for number, (name, file) in enumerate(sorted(files.items()), start=1):
        content = read_json(file, "Ask about the image again.")
        images.append({**content["images"][0], "id": number, "file_name": name})
        for each in content["annotations"]:
            annotations.append({**each, "id": len(annotations) + 1, "image_id": number})
        categories |= {each["id"]: each for each in content["categories"]}
    joined = {"images": images, "annotations": annotations, "categories": [categories[key] for key in sorted(categories)]}
    return write_json(path, joined)


def outlines_of(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Return polygons [x, y, x, y, ...] along the edges of a mask's pixels, which cover exactly the mask (H, W).

    COCO's polygons have no holes, so an object with one is cut there into parts that touch.

    Example:
        >>> outlines_of(np.array([[False, True, True]]))
        [[1.0, 0.0, 3.0, 0.0, 3.0, 1.0, 1.0, 1.0]]
    """
    return [
        [float(value) for row, column in outline for value in (column + 0.5, row + 0.5)]
        for part in _parts_without_holes(mask)
        for outline in outline_pixels(part)
    ]


def _parts_without_holes(mask: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    from scipy import ndimage

    numbered, count = ndimage.label(mask)
    for number in range(1, count + 1):
        part: NDArray[np.bool_] = numbered == number
        holes = ndimage.binary_fill_holes(part) & ~part
        if not holes.any():
            yield part
            continue
        column = int(np.flatnonzero(holes.any(axis=0))[0])
        left = np.arange(mask.shape[1]) <= column
        yield from _parts_without_holes(part & left)
        yield from _parts_without_holes(part & ~left)
