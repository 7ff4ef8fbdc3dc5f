"""Boxes and points of new images from a CSV or JSON file, COCO's boxes too."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medsam_tune.errors import DataError
from medsam_tune.files import read_json

Kind = Literal["boxes", "points"]
_COLUMNS: dict[Kind, tuple[str, ...]] = {"boxes": ("image", "x1", "y1", "x2", "y2"), "points": ("image", "x", "y")}


@dataclass(frozen=True)
class DrawnObject:
    """Hold what somebody drew of one object, in pixels of the image as it is shown.

    Attributes:
        image: The image's or volume's name as the file has it.
        slice: Position along the axis of the run; None: the single image, or every slice of the volume.
        label: What the object is called; empty where nobody says.
        box: (x1, y1, x2, y2), the last column and row included, or None.
        points: (x, y, 1 foreground or 0 background), any number.
    """

    image: str
    slice: int | None = None
    label: str = ""
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float, int], ...] = ()


def read_prompts(path: Path, kind: Kind) -> list[DrawnObject]:
    """Read a CSV or JSON file of boxes or points.

    Boxes have the columns ``image, x1, y1, x2, y2`` and perhaps ``label`` and ``slice``; points ``image, x, y`` and perhaps
    ``label`` (1 foreground, 0 background), ``object`` (points of one object belong together) and ``slice``. JSON is a list of
    objects with these keys, or, for boxes, a COCO file: its boxes are (x, y, width, height), its categories the labels.

    Raises:
        DataError: If the file cannot be read, a column is missing or a value is no number; the message names the row.
    """
    rows = _json_rows(path, kind) if path.suffix.lower() == ".json" else _csv_rows(path)
    if not rows:
        raise DataError(f"{path}: holds no {kind}. Give one row for each, with the columns {', '.join(_COLUMNS[kind])}.")
    if kind == "boxes":
        return [_box(path, number, row) for number, row in enumerate(rows, start=1)]
    return _joined(_point(path, number, row) for number, row in enumerate(rows, start=1))


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [dict(row) for row in csv.DictReader(file, skipinitialspace=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Give a CSV file in UTF-8 with a header, or .json.") from error


def _json_rows(path: Path, kind: Kind) -> list[dict[str, Any]]:
    content = read_json(path, "Give a list of objects, or a COCO file.")
    if isinstance(content, Mapping) and kind == "boxes" and {"images", "annotations"} <= content.keys():
        return _coco_rows(path, content)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        keys = ", ".join(_COLUMNS[kind])
        raise DataError(f"{path}: expected a list of objects with the keys {keys}, or a COCO file of boxes.")
    return content


def _coco_rows(path: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    try:
        files = {image["id"]: image["file_name"] for image in content["images"]}
        names = {category["id"]: category["name"] for category in content.get("categories", [])}
        rows = []
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            # COCO's box ends behind the last pixel, ours on it.
            corners = {"x1": x, "y1": y, "x2": x + width - 1, "y2": y + height - 1}
            category = annotation.get("category_id", "")
            rows.append({"image": files[annotation["image_id"]], **corners, "label": names.get(category, category)})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is no COCO file of boxes ({type(error).__name__}: {error}). Repair it.") from error
    return rows


def _box(path: Path, number: int, row: Mapping[str, Any]) -> DrawnObject:
    x1, y1, x2, y2 = (_number(path, number, row, name) for name in ("x1", "y1", "x2", "y2"))
    return replace(_drawn(path, number, row), label=_text(row, "label"), box=(x1, y1, x2, y2))


def _point(path: Path, number: int, row: Mapping[str, Any]) -> DrawnObject:
    label = _text(row, "label") or "1"
    if label not in ("0", "1"):
        raise DataError(f"{path}: row {number}: label of a point is 1 (foreground) or 0 (background), got {label!r}.")
    point = (_number(path, number, row, "x"), _number(path, number, row, "y"), int(label))
    return replace(_drawn(path, number, row), label=_text(row, "object"), points=(point,))


def _joined(points: Iterable[DrawnObject]) -> list[DrawnObject]:
    """Return one object for all points of one image, slice and object, in order of appearance."""
    found: dict[tuple[str, int | None, str], DrawnObject] = {}
    for point in points:
        key = (point.image, point.slice, point.label)
        found[key] = replace(found[key], points=found[key].points + point.points) if key in found else point
    return list(found.values())


def _drawn(path: Path, number: int, row: Mapping[str, Any]) -> DrawnObject:
    image = _text(row, "image")
    if not image:
        raise DataError(f"{path}: row {number}: has no 'image'. Columns found: {', '.join(map(str, row))}.")
    return DrawnObject(image, int(_number(path, number, row, "slice")) if _text(row, "slice") else None)


def _number(path: Path, number: int, row: Mapping[str, Any], name: str) -> float:
    try:
        value = float(_text(row, name))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: row {number}: expected a number in {name!r}, got {row.get(name)!r}. Correct the file.")
    return value


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value).strip()
