"""Where a run's split comes from: a file that the recipe names, the run's own, or a draw."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from medsam_tune.data.pairing import first_names
from medsam_tune.data.patients import likely_patients
from medsam_tune.data.split_file import load_splits, read_splits, save_splits, split_differences
from medsam_tune.data.splits import PARTS, Splits, SplitSettings, make_splits
from medsam_tune.errors import DataError, DataWarning

STORED = "splits.json"


def choose_splits(
    settings: SplitSettings,
    cases: Iterable[str],
    *,
    patients: Mapping[str, str] | None,
    files: Mapping[str, str],
    run_folder: Path | None,
    cohort: bool = False,
) -> Splits:
    """Load the run's own split, else ``data.split.file``, else draw one; a new one is stored in the run folder.

    Args:
        settings: The recipe's.
        cases: The cases of the data.
        patients: The patient of each case; None where the recipe has no ``data.patient``.
        files: The checksum of each case's files.
        run_folder: Where splits.json is kept; None keeps it nowhere.
        cohort: Test every case of data that share none with the run's training and validation.

    Raises:
        DataError: If a file does not fit the data, the run's own split does not fit the data or ``data.split.file``, patients
            are too few, or names look like several files of one patient and ``data.split.strict`` is set.
    """
    cases = tuple(cases)
    stored = None if run_folder is None else run_folder / STORED
    if stored is not None and stored.is_file():
        return _stored_splits(stored, settings, cases, patients, files, cohort=cohort)
    if settings.file is not None:
        splits = load_splits(Path(settings.file), cases, patients=patients, settings=settings)
    else:
        splits = _draw_splits(settings, cases, patients)
    splits = replace(splits, files=files)
    if stored is not None:
        save_splits(splits, stored)
    return splits


def _stored_splits(
    stored: Path,
    settings: SplitSettings,
    cases: tuple[str, ...],
    patients: Mapping[str, str] | None,
    files: Mapping[str, str],
    *,
    cohort: bool,
) -> Splits:
    """Load the split that a run began with; data or a file that differ from it are refused, another cohort aside."""
    then = read_splits(stored)
    differences = split_differences(then, cases, patients=patients, files=files)
    if settings.file is not None:
        named = load_splits(Path(settings.file), cases, patients=patients, settings=settings)
        if any(getattr(named, part) != getattr(then, part) for part in PARTS):
            raise DataError(f"{settings.file}: is another split than that of the continued run, {stored}. Start a new run.")
    elif differences:
        known = _known(then, cases, patients, files)
        if cohort and not known:
            return Splits((), (), cases, {"cohort": "all cases are tested"}, patients or {}, files)
        seen = f"; {len(known)} of them trained the run or chose its weights ({first_names(known)})" if cohort else ""
        raise DataError(
            f"{stored}: the data differ from those that the run was trained on: {differences.message()}{seen}. "
            "Put the data back as they were, or say which cases count with --data.split.file=FILE "
            f"({stored}, if the difference is meant)."
        )
    return load_splits(stored, cases, patients=patients)


def _known(then: Splits, cases: Iterable[str], patients: Mapping[str, str] | None, files: Mapping[str, str]) -> tuple[str, ...]:
    """Return the cases that a run trained on or chose its weights by: of that name, that patient or that content."""
    before = {*then.train, *then.val}
    people = {then.patients.get(case, case) for case in before}
    contents = {then.files[case] for case in before if case in then.files}
    of = patients or {}
    return tuple(case for case in cases if case in before or of.get(case, case) in people or files.get(case) in contents)


def _draw_splits(settings: SplitSettings, cases: tuple[str, ...], patients: Mapping[str, str] | None) -> Splits:
    likely = likely_patients(cases) if patients is None else None
    if likely is not None and settings.strict:
        raise DataError(likely.message())
    if likely is not None:
        warnings.warn(likely.message(), DataWarning, stacklevel=2)
    drawn = {name: value for name, value in asdict(settings).items() if name not in ("file", "strict")}
    return make_splits(cases, **drawn, patients=patients)
