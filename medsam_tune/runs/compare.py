"""Runs held against each other on the test cases that they share."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import StringIO
from pathlib import Path

from medsam_tune.data.pairing import first_names
from medsam_tune.data.split_file import read_splits
from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.case_tables import CaseTable, PairedDifference, compare_in_pairs, read_case_table
from medsam_tune.files import write_text
from medsam_tune.runs.run import Run
from medsam_tune.training.console import say
from medsam_tune.training.pooling import pooled_runs, write_pooled
from medsam_tune.training.run_folder import RunFolder

COLUMNS = ("first", "second", "difference", "ci95_low", "ci95_high", "ci95_method", "n_cases", "p", "p_holm")


@dataclass(frozen=True)
class Comparison:
    """Hold the figures of several runs over the same cases.

    Attributes:
        tables: The cases of each run, by its folder as it was given.
        differences: Of every two of them.
        scored: Where the figures of each lie: the folder itself, or that of a test on other data.
        data: The data that all were tested on for this, or None for those of their own.
    """

    tables: Mapping[str, CaseTable]
    differences: Sequence[PairedDifference]
    scored: Mapping[str, Path] = field(default_factory=dict)
    data: str | None = None

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


def compare_runs(folders: Sequence[str | Path], *, data: str | None = None) -> Comparison:
    """Compare every two of several tested runs, case by case.

    Args:
        folders: Runs, or pooled repetitions of runs; two at least.
        data: A folder of images and masks on which all are tested for this; by default their own tests are compared.

    Raises:
        RecipeError: If there are fewer than two, one has not been tested, or their test cases differ; the message names them.
        DataError: If a table cannot be read.

    Examples:
        >>> compare_runs(["runs/a/lora/TIME", "runs/a/msa/TIME"]).differences[0].mean  # doctest: +SKIP
    """
    names = list(dict.fromkeys(str(folder) for folder in folders))
    if len(names) < 2:
        raise RecipeError(f"compare: expected two runs or more, got {len(names)}. `medsam-tune runs list` shows them.")
    scored = {name: Path(name).expanduser() if data is None else tested_on(Path(name).expanduser(), data) for name in names}
    tables = {name: _table(scored[name]) for name in names}
    first, *others = names
    for other in others:
        _check_same_cases(first, other, tables)
        _check_same_files(first, other, scored, tables[first].cases)
    return Comparison(tables, compare_in_pairs(tables), scored, data)


def tested_on(folder: Path, data: str) -> Path:
    """Test a run on other data and return where the figures lie; of pooled repetitions test each and pool them.

    Args:
        folder: The run, or the folder that ``medsam-tune run RECIPE seeds=...`` pooled.
        data: The data folder.

    Raises:
        RecipeError: If the folder is neither.
    """
    members = pooled_runs(folder)
    if not members:
        say(f"{folder} on {data}")
        run = Run.open(folder).test({"data.root": data})
        if run.scored is None:
            raise RecipeError(f"{folder}: its task has no test, so it cannot be compared.")
        return run.scored
    scored = {label: tested_on(member, data) for label, member in members.items()}
    place = folder / "tests" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    write_pooled(scored, place)
    return place


def _table(folder: Path) -> CaseTable:
    path = RunFolder(folder).test_cases
    if not path.is_file():
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{path.name}"))
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


def _check_same_files(first: str, other: str, scored: Mapping[str, Path], cases: frozenset[str]) -> None:
    """Refuse cases that have the same names and other files; what knows no checksums is believed."""
    ours, theirs = (_checksums(scored[name]) for name in (first, other))
    differ = sorted(case for case in cases if case in ours and case in theirs and ours[case] != theirs[case])
    if differ:
        raise RecipeError(
            f"{other}: {len(differ)} of its test cases have other files than those of {first} ({first_names(differ)}), though "
            "their names are the same. Compare runs of the same data."
        )


def _checksums(folder: Path) -> Mapping[str, str]:
    splits = RunFolder(folder).splits
    if splits.is_file():
        return read_splits(splits).files
    found: dict[str, str] = {}
    for member in pooled_runs(folder).values():
        found.update(_checksums(member))
    return found


def _undefined(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
