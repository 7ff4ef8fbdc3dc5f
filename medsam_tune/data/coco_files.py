"""COCO files: which images they describe, and the masks of polygons and run lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.data.pairing import first_names
from medsam_tune.errors import DataError
from medsam_tune.files import read_json

REMEDY = "Give a COCO file with images, annotations and categories."
KEYS = frozenset({"images", "annotations", "categories"})
"""What tells a COCO file from other JSON files."""


@dataclass(frozen=True)
class Drawn:
    """Hold one annotation.

    Attributes:
        category: Its name.
        shape: Polygons or run lengths, as the file has them.
        is_crowd: Whether it is a region that nobody drew object by object.
        where: File and number, for messages.
    """

    category: str
    shape: Any
    is_crowd: bool
    where: str

    def mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask of an image of ``size`` (H, W).

        Raises:
            DataError: If the shape is none.
        """
        return decode(self.shape, size, self.where)


@dataclass(frozen=True)
class CocoContent:
    """Hold what COCO files say together.

    Attributes:
        objects: The annotations of each image, in their order; empty where it shows none.
        sizes: (H, W) of each image, as stated.
        files: The file that describes each image.
        categories: The names of all categories, in the files' order.
    """

    objects: Mapping[Path, Sequence[Drawn]]
    sizes: Mapping[Path, tuple[int, int]]
    files: Mapping[Path, Path]
    categories: Sequence[str]

    def used(self) -> list[str]:
        """Return the categories of which an object was drawn."""
        drawn = {each.category for found in self.objects.values() for each in found if not each.is_crowd}
        return [name for name in self.categories if name in drawn]


def read_coco(files: Sequence[Path], images: Iterable[Path]) -> CocoContent:
    """Read COCO files together; an image is found by the end of its path, whatever folders the file names before it.

    Args:
        files: At least one; categories of equal names are one.
        images: The images that there are.

    Raises:
        DataError: If a file is damaged or no COCO file, or names images that are not there.
    """
    return join_coco({file: read_json(file, REMEDY) for file in files}, images)


def join_coco(contents: Mapping[Path, object], images: Iterable[Path]) -> CocoContent:
    """Join what COCO files say.

    Args:
        contents: File to its JSON values.
        images: The images that there are.

    Raises:
        DataError: As ``read_coco``.
    """
    by_name: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_name[image.name].append(image)
    objects: dict[Path, list[Drawn]] = {}
    sizes: dict[Path, tuple[int, int]] = {}
    described: dict[Path, Path] = {}
    categories: list[str] = []
    for file, content in contents.items():
        try:
            categories += _read(file, content, by_name, objects, sizes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}: is no COCO file ({type(error).__name__}: {error}). {REMEDY}") from error
        described |= {image: file for image in objects if image not in described}
    return CocoContent(objects, sizes, described, list(dict.fromkeys(categories)))


def _read(
    file: Path,
    content: Any,  # noqa: ANN401 - JSON
    by_name: Mapping[str, Sequence[Path]],
    objects: dict[Path, list[Drawn]],
    sizes: dict[Path, tuple[int, int]],
) -> list[str]:
    """Add what one file says, and return its categories."""
    names = {int(each["id"]): str(each["name"]) for each in content["categories"]}
    if len(set(names.values())) < len(names):
        raise DataError(f"{file}: two categories have one name. Name each differently.")
    of_id: dict[Any, Path] = {}
    gone = []
    for image in content["images"]:
        path = find_image(str(image["file_name"]), by_name, file)
        if path is None:
            gone.append(str(image["file_name"]))
            continue
        of_id[image["id"]] = path
        sizes[path] = (int(image["height"]), int(image["width"]))
        objects.setdefault(path, [])
    if gone:
        raise DataError(f"{file}: names {len(gone)} images that are not there: {first_names(sorted(gone))}. Correct file_name.")
    for each in content["annotations"]:
        where = f"{file}: annotation {each.get('id')}"
        drawn = Drawn(names[each["category_id"]], each["segmentation"], bool(each.get("iscrowd")), where)
        objects[of_id[each["image_id"]]].append(drawn)
    return list(names.values())


def find_image(name: str, by_name: Mapping[str, Sequence[Path]], file: Path) -> Path | None:
    """Return the image whose path ends most like a name; of several the one that lies beside the file, or is named like it.

    Args:
        name: What a file calls the image: a name or a path, perhaps of another computer.
        by_name: The images that there are.
        file: The file that names it.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    ranked: dict[tuple[int, bool, bool], list[Path]] = defaultdict(list)
    for image in by_name.get(parts[-1], ()) if parts else ():
        same = 0
        for one, other in zip(reversed(parts), reversed(image.parts), strict=False):
            if one != other:
                break
            same += 1
        ranked[same, image.parent == file.parent, image.parent.name in file.stem].append(image)
    best = ranked[max(ranked)] if ranked else []
    return best[0] if len(best) == 1 else None


def decode(shape: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_]:  # noqa: ANN401 - JSON
    """Return the mask (H, W) of polygons, of run lengths, or of run lengths packed as text, by COCO's own rules.

    Raises:
        DataError: If the shape is none of them, or of another size; it begins with ``where``.
    """
    from pycocotools import mask as coco

    height, width = size
    try:
        if isinstance(shape, Sequence):
            polygons = [[float(value) for value in polygon] for polygon in shape]
            if not polygons or any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
                raise ValueError("a polygon needs three corners or more")
            # COCO's rasteriser walks along each edge, however long it is.
            farthest = 2 * max(size)
            if not all(-farthest <= value <= farthest + max(size) for polygon in polygons for value in polygon):
                raise ValueError(f"a polygon has a corner far outside the image of {width} x {height} pixels")
            drawn = coco.merge(coco.frPyObjects(polygons, height, width))
            shape = {"size": drawn["size"], "counts": drawn["counts"].decode("ascii")}
        counts = unpacked(shape["counts"]) if isinstance(shape["counts"], str) else [int(count) for count in shape["counts"]]
        if list(shape["size"]) != [height, width] or sum(counts) != height * width or min(counts) < 0:
            raise ValueError(f"runs of {sum(counts)} pixels for {shape['size']}, expected {[height, width]}")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{where} cannot be read ({error}). Repair or remove it.") from error
    # Runs of background and object take turns, down the columns.
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size, order="F")


def unpacked(text: str) -> list[int]:
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
