"""The file that keeps a split, and how it differs from the data that are there now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam_tune.data.pairing import first_names
from medsam_tune.data.splits import PARTS, Splits, SplitSettings, without_validation
from medsam_tune.errors import DataError
from medsam_tune.files import read_json, write_json

NNUNET_SPLITS = "splits_final.json"
"""Name that nnU-Net gives the file of its folds."""


@dataclass(frozen=True)
class SplitDifferences:
    """Hold how a stored split and the present data differ.

    Attributes:
        gone: Cases of the split that the data no longer hold.
        new: Cases of the data that the split does not know: nobody knows whether they were trained on.
        changed: Cases whose files hold other bytes than those that the split was made of.
        regrouped: Cases that belong to another patient than then.
    """

    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    regrouped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether there is any difference."""
        return bool(self.gone or self.new or self.changed or self.regrouped)

    def message(self) -> str:
        """Return the differences as part of a sentence, empty where there are none."""
        parts = (
            (self.gone, "are gone"),
            (self.new, "are new"),
            (self.changed, "have other files"),
            (self.regrouped, "belong to another patient"),
        )
        return "; ".join(f"{len(cases)} cases {what} ({first_names(cases)})" for cases, what in parts if cases)


def split_differences(
    stored: Splits,
    cases: Iterable[str],
    *,
    patients: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> SplitDifferences:
    """Compare a stored split with the data that are there now.

    Args:
        stored: From ``read_splits``.
        cases: The cases of the data.
        patients: The patient of each case now; None leaves patients out.
        files: The checksum of each case's files now, from ``check_cases``; cases that have none on one side are not compared.

    Examples:
        >>> split_differences(Splits(("a",), ("b",), ("c",)), ["a", "c", "d"]).message()
        '1 cases are gone (b); 1 cases are new (d)'
    """
    known, present = set(stored.cases()), set(cases)
    both = sorted(known & present)
    files = files or {}
    changed = [case for case in both if case in files and stored.files.get(case, files[case]) != files[case]]
    regrouped: list[str] = []
    if patients is not None:
        regrouped = [case for case in both if stored.patients.get(case, case) != patients.get(case, case)]
    gone, new = sorted(known - present), sorted(present - known)
    return SplitDifferences(tuple(gone), tuple(new), tuple(changed), tuple(regrouped))


def save_splits(splits: Splits, path: Path) -> None:
    """Write the splits as JSON, one case a line, with patients and checksums where there are any."""
    extras = {name: getattr(splits, name) for name in ("patients", "files") if getattr(splits, name)}
    write_json(path, {**{part: getattr(splits, part) for part in PARTS}, "how": splits.how, **extras})


def read_splits(path: Path) -> Splits:
    """Read a stored or hand-edited splits file.

    Raises:
        DataError: If the file cannot be read, a part is missing or empty, or a case stands in it twice.
    """
    content = read_json(path, "Repair the file, or correct data.split.file.")
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object with the lists {', '.join(PARTS)}, got {type(content).__name__}.")
    parts = {part: _cases(path, part, content.get(part)) for part in PARTS}
    how = content.get("how", {})
    # Another cohort than the run's was tested as a whole: it trained nothing.
    needed = ("test",) if isinstance(how, dict) and "cohort" in how else PARTS
    empty = [part for part in needed if not parts[part]]
    if empty:
        raise DataError(f"{path}: {' and '.join(empty)} is empty. Give every part at least one case.")
    counts = Counter(case for part in PARTS for case in parts[part])
    _refuse(path, sorted(case for case, count in counts.items() if count > 1), "stand in it twice. Keep each in one part")
    patients, files = (_strings(path, name, content.get(name, {})) for name in ("patients", "files"))
    record = how if isinstance(how, dict) else {"how": how}
    return Splits(parts["train"], parts["val"], parts["test"], record, patients, files)


def read_fold(path: Path, folds: Sequence[object], settings: SplitSettings, patients: Mapping[str, str] | None) -> Splits:
    """Read one fold of nnU-Net's ``splits_final.json``: a list of objects with ``train`` and ``val``.

    nnU-Net chooses no weights by ``val``: it is what a fold reports, so it is tested here, and what chooses the checkpoint is
    drawn from ``train``. Source: MIC-DKFZ/nnUNet @ cf2e25a,
    documentation/manual_data_splits.md.

    Args:
        path: Of the file.
        folds: What it holds.
        settings: ``fold`` names the one; ``val_fraction`` and ``seed`` draw from its training cases.
        patients: The patient of each case.

    Raises:
        DataError: If no fold is named or there is none of that number, or it lacks a list.
    """
    if settings.fold is None or not 0 <= settings.fold < len(folds):
        raise DataError(f"{path}: holds nnU-Net's {len(folds)} folds. Say which with data.split.fold, 0 to {len(folds) - 1}.")
    fold = folds[settings.fold]
    if not isinstance(fold, dict):
        raise DataError(f"{path}: expected fold {settings.fold} to be an object with train and val, got {type(fold).__name__}.")
    rest, test = (_cases(path, part, fold.get(part)) for part in ("train", "val"))
    train, val = without_validation(rest, seed=settings.seed, val_fraction=settings.val_fraction, patients=patients or {})
    if not train or not test:
        raise DataError(
            f"{path}: fold {settings.fold} has {len(rest)} cases in train and {len(test)} in val, too few for three parts."
        )
    how = {"fold": settings.fold, "folds": len(folds), "seed": settings.seed, "val_fraction": settings.val_fraction}
    return Splits(train, val, test, how)


def load_splits(
    path: Path,
    case_ids: Iterable[str],
    *,
    patients: Mapping[str, str] | None = None,
    settings: SplitSettings | None = None,
) -> Splits:
    """Read a splits file, ours or nnU-Net's, and check it against the cases of the data.

    Args:
        path: The file.
        case_ids: The cases of the data.
        patients: The patient of each case, from ``data.patient``; the file's own patients count without it.
        settings: Name the fold of nnU-Net's file.

    Raises:
        DataError: As ``read_splits`` and ``read_fold``, or if a case is not in the data or missing from the file, or one
            patient stands in two parts.
    """
    content = read_json(path, "Repair the file, or correct data.split.file.")
    of_nnunet = isinstance(content, list) and bool(content) and isinstance(content[0], dict)
    splits = read_fold(path, content, settings or SplitSettings(), patients) if of_nnunet else read_splits(path)
    listed, known = set(splits.cases()), set(case_ids)
    _refuse(path, sorted(listed - known), "are not in the data. Remove them, or correct data.root or case_pattern")
    _refuse(path, sorted(known - listed), "of the data are missing from it. Add each to train, val or test")
    patients = splits.patients if patients is None else patients
    parts_of: dict[str, set[str]] = {}
    for part in PARTS:
        for case in getattr(splits, part):
            parts_of.setdefault(patients.get(case, case), set()).add(part)
    torn = sorted(patient for patient, parts in parts_of.items() if len(parts) > 1)
    if torn:
        raise DataError(
            f"{path}: {len(torn)} patients stand in two parts: {first_names(torn)}. Move their cases together, "
            "or correct data.patient."
        )
    return Splits(splits.train, splits.val, splits.test, {**splits.how, "file": path.name}, patients, splits.files)


def _cases(path: Path, part: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(case, str) for case in value):
        raise DataError(f"{path}: expected {part!r} to be a list of case names, got {value!r}.")
    return tuple(value)


def _strings(path: Path, name: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise DataError(f"{path}: expected {name!r} to be an object of case names and strings. Remove it, or repair the file.")
    return value


def _refuse(path: Path, cases: Sequence[str], why: str) -> None:
    if cases:
        raise DataError(f"{path}: {len(cases)} cases {why}: {first_names(cases)}.")
