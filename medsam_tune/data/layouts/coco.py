"""Images whose objects stand in annotation files: COCO as it is; labelme and YOLO, which are written as COCO."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsam_tune.data.coco_files import KEYS, join_coco
from medsam_tune.data.formats import RasterFormat
from medsam_tune.data.formats.raster import image_size
from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pair, Pairing
from medsam_tune.data.patterns import PathPattern
from medsam_tune.errors import DataError
from medsam_tune.yaml_files import read_yaml

_POLYGONS = ("polygon", "rectangle")


class CocoFiles(Layout):
    """Read COCO files, wherever they lie: one for all images, or one for each part."""

    name = "COCO"

    def find(self, listing: Listing) -> Pairing | str:
        """Take every file that has images, annotations and categories, and the images that it names."""
        if not isinstance(listing.format, RasterFormat):
            return ""
        files = [path for path in listing.others if path.suffix.lower() == ".json" and _is_coco(path)]
        if not files:
            return ""
        return _annotated(self.name, listing, {path: _json(path) for path in files})


def _annotated(layout: str, listing: Listing, contents: Mapping[Path, object], *, written: bool = False) -> Pairing | str:
    """Pair the images that COCO files describe; where ``written``, the one file is not there yet and a recipe needs it."""
    content = join_coco(contents, [file.path for file in listing.files])
    if not content.used():
        return "no object has a shape"
    pairs, lonely = [], []
    for file in listing.files:
        if file.path in content.objects:
            where = content.files[file.path]
            pairs.append(Pair(file.stem, file, (DataFile(where, where.stem),)))
        else:
            lonely.append(file)
    places = [path.relative_to(listing.root).as_posix() for path in contents]
    named = PathPattern("{name}")
    return Pairing(
        layout,
        listing.format,
        named,
        named,
        tuple(pairs),
        without_mask=tuple(lonely),
        notes=() if written else (f"objects are read from {', '.join(places)}",),
        annotations=content,
        written=next(iter(contents.values())) if written else None,
    )


def _is_coco(path: Path) -> bool:
    content = _json(path)
    return (
        isinstance(content, dict) and content.keys() >= KEYS and any("segmentation" in each for each in content["annotations"])
    )


def _json(path: Path) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


class LabelmeFiles(Layout):
    """Read labelme's files, one beside each image, with polygons and rectangles."""

    name = "labelme"

    def find(self, listing: Listing) -> Pairing | str:
        """Take every JSON file that holds ``shapes`` and is named like an image."""
        if not isinstance(listing.format, RasterFormat):
            return ""
        beside = {path.with_suffix(""): path for path in listing.others if path.suffix.lower() == ".json"}
        found: list[tuple[DataFile, list[tuple[str, list[float]]]]] = []
        others: Counter[str] = Counter()
        for file in listing.files:
            content = _json(beside[bare]) if (bare := file.path.with_suffix("")) in beside else None
            if isinstance(content, dict) and isinstance(content.get("shapes"), list):
                shapes = [each for each in content["shapes"] if each.get("shape_type", "polygon") in _POLYGONS]
                others.update(str(each.get("shape_type")) for each in content["shapes"] if each not in shapes)
                found.append((file, [(str(each["label"]), _corners(each)) for each in shapes]))
        if not found:
            return ""
        if others:
            kinds = ", ".join(f"{count} of {kind}" for kind, count in others.items())
            raise DataError(
                f"{listing.root}: labelme files hold shapes that are no areas ({kinds}). Draw polygons, or remove them."
            )
        return as_coco(self.name, listing, found)


def _corners(shape: Mapping[str, Any]) -> list[float]:
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if shape.get("shape_type") == "rectangle":
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return [value for point in points for value in point]


class YoloFiles(Layout):
    """Read YOLO's polygons: ``labels/x.txt`` for ``images/x.jpg``, one object a line, and the names in ``data.yaml``."""

    name = "YOLO polygons"

    def find(self, listing: Listing) -> Pairing | str:
        """Take text files whose lines are a class and at least three corners between 0 and 1."""
        if not isinstance(listing.format, RasterFormat):
            return ""
        texts = {path.with_suffix(""): path for path in listing.others if path.suffix.lower() == ".txt"}
        names = _yolo_names(listing)
        found: list[tuple[DataFile, list[tuple[str, list[float]]]]] = []
        for file in listing.files:
            path = next((texts[bare] for bare in _label_places(file.path) if bare in texts), None)
            lines = _yolo_lines(path) if path is not None else None
            if lines is not None:
                height, width = image_size(file.path)
                shapes = [
                    (names.get(number, f"class_{number}"), [v * (width, height)[i % 2] for i, v in enumerate(corners)])
                    for number, corners in lines
                ]
                found.append((file, shapes))
        if not any(shapes for _, shapes in found):
            return ""
        return as_coco(self.name, listing, found)


def _label_places(image: Path) -> list[Path]:
    """Return where an image's labels may lie: beside it, and below ``labels`` where it lies below ``images``."""
    bare = image.with_suffix("")
    places = [bare]
    for place, part in enumerate(bare.parts):
        if part == "images":
            places.append(Path(*bare.parts[:place], "labels", *bare.parts[place + 1 :]))
    return places


def _yolo_lines(path: Path) -> list[tuple[int, list[float]]] | None:
    lines = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            number, *corners = line.split()
            values = [float(value) for value in corners]
            if len(values) < 6 or len(values) % 2 or not all(0 <= value <= 1 for value in values):
                return None
            lines.append((int(number), values))
    except (OSError, ValueError):
        return None
    return lines


def _yolo_names(listing: Listing) -> dict[int, str]:
    for path in listing.others:
        if path.suffix.lower() in (".yaml", ".yml") and path.parent == listing.root:
            content = read_yaml(path)
            names = content.get("names") if isinstance(content, Mapping) else None
            if isinstance(names, Mapping):
                return {int(number): str(name) for number, name in names.items()}
            if isinstance(names, list):
                return dict(enumerate(map(str, names)))
    return {}


def as_coco(layout: str, listing: Listing, found: Sequence[tuple[DataFile, list[tuple[str, list[float]]]]]) -> Pairing | str:
    """Return the pairing, and the COCO file that says the same for the recipe to read.

    Args:
        layout: The layout's name.
        listing: The files.
        found: The class and the corners x, y, x, y, ... of each object, by image.
    """
    names = sorted({name for _, shapes in found for name, _ in shapes})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (file, shapes) in enumerate(found, start=1):
        height, width = image_size(file.path)
        place = file.path.relative_to(listing.root).as_posix()
        images.append({"id": number, "file_name": place, "height": height, "width": width})
        for name, corners in shapes:
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": names.index(name) + 1}
            annotations.append({**annotation, "segmentation": [corners], "bbox": _box(corners), "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    written = {"images": images, "annotations": annotations, "categories": categories}
    return _annotated(layout, listing, {listing.root / "annotations.json": written}, written=True)


def _box(corners: Sequence[float]) -> list[float]:
    columns, rows = corners[::2], corners[1::2]
    return [min(columns), min(rows), max(columns) - min(columns), max(rows) - min(rows)]
