"""Annotation files of tools that draw polygons: CVAT's XML, VGG Image Annotator, Supervisely, Aperio ImageScope."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError, fromstring

from medsam_tune.data.formats import RasterFormat
from medsam_tune.data.layouts.base import DataFile, Layout, Listing, Pairing
from medsam_tune.data.layouts.coco import as_coco
from medsam_tune.errors import DataError

Shapes = list[tuple[str, list[float]]]
"""The class of each object and its corners: x, y, x, y, ..."""

_LARGEST = 512 * 1024**2


class CvatFiles(Layout):
    """Read ``annotations.xml`` of CVAT for images: polygons and boxes."""

    name = "CVAT XML"

    def find(self, listing: Listing) -> Pairing | str:
        """Take every XML file whose root is ``annotations`` and that names images."""
        shapes: dict[DataFile, Shapes] = {}
        others: Counter[str] = Counter()
        for root in _xml_roots(listing, "annotations"):
            for image in root.iter("image"):
                file = _by_end(listing.files, image.get("name", ""))
                if file is not None:
                    shapes.setdefault(file, []).extend(_of_cvat(image))
                    others.update(each.tag for each in image if each.tag in ("polyline", "points", "mask", "ellipse", "cuboid"))
        return _told(self.name, listing, shapes, others)


def _of_cvat(image: Element) -> Iterator[tuple[str, list[float]]]:
    for each in image:
        label = each.get("label", "object")
        if each.tag == "polygon":
            yield label, [float(value) for point in each.get("points", "").split(";") for value in point.split(",")]
        elif each.tag == "box":
            yield label, _rectangle(*(float(each.get(side, "0")) for side in ("xtl", "ytl", "xbr", "ybr")))


class ImageScopeFiles(Layout):
    """Read Aperio ImageScope's ``x.xml`` for the image ``x``, as MoNuSeg has them; a layer with a name is a class."""

    name = "ImageScope XML"

    def find(self, listing: Listing) -> Pairing | str:
        """Take every XML file whose root is ``Annotations`` and that is called as an image."""
        if not isinstance(listing.format, RasterFormat):
            return ""
        of_name = {file.stem.rpartition("/")[2]: file for file in listing.files}
        shapes: dict[DataFile, Shapes] = {}
        for path in (path for path in listing.others if path.suffix.lower() == ".xml" and path.stem in of_name):
            root = _xml(path)
            if root is not None and root.tag == "Annotations":
                shapes[of_name[path.stem]] = [each for layer in root.iter("Annotation") for each in _of_layer(layer)]
        return _told(self.name, listing, shapes, Counter())


def _of_layer(layer: Element) -> Iterator[tuple[str, list[float]]]:
    name = layer.get("Name") or "object"
    for region in layer.iter("Region"):
        corners = [float(vertex.get(axis, "0")) for vertex in region.iter("Vertex") for axis in ("X", "Y")]
        # A click that became a region of one or two corners has no area.
        if len(corners) >= 6:
            yield name, corners


class ViaFiles(Layout):
    """Read a JSON file of the VGG Image Annotator: polygons, rectangles, circles and ellipses."""

    name = "VGG Image Annotator"

    def find(self, listing: Listing) -> Pairing | str:
        """Take every JSON file whose entries have ``filename`` and ``regions``."""
        if not isinstance(listing.format, RasterFormat):
            return ""
        shapes: dict[DataFile, Shapes] = {}
        others: Counter[str] = Counter()
        for entry in (entry for content in _json_files(listing) for entry in _via_entries(content)):
            file = _by_end(listing.files, str(entry["filename"]))
            for region in _listed(entry["regions"]):
                shape = region.get("shape_attributes", {})
                corners = _of_via(shape)
                if corners is None:
                    others[str(shape.get("name"))] += 1
                elif file is not None:
                    shapes.setdefault(file, []).append((_via_class(region.get("region_attributes", {})), corners))
        return _told(self.name, listing, shapes, others)


def _via_entries(content: object) -> list[Mapping[str, Any]]:
    held = content.get("_via_img_metadata", content) if isinstance(content, Mapping) else content
    entries = _listed(held)
    return [each for each in entries if isinstance(each, Mapping) and {"filename", "regions"} <= each.keys()]


def _listed(values: object) -> list[Any]:
    return list(values.values()) if isinstance(values, Mapping) else list(values) if isinstance(values, list) else []


