"""Splits by patient: seeded, stored, reusable, and easy to edit by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from medsam_tune.data.pairing import first_names
from medsam_tune.errors import DataError, RecipeError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Splits:
    """Hold which cases train, choose (val) and are reported (test).

    Attributes:
        train: Case ids.
        val: Case ids that early stopping and the best checkpoint look at.
        test: Case ids that nothing looks at before the end.
        how: How the split was made, for the record.
        patients: Case to patient where ``data.patient`` groups cases; empty where each case is a patient of its own.
        files: Case to the checksum of its files' content, so that other data of the same names are seen.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    how: Mapping[str, object] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def cases(self) -> tuple[str, ...]:
        """Return the cases of all parts, sorted."""
        return _ordered(case for part in PARTS for case in getattr(self, part))


@dataclass(frozen=True)
class SplitSettings:
    """State how patients are split.

    Attributes:
        seed: Another seed gives another split.
        val_fraction: Part of all patients.
        test_fraction: Part of all patients; unused with ``folds``.
        folds: k for cross-validation; then ``fold`` names the one that is tested.
        fold: 0 to folds - 1; without ``folds`` that of nnU-Net's ``file``.
        file: A stored or hand-written splits.json to use instead, or nnU-Net's splits_final.json.
        strict: Refuse names that look like several files of one patient, instead of warning, until ``data.patient`` is set.
    """

    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.2
    folds: int | None = None
    fold: int | None = None
    file: str | None = None
    strict: bool = False


def make_splits(
    case_ids: Iterable[str],
    *,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.2,
    folds: int | None = None,
    fold: int | None = None,
    patients: Mapping[str, str] | None = None,
) -> Splits:
    """Split the distinct patients at random, or take fold ``fold`` of ``folds`` as the test part and draw val from the rest.

    The order comes from a hash of seed and name, the same on every machine; over the folds each case is tested exactly once.

    Args:
        case_ids: The cases, each as often as it likes.
        seed: See ``SplitSettings``.
        val_fraction: See ``SplitSettings``.
        test_fraction: See ``SplitSettings``.
        folds: See ``SplitSettings``.
        fold: See ``SplitSettings``.
        patients: The patient of each case; without it every case is one.

    Raises:
        RecipeError: If a fraction or fold is out of range.
        DataError: If there are too few patients for three parts that are not empty.
    """
    check_settings(val_fraction=val_fraction, test_fraction=test_fraction, folds=folds, fold=fold)
    cases_of = _by_patient(case_ids, patients or {})
    order = sorted(cases_of, key=lambda patient: _draw(seed, patient))
    n_patients = len(order)
    if folds is None or fold is None:
        test = order[: max(1, round(n_patients * test_fraction))]
        how: dict[str, object] = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    else:
        test = order[fold::folds]
        how = {"seed": seed, "val_fraction": val_fraction, "folds": folds, "fold": fold}
    rest = [patient for patient in order if patient not in set(test)]
    n_val = max(1, round(n_patients * val_fraction))
    if not test or n_val >= len(rest) or n_patients < (folds or 0):
        raise DataError(
            f"{n_patients} patient{'s' * (n_patients != 1)} ({first_names(sorted(order))}) "
            f"{'are' if n_patients != 1 else 'is'} too few for train, val and test under {how}. "
            "Add patients, lower data.split.val_fraction and test_fraction, or correct data.patient or source.case_pattern."
        )
    train, val, tested = (
        _ordered(case for patient in part for case in cases_of[patient]) for part in (rest[n_val:], rest[:n_val], test)
    )
    return Splits(train, val, tested, how, patients or {})


def without_validation(
    cases: Iterable[str], *, seed: int, val_fraction: float, patients: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return training and validation cases of those that may be trained on, whole patients, drawn as ``make_splits`` draws.

    Args:
        cases: Of a fold that another tool made.
        seed: See ``SplitSettings``.
        val_fraction: Part of these cases' patients, at least one.
        patients: The patient of each case; a case that is not in it is one of its own.
    """
    cases_of = _by_patient(cases, patients)
    order = sorted(cases_of, key=lambda patient: _draw(seed, patient))
    n_val = max(1, round(len(order) * val_fraction))
    train, val = (_ordered(case for patient in part for case in cases_of[patient]) for part in (order[n_val:], order[:n_val]))
    return train, val


def _by_patient(case_ids: Iterable[str], patients: Mapping[str, str]) -> dict[str, list[str]]:
    cases_of: dict[str, list[str]] = {}
    for case in sorted(set(case_ids)):
        cases_of.setdefault(patients.get(case, case), []).append(case)
    return cases_of


def check_settings(*, val_fraction: float, test_fraction: float, folds: int | None, fold: int | None) -> None:
    """Refuse fractions outside 0..1 and folds that do not exist.

    Raises:
        RecipeError: With the recipe's key and the value.
    """
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise RecipeError(f"data.split.{name}: expected a fraction between 0 and 1, got {fraction}.")
    if (folds is None) != (fold is None):
        raise RecipeError(f"data.split.folds and data.split.fold belong together, got folds {folds} and fold {fold}.")
    if folds is not None and fold is not None and not (folds >= 2 and 0 <= fold < folds):
        raise RecipeError(f"data.split.fold: expected 0 <= fold < folds and folds of at least 2, got fold {fold} of {folds}.")


def _draw(seed: int, case: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{case}".encode(), digest_size=16).digest()


def _ordered(cases: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(cases))
