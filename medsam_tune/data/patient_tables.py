"""Patients that a table in the data folder tells, such as the ``metadata.csv`` of ISIC or HAM10000.

One column names the images, another the patient, the subject or the lesion that they show. A split that knows it never trains
on one photograph of a mole and tests on another.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath

from medsam_tune.data.layouts.tables import columns_of, find_tables
from medsam_tune.data.patients import COLUMNS, hidden_patient
from medsam_tune.files import write_text

_WORDS = ("patient", "subject", "participant", "person", "lesion")
_COLUMN = re.compile(rf"(?P<word>{'|'.join(_WORDS)})[ _\-.]?(?:id|no|nr|number|name|code)?", re.IGNORECASE)


@dataclass(frozen=True)
class PatientTable:
    """Hold the patient of every image, as a table in the folder tells it.

    Attributes:
        file: The table, below the data folder.
        column: Its column of patients.
        patients: Image to patient, as a checksum: no name leaves the table.
    """

    file: str
    column: str
    patients: Mapping[str, str]

    def write(self, path: Path) -> Path:
        """Write the file that ``data.patient`` reads.

        Raises:
            DataError: If it cannot be written.
        """
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *sorted(self.patients.items())])
        return write_text(path, text.getvalue())


def find_patient_table(root: Path, images: Collection[str]) -> PatientTable | None:
    """Return the first table that gives every image a patient, and some patient several images; None where none does.

    Args:
        root: The data folder.
        images: Names of the images: paths below the folder without ending.
    """
    for path in find_tables(root):
        columns = columns_of(path)
        for column in _patient_columns(columns):
            for name, cells in columns.items():
                found = _patients(images, cells, columns[column]) if name != column else None
                if found is not None and len(set(found.values())) < len(found):
                    return PatientTable(path.relative_to(root).as_posix(), column, found)
    return None


def _patient_columns(columns: Collection[str]) -> list[str]:
    """Return the columns whose heads say that they hold patients, the word that groups most first."""
    told = {column: match["word"].lower() for column in columns if (match := _COLUMN.fullmatch(column.strip()))}
    return sorted(told, key=lambda column: _WORDS.index(told[column]))


def _patients(images: Collection[str], cells: Sequence[str], patients: Sequence[str]) -> dict[str, str] | None:
    """Return the patient of each image; None where the cells do not name all of them, each with one patient."""
    told: dict[str, set[str]] = {}
    for cell, patient in zip(cells, patients, strict=True):
        name = PurePosixPath(cell.strip().replace("\\", "/"))
        for key in {name.name, name.stem}:
            told.setdefault(key, set()).add(patient.strip())
    found = {image: told.get(PurePosixPath(image).name, set()) for image in images}
    if not found or any(len(each) != 1 or "" in each for each in found.values()):
        return None
    return {image: hidden_patient(next(iter(each))) for image, each in found.items()}
