"""A table of images and their masks, for folders whose names do not say what belongs together.

A CSV file with the columns ``image`` and ``mask``, and perhaps ``label`` (the class that a mask file is for) and ``instance``
(the one object that it shows). An image with several masks has several rows. Paths are below the data folder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from medsam_tune.data.mask_files import MaskFile
from medsam_tune.data.pairing import first_names
from medsam_tune.errors import DataError, all_usable
from medsam_tune.files import write_text

COLUMNS = ("image", "mask", "label", "instance")
"""What the columns are called; the last two may be left out."""

Row = tuple[Path, MaskFile]
"""An image and one of its masks."""


def read_table(path: Path, root: Path) -> list[Row]:
    """Return the rows of a table in its order.

    Args:
        path: The CSV file; a relative path lies below ``root``.
        root: The data folder, below which the paths in the table lie.

    Raises:
        DataError: If the table cannot be read, lacks a column, or has no row.
    """
    place = path if path.is_absolute() else root / path
    try:
        with place.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS[:2] if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{place}: has no column {missing[0]!r}. Name the columns {', '.join(COLUMNS)} in the first line."
                )
            rows = [_row(line, root) for line in reader if any(line.values())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{place}: cannot be read as a table of pairs ({error}). Correct data.source.pairs.") from error
    if not rows:
        raise DataError(f"{place}: holds no pair. Write one line for each image with its mask.")
    return rows


def _row(line: dict[str, str | None], root: Path) -> Row:
    image, mask, label, instance = ((line.get(column) or "").strip() for column in COLUMNS)
    return root / image, MaskFile(root / mask, label, instance)


def named_rows(
    rows: Iterable[Row], name_of: Callable[[Path], str], where: str
) -> tuple[dict[str, Path], dict[str, tuple[MaskFile, ...]]]:
    """Return the images of a table by name, and the masks of each.

    Raises:
        PartlyUsable: If a file is missing, or two images have one name.
    """
    images: dict[str, Path] = {}
    masks: dict[str, tuple[MaskFile, ...]] = {}
    faults: list[str] = []
    gone: list[str] = []
    for image, mask in rows:
        if absent := [str(path) for path in (image, mask.path) if not path.exists()]:
            gone += absent
            continue
        name = name_of(image)
        if images.setdefault(name, image) != image:
            faults.append(f"{image}: has the same name {name!r} as {images[name]}. Keep one file for each image.")
            continue
        masks[name] = (*masks.get(name, ()), mask)
    if gone:
        found = first_names(sorted(set(gone)))
        faults.append(f"{where}: names {len(set(gone))} files that are not there: {found}. Correct the table.")
    return all_usable((images, masks), faults, f"{where}: {len(faults)} faults")


def table_text(rows: Iterable[Row], root: Path) -> str:
    r"""Return the CSV text of a table; columns that nothing stands in are left out.

    Example:
        >>> table_text([(Path("d/a.jpg"), MaskFile(Path("d/a.png")))], Path("d"))
        'image,mask\na.jpg,a.png\n'
    """
    lines = [
        [image.relative_to(root).as_posix(), mask.path.relative_to(root).as_posix(), mask.label, mask.instance]
        for image, mask in rows
    ]
    used = [column for column in range(len(COLUMNS)) if column < 2 or any(line[column] for line in lines)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([COLUMNS[column] for column in used])
    writer.writerows([[line[column] for column in used] for line in lines])
    return text.getvalue()


def write_table(path: Path, rows: Iterable[Row], root: Path) -> Path:
    """Write a table, whole or not at all.

    Raises:
        DataError: If it cannot be written.
    """
    return write_text(path, table_text(rows, root))
