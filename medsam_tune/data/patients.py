"""Which patient a case belongs to: a split never cuts a patient.

``data.patient`` is ``header`` (the files name their patient), the path of a ``.csv`` file with the columns ``case`` and
``patient``, or a regular expression whose first group, searched in the case's name, is the patient. Without it the files' own
patients count where every case names one, as in DICOM; else every case is a patient of its own.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam_tune.data.pairing import first_names
from medsam_tune.errors import DataError, RecipeError

HEADER = "header"
COLUMNS = ("case", "patient")

# A stem with a number in it, then a counter that may have a word before it: patient001_frame12, 2022VAS_slice_1128, p1/s2.
_COUNTED = re.compile(r"^(?P<stem>.*\d.*?)(?P<between>[_\-. /](?:[A-Za-z]+[_\-. ]?)?)\d+$")
# A folder of cases that is numbered itself, as TrainingData_Part1, is no patient.
_PORTION = re.compile(r"(?:part|pt|fold|batch|set|split|site|center|centre|subset|grade|stage)[_\- ]?\d+$", re.IGNORECASE)
# Both eyes, knees or breasts of one patient: Image_01L and Image_01R.
_SIDE = r"[_\- ]?(?:L|R|OD|OS|left|right|Left|Right|LEFT|RIGHT)"
_SIDED = re.compile(rf"^(?P<stem>.*\d){_SIDE}$")


@dataclass(frozen=True)
class LikelyPatients:
    """Say that names look like several files of one patient.

    Attributes:
        pattern: A ``data.patient`` that groups them.
        n_cases: How many cases there are.
        n_patients: How many patients the pattern finds.
        example: Two names that look like one patient's.
    """

    pattern: str
    n_cases: int
    n_patients: int
    example: tuple[str, str]

    def message(self) -> str:
        """Return what the user should know, and do."""
        first, second = self.example
        return (
            f"data.patient: {first} and {second} look like files of one patient ({self.n_cases} cases of {self.n_patients} "
            "patients), but each counts as a patient of its own, so one patient may train and test. Set data.patient: "
            f"'{self.pattern}', or data.patient: '^(.+)$' if each is another patient."
        )


def stated_rule(rule: str) -> str:
    """Return ``data.patient`` for a text that travels: where a table lies is left out.

    Examples:
        >>> stated_rule("/scans/DOE/patients.csv")
        'a CSV file'
    """
    return "a CSV file" if _is_table(rule) else rule


def patients_of(cases: Mapping[str, str | None], rule: str | None) -> dict[str, str]:
    """Return the patient of each case.

    A patient that a header names is recorded as a checksum, so that no name stands in a split file.

    Args:
        cases: Case to the patient that its files' header names, or None.
        rule: ``data.patient``.

    Raises:
        RecipeError: If the rule is no regular expression with a group.
        DataError: If a case gets no patient; all such cases are counted and the first named.
    """
    if rule is None:
        return {case: case for case in cases}
    if rule == HEADER:
        found: dict[str, str | None] = {case: None if name is None else hidden_patient(name) for case, name in cases.items()}
        remedy = "their files name none. Set data.patient to a pattern or a CSV file"
    elif _is_table(rule):
        table = _read_table(Path(rule).expanduser())
        found = {case: table.get(case) for case in cases}
        remedy = f"{rule} has no row for them. Add rows of {' and '.join(COLUMNS)}"
    else:
        pattern = _compile(rule)
        found = {case: match[1] if (match := pattern.search(case)) else None for case in cases}
        remedy = f"data.patient {rule!r} does not match their names. Change the pattern"
    missing = sorted(case for case, patient in found.items() if not patient)
    if missing:
        raise DataError(f"data.patient: {len(missing)} cases have no patient ({first_names(missing)}): {remedy}.")
    return {case: patient for case, patient in found.items() if patient}


def patient_rule(cases: Mapping[str, str | None], rule: str | None) -> str | None:
    """Return ``data.patient``, or ``header`` where it is not set and the files of every case name their patient.

    Args:
        cases: As for ``patients_of``.
        rule: ``data.patient``.
    """
    return HEADER if rule is None and cases and all(cases.values()) else rule


def likely_patients(cases: Iterable[str]) -> LikelyPatients | None:
    r"""Tell whether names look like several files of one patient: a common stem with a counter.

    A stem without a digit is taken for the name of the data set (``hippocampus_015``), and so is one that all names share.

    Examples:
        >>> likely_patients(["patient001_frame01", "patient001_frame12", "patient002_frame01"]).pattern
        '^(.+)_frame\\d+$'
        >>> likely_patients(["hippocampus_015", "hippocampus_016"]) is None
        True
    """
    names = sorted(set(cases))
    if (told := _sides(names) or _folders(names)) is not None:
        return told
    matches = {name: match for name in names if (match := _COUNTED.match(name)) and not _PORTION.search(match["stem"])}
    stems = Counter(match["stem"] for match in matches.values())
    repeated = [name for name, match in matches.items() if stems[match["stem"]] > 1]
    if not repeated or len(stems) + len(names) - len(matches) < 2:
        return None
    between = {match["between"] for match in matches.values()}
    middle = re.escape(between.pop()) if len(between) == 1 else r"[_\-. /](?:[A-Za-z]+[_\-. ]?)?"
    pattern = rf"^(.+){middle}\d+$" if len(matches) == len(names) else rf"^(.+?)(?:{middle}\d+)?$"
    n_patients = len(set(patients_of(dict.fromkeys(names), pattern).values()))
    return LikelyPatients(pattern, len(names), n_patients, (repeated[0], repeated[1]))


def _sides(names: Sequence[str]) -> LikelyPatients | None:
    """Tell whether all names end in a side, and some stem has both."""
    stems = [match["stem"] for name in names if (match := _SIDED.match(name))]
    counts = Counter(stems)
    twice = [name for name, stem in zip(names, stems, strict=False) if counts[stem] > 1]
    if len(stems) < len(names) or not twice or len(set(stems)) < 2:
        return None
    return LikelyPatients(rf"^(.*\d){_SIDE}$", len(names), len(set(stems)), (twice[0], twice[1]))


def _folders(names: Sequence[str]) -> LikelyPatients | None:
    """Tell whether files are called after a folder that they lie in, some of them in one: ``p01/p01_2CH``, ``p01/a/p01_02``."""
    for level in range(min((name.count("/") for name in names), default=0)):
        of_name = {name: name.split("/")[level] for name in names}
        stems = Counter(of_name.values())
        named = all(name.rpartition("/")[2].startswith(folder) for name, folder in of_name.items())
        if named and 1 < len(stems) < len(names):
            first = next(folder for folder, count in stems.items() if count > 1)
            one, other, *_ = (name for name, folder in of_name.items() if folder == first)
            return LikelyPatients(rf"^(?:[^/]+/){{{level}}}([^/]+)/", len(names), len(stems), (one, other))
    return None


def _compile(rule: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise RecipeError(
            f"data.patient: {rule!r} is no regular expression ({error}), no .csv file and not {HEADER!r}. Correct it."
        ) from error
    if pattern.groups < 1:
        raise RecipeError(f"data.patient: {rule!r} has no group. Put the patient in brackets: '^([^_]+)_'.")
    return pattern


def _is_table(rule: str) -> bool:
    return rule.lower().endswith(".csv")


def _read_table(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Correct data.patient.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no CSV text in UTF-8 ({error}). Save it as such.") from error
    columns = list(rows[0]) if rows else []
    if not set(COLUMNS) <= set(columns):
        raise DataError(f"{path}: expected a first line with the columns {', '.join(COLUMNS)}, got {columns}.")
    table: dict[str, str] = {}
    for row in rows:
        case, patient = ((row[column] or "").strip() for column in COLUMNS)
        if table.setdefault(case, patient) != patient:
            raise DataError(f"{path}: case {case!r} has two patients. Keep one row for each case.")
    return table


def hidden_patient(name: str) -> str:
    """Return what stands for a patient in every file that is written: a checksum of the name."""
    return f"patient-{hashlib.blake2b(name.strip().encode(), digest_size=6).hexdigest()}"
