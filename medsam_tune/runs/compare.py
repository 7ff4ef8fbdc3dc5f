"""Runs held against each other on the test cases that they share."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from medsam_tune.data.pairing import first_names
from medsam_tune.data.split_file import read_splits
from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.case_tables import CaseTable, PairedDifference, compare_in_pairs, read_case_table
from medsam_tune.files import write_text
from medsam_tune.training.run_folder import RunFolder

COLUMNS = ("first", "second", "difference", "ci95_low", "ci95_high", "ci95_method", "n_cases", "p", "p_holm")


@dataclass(frozen=True)
class Comparison:
    """Hold the figures of several runs over the same cases.

    Attributes:
        tables: The cases of each run, by its folder as it was given.
        differences: Of every two of them.
    """

    tables: Mapping[str, CaseTable]
    differences: Sequence[PairedDifference]

    def write_csv(self, path: Path) -> Path:
        """Write a row for each pair, atomically.

        Raises:
            DataError: If the file cannot be written.
        """
        buffer = StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for pair in self.differences:
            ends = ("", "", "") if pair.interval is None else (pair.interval.low, pair.interval.high, pair.interval.method)
            values = (pair.mean, *ends, pair.n_cases, pair.p, pair.p_holm)
            writer.writerow([pair.first, pair.second, *("" if _undefined(value) else value for value in values)])
        write_text(path, buffer.getvalue())
        return path


def compare_runs(folders: Sequence[str | Path]) -> Comparison:
    """Compare every two of several tested runs, case by case.

    Args:
        folders: Runs, or pooled repetitions of runs; two at least.

    Raises:
        RecipeError: If there are fewer than two, one has not been tested, or their test cases differ; the message names them.
        DataError: If a table cannot be read.

    Examples:
        >>> compare_runs(["runs/a/lora/TIME", "runs/a/msa/TIME"]).differences[0].mean  # doctest: +SKIP
    """
    names = list(dict.fromkeys(str(folder) for folder in folders))
    if len(names) < 2:
        raise RecipeError(f"compare: expected two runs or more, got {len(names)}. `medsam-tune runs list` shows them.")
    tables = {name: _table(Path(name)) for name in names}
    first, *others = names
    for other in others:
        _check_same_cases(first, other, tables)
        _check_same_files(first, other, tables[first].cases)
    return Comparison(tables, compare_in_pairs(tables))


def _table(folder: Path) -> CaseTable:
    path = RunFolder(folder.expanduser()).test_cases
    if not path.is_file():
        inside = sorted(str(found.parent) for found in folder.expanduser().glob(f"*/{path.name}"))
        if inside:
            raise RecipeError(f"{folder}: holds runs and is none. Name one of them, such as {inside[-1]}.")
        raise RecipeError(f"{folder}: has no {path.name}, so it is no run that was tested. Run `medsam-tune test {folder}`.")
    return read_case_table(path)


def _check_same_cases(first: str, other: str, tables: Mapping[str, CaseTable]) -> None:
    ours, theirs = tables[first], tables[other]
    for what, here, there in (("test cases", ours.cases, theirs.cases), ("labels", ours.labels, theirs.labels)):
        more = {first: sorted(here - there), other: sorted(there - here)}
        if here != there:
            only = "; ".join(f"only {name} has {first_names(names)}" for name, names in more.items() if names)
            raise RecipeError(
                f"{other}: its {len(there)} {what} are not the {len(here)} of {first}, so nothing can be paired: {only}. "
                "Compare runs of the same data, split and target."
            )


def _check_same_files(first: str, other: str, cases: frozenset[str]) -> None:
    """Refuse cases that have the same names and other files; what knows no checksums, such as pooled runs, is believed."""
    ours, theirs = (_checksums(Path(name)) for name in (first, other))
    differ = sorted(case for case in cases if case in ours and case in theirs and ours[case] != theirs[case])
    if differ:
        raise RecipeError(
            f"{other}: {len(differ)} of its test cases have other files than those of {first} ({first_names(differ)}), though "
            "their names are the same. Compare runs of the same data."
        )


def _checksums(folder: Path) -> Mapping[str, str]:
    splits = RunFolder(folder.expanduser()).splits
    return read_splits(splits).files if splits.is_file() else {}


def _undefined(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
