"""The stored test figures of runs, case by case: read, and compared in pairs."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medsam_tune.errors import DataError
from medsam_tune.metrics.interval import Interval, mean_interval, mean_p_value

FIGURES = ("iou", "hd95", "nsd", "untuned_dice")
"""What is read of a table beside Dice, where it is there."""


@dataclass(frozen=True)
class CaseTable:
    """Hold the Dice of each test case of one run, or of several that were pooled.

    Attributes:
        dice: Mean over the labels of each scored case.
        excluded: Cases of which no label could be scored.
        labels: Names of the labels.
        patients: The patient of each case; a case that is not named is one of its own.
        figures: Other figures by name and case, such as ``iou``; the mean over the labels that have one.
    """

    dice: Mapping[str, float]
    excluded: frozenset[str]
    labels: frozenset[str]
    patients: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def cases(self) -> frozenset[str]:
        """Return the names of all test cases."""
        return self.excluded.union(self.dice)

    @property
    def mean(self) -> float:
        """Return the mean over the scored cases; NaN where there is none."""
        return statistics.mean(self.dice.values()) if self.dice else math.nan

    def interval(self) -> Interval | None:
        """Return the 95 % interval of the mean; None for fewer than two patients."""
        return mean_interval(list(self.dice.values()), groups=self.patients_of(self.dice), bounds=(0.0, 1.0))

    def patients_of(self, cases: Iterable[str]) -> list[str]:
        """Return the patient of each of several cases, the unit of intervals."""
        return [self.patients.get(case, case) for case in cases]


@dataclass(frozen=True)
class PairedDifference:
    """Hold how much more Dice the first of two has, case by case.

    Attributes:
        first: Name of the first.
        second: Name of the second.
        mean: First minus second, over the cases that both have a value for; NaN where there is none.
        interval: 95 % interval of that mean, with the patient as the unit; None for fewer than two.
        n_cases: Number of pairs.
        p: Of the paired t test over patients; NaN for fewer than two.
        p_holm: The same, corrected for the number of comparisons.
    """

    first: str
    second: str
    mean: float
    interval: Interval | None
    n_cases: int
    p: float
    p_holm: float


def read_case_table(path: Path) -> CaseTable:
    """Read ``test_cases.csv``.

    Raises:
        DataError: If it cannot be read, or is no such table.
    """
    figures: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in ("dice", *FIGURES)}
    cases, labels, patients = set(), set(), {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                case = row["case"]
                cases.add(case)
                labels.add(row["label"])
                # Tables of earlier versions name no patient, and hold fewer figures.
                patients[case] = row.get("patient") or case
                for name, found in figures.items():
                    if row["excluded"] != "true" and (name == "dice" or row.get(name)):
                        found[case].append(float(row[name]))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: is no table of test cases ({error}). Test the run again.") from error
    means = {
        name: {case: statistics.mean(values) for case, values in found.items()} for name, found in figures.items() if found
    }
    dice = means.pop("dice", {})
    return CaseTable(dice, frozenset(cases - dice.keys()), frozenset(labels), patients, means)


def compare_in_pairs(tables: Mapping[str, CaseTable]) -> list[PairedDifference]:
    """Compare every two of several tables over the same cases.

    Args:
        tables: By name, in the order in which they are compared.

    Returns:
        A difference for each pair, with p values after Holm.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    found = []
    for (first, ours), (second, theirs) in itertools.combinations(tables.items(), 2):
        both = [case for case in ours.dice if case in theirs.dice]
        gains, people = [ours.dice[case] - theirs.dice[case] for case in both], ours.patients_of(both)
        mean = statistics.mean(gains) if gains else math.nan
        interval = mean_interval(gains, groups=people, bounds=(-1.0, 1.0))
        found.append((first, second, mean, interval, len(gains), mean_p_value(gains, groups=people)))
    corrected = holm([p for *_, p in found])
    return [PairedDifference(*values, corrected[number]) for number, values in enumerate(found)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values that may be held against one level however many they are; NaN stays and counts for nothing.

    Examples:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = list(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[place] = largest
    return corrected