def _of_via(shape: Mapping[str, Any]) -> list[float] | None:
    kind = shape.get("name")
    if kind == "polygon":
        return [float(value) for point in zip(shape["all_points_x"], shape["all_points_y"], strict=True) for value in point]
    if kind == "rect":
        x, y = float(shape["x"]), float(shape["y"])
        return _rectangle(x, y, x + float(shape["width"]), y + float(shape["height"]))
    return None


def _via_class(attributes: object) -> str:
    """Return the first attribute that a region has; a set of ticked names is its first."""
    first = next(iter(attributes.values()), None) if isinstance(attributes, Mapping) else None
    if isinstance(first, Mapping):
        first = next((name for name, ticked in first.items() if ticked), None)
    return str(first).strip() if first else "object"


class SuperviselyFiles(Layout):
    """Read Supervisely's ``ann/x.png.json`` for ``img/x.png``: polygons and rectangles."""

    name = "Supervisely"

    def find(self, listing: Listing) -> Pairing | str:
        """Take every JSON file with ``objects`` that is called as an image with its ending."""
        if not isinstance(listing.format, RasterFormat):
            return ""
        of_name = {(file.path.parent.parent, file.path.name): file for file in listing.files}
        shapes: dict[DataFile, Shapes] = defaultdict(list)
        others: Counter[str] = Counter()
        for path in (path for path in listing.others if path.name.lower().endswith(".json")):
            file = of_name.get((path.parent.parent, path.name[: -len(".json")]))
            content = _json(path) if file is not None else None
            if file is None or not isinstance(content, Mapping) or not isinstance(content.get("objects"), list):
                continue
            for each in content["objects"]:
                corners = _of_supervisely(each)
                if corners is None:
                    others[str(each.get("geometryType"))] += 1
                else:
                    shapes[file].append((str(each.get("classTitle", "object")), corners))
        return _told(self.name, listing, shapes, others)


def _of_supervisely(shape: Mapping[str, Any]) -> list[float] | None:
    points = shape.get("points", {})
    outer, holes = points.get("exterior", []), points.get("interior", [])
    if holes:
        return None
    if shape.get("geometryType") == "rectangle":
        (left, top), (right, bottom) = outer
        return _rectangle(float(left), float(top), float(right), float(bottom))
    return [float(value) for point in outer for value in point] if shape.get("geometryType") == "polygon" else None


def _told(layout: str, listing: Listing, shapes: Mapping[DataFile, Shapes], others: Counter[str]) -> Pairing | str:
    if others:
        kinds = ", ".join(f"{count} of {kind}" for kind, count in others.items())
        raise DataError(
            f"{listing.root}: {layout} files hold shapes that are no plain areas ({kinds}). Export masks or COCO, which hold "
            "them, or remove them."
        )
    if not any(shapes.values()):
        return ""
    return as_coco(layout, listing, sorted(shapes.items(), key=lambda each: each[0].stem))


def _rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def _by_end(files: Sequence[DataFile], name: str) -> DataFile | None:
    """Return the only file whose path ends in a name, as many of its folders as it needs."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    fitting = [file for file in files if parts and file.path.name == parts[-1]]
    for length in range(2, len(parts) + 1):
        closer = [file for file in fitting if file.path.parts[-length:] == parts[-length:]]
        fitting = closer or fitting
    return fitting[0] if len(fitting) == 1 else None


def _xml_roots(listing: Listing, tag: str) -> Iterable[Element]:
    if not isinstance(listing.format, RasterFormat):
        return
    for path in listing.others:
        root = _xml(path) if path.suffix.lower() == ".xml" else None
        if root is not None and root.tag == tag:
            yield root


def _xml(path: Path) -> Element | None:
    """Return the root of an XML file, or None where it is none; one that declares entities is left alone."""
    try:
        content = path.read_bytes() if path.stat().st_size <= _LARGEST else b""
        # No annotation tool writes a DTD; entities in one can grow without bound.
        return None if b"<!DOCTYPE" in content or b"<!ENTITY" in content else fromstring(content)
    except (OSError, ParseError, ValueError):
        return None


def _json_files(listing: Listing) -> Iterable[object]:
    for path in listing.others:
        if path.suffix.lower() == ".json":
            yield _json(path)


def _json(path: Path) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
