"""Names of classes that lie beside masks: ``class_dict.csv``, CVAT's ``labelmap.txt``, Roboflow's ``_classes.csv``."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_TABLES = ("*class_dict*.csv", "_classes.csv", "labelmap.txt")
_LARGEST = 1 << 20


@dataclass(frozen=True)
class ClassTable:
    """Hold what a file calls the colours and values of masks.

    Attributes:
        path: The file.
        colours: Colour 0xRRGGBB to name.
        values: Mask value to name.
    """

    path: Path
    colours: Mapping[int, str] = field(default_factory=dict)
    values: Mapping[int, str] = field(default_factory=dict)


def find_class_table(root: Path) -> ClassTable | None:
    """Return the first table of classes in a folder or in one below it; None where there is none that can be read."""
    for pattern in _TABLES:
        for path in (*sorted(root.glob(pattern)), *sorted(root.glob(f"*/{pattern}"))):
            table = read_class_table(path)
            if table is not None:
                return table
    return None


def read_class_table(path: Path) -> ClassTable | None:
    """Return what a table says, or None where it is another kind of file.

    The first row of colours that are no greys is value 0, as palettes are numbered; greys are the values themselves.
    """
    try:
        if path.stat().st_size > _LARGEST:
            return None
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None
    if path.suffix.lower() == ".txt":
        rows = [line.split(":")[:2] for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return _of_colours(path, [(row[0], row[1].split(",")) for row in rows if len(row) == 2])
    lines = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    if len(lines) < 2:
        return None
    head = [name.lower() for name in lines[0]]
    if "pixel value" in head and "class" in head:
        value, name = head.index("pixel value"), head.index("class")
        return ClassTable(path, values={int(row[value]): _plain(row[name]) for row in lines[1:] if row[value].isdigit()})
    named = next((place for place, word in enumerate(head) if word in ("name", "class", "label")), None)
    places = [next((place for place, word in enumerate(head) if word in (full[0], full)), None) for full in _CHANNELS]
    if named is None or None in places:
        return None
    return _of_colours(path, [(row[named], [row[place] for place in places if place is not None]) for row in lines[1:]])


_CHANNELS = ("red", "green", "blue")


def _of_colours(path: Path, rows: list[tuple[str, list[str]]]) -> ClassTable | None:
    table: list[tuple[str, tuple[int, int, int]]] = []
    for name, cells in rows:
        if len(cells) != 3 or not all(re.fullmatch(r"\s*\d{1,3}\s*", cell) and int(cell) < 256 for cell in cells):
            return None
        table.append((_plain(name), (int(cells[0]), int(cells[1]), int(cells[2]))))
    if not table:
        return None
    greys = all(red == green == blue for _, (red, green, blue) in table)
    values = {rgb[0]: name for name, rgb in table} if greys else {place: name for place, (name, _) in enumerate(table)}
    return ClassTable(path, {red << 16 | green << 8 | blue: name for name, (red, green, blue) in table}, values)


def _plain(name: str) -> str:
    """Return a name that a recipe can hold."""
    return re.sub(r"[^\w\- ]+", "_", name.strip()) or "label"
