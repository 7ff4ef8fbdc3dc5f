"""Splits by case: seeded, stored, reusable, and easy to edit by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsam_tune.data.pairing import first_names
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.files import read_json, write_json

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Splits:
    """Hold which cases train, choose (val) and are reported (test).

    Attributes:
        train: Case ids.
        val: Case ids that early stopping and the best checkpoint look at.
        test: Case ids that nothing looks at before the end.
        how: How the split was made, for the record.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    how: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitSettings:
    """State how cases are split.

    Attributes:
        seed: Another seed gives another split.
        val_fraction: Part of all cases.
        test_fraction: Part of all cases; unused with ``folds``.
        folds: k for cross-validation; then ``fold`` names the one that is tested.
        fold: 0 to folds - 1.
        file: A stored or hand-written splits.json to use instead.
    """

    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.2
    folds: int | None = None
    fold: int | None = None
    file: str | None = None


def make_splits(
    case_ids: Iterable[str],
    *,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.2,
    folds: int | None = None,
    fold: int | None = None,
) -> Splits:
    """Split the distinct cases at random, or take fold ``fold`` of ``folds`` as the test part and draw val from the rest.

    The order comes from a hash of seed and name, the same on every machine; over the folds each case is tested exactly once.

    Raises:
        RecipeError: If a fraction or fold is out of range.
        DataError: If there are too few cases for three parts that are not empty.
    """
    check_settings(val_fraction=val_fraction, test_fraction=test_fraction, folds=folds, fold=fold)
    order = sorted(set(case_ids), key=lambda case: _draw(seed, case))
    n_cases = len(order)
    if folds is None or fold is None:
        test = order[: max(1, round(n_cases * test_fraction))]
        how: dict[str, object] = {"seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction}
    else:
        test = order[fold::folds]
        how = {"seed": seed, "val_fraction": val_fraction, "folds": folds, "fold": fold}
    rest = [case for case in order if case not in set(test)]
    n_val = max(1, round(n_cases * val_fraction))
    if not test or n_val >= len(rest) or n_cases < (folds or 0):
        raise DataError(
            f"{n_cases} cases ({first_names(sorted(order))}) are too few for train, val and test under {how}. "
            "Add cases, lower data.split.val_fraction and test_fraction, or set data.source.case_pattern if images are grouped."
        )
    return Splits(_ordered(rest[n_val:]), _ordered(rest[:n_val]), _ordered(test), how)


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


def save_splits(splits: Splits, path: Path) -> None:
    """Write the splits as JSON, one case a line."""
    write_json(path, {**{part: getattr(splits, part) for part in PARTS}, "how": splits.how})


def load_splits(path: Path, case_ids: Iterable[str]) -> Splits:
    """Read a stored or hand-edited splits file and check it against the cases of the data.

    Raises:
        DataError: If the file cannot be read, a part is empty, a case stands in two parts or twice in one, is not in the data,
            or is missing from the file.
    """
    parts, how = _read_parts(path)
    listed = [case for part in PARTS for case in parts[part]]
    known = set(case_ids)
    empty = [part for part in PARTS if not parts[part]]
    if empty:
        raise DataError(f"{path}: {' and '.join(empty)} is empty. Give every part at least one case.")
    _refuse(path, sorted({case for case in listed if listed.count(case) > 1}), "stand in it twice. Keep each in one part")
    _refuse(path, sorted(set(listed) - known), "are not in the data. Remove them, or correct data.root or case_pattern")
    _refuse(path, sorted(known - set(listed)), "of the data are missing from it. Add each to train, val or test")
    return Splits(tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"]), {**how, "file": path.name})


def _read_parts(path: Path) -> tuple[dict[str, list[str]], dict[str, object]]:
    content = read_json(path, "Repair the file, or correct data.split.file.")
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object with the lists {', '.join(PARTS)}, got {type(content).__name__}.")
    parts: dict[str, list[str]] = {}
    for part in PARTS:
        cases = content.get(part)
        if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
            raise DataError(f"{path}: expected {part!r} to be a list of case names, got {cases!r}.")
        parts[part] = cases
    how = content.get("how", {})
    return parts, how if isinstance(how, dict) else {"how": how}


def _refuse(path: Path, cases: Sequence[str], why: str) -> None:
    if cases:
        raise DataError(f"{path}: {len(cases)} cases {why}: {first_names(cases)}.")


def _draw(seed: int, case: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{case}".encode(), digest_size=16).digest()


def _ordered(cases: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(cases))
