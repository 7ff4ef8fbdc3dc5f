"""The stored test figures of runs, case by case: read, pooled over repetitions, and compared in pairs."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam_tune.errors import DataError
from medsam_tune.metrics.interval import Interval, mean_interval


@dataclass(frozen=True)
class CaseTable:
    """Hold the Dice of each test case of one run, or of several that were pooled.

    Attributes:
        dice: Mean over the labels of each scored case.
        excluded: Cases of which no label could be scored.
        labels: Names of the labels.
    """

    dice: Mapping[str, float]
    excluded: frozenset[str]
    labels: frozenset[str]

    @property
    def cases(self) -> frozenset[str]:
        """Return the names of all test cases."""
        return self.excluded.union(self.dice)

    @property
    def mean(self) -> float:
        """Return the mean over the scored cases; NaN where there is none."""
        return statistics.mean(self.dice.values()) if self.dice else math.nan

    def interval(self) -> Interval | None:
        """Return the 95 % interval of the mean; None for fewer than two cases."""
        return mean_interval(list(self.dice.values()), bounds=(0.0, 1.0))


@dataclass(frozen=True)
class PairedDifference:
    """Hold how much more Dice the first of two has, case by case.

    Attributes:
        first: Name of the first.
        second: Name of the second.
        mean: First minus second, over the cases that both have a value for; NaN where there is none.
        interval: 95 % interval of that mean; None for fewer than two cases.
        n_cases: Number of pairs.
        p: Of the paired t test; NaN for fewer than two cases.
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
    dice: dict[str, list[float]] = defaultdict(list)
    cases, labels = set(), set()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                cases.add(row["case"])
                labels.add(row["label"])
                if row["excluded"] != "true":
                    dice[row["case"]].append(float(row["dice"]))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: is no table of test cases ({error}). Test the run again.") from error
    means = {case: statistics.mean(values) for case, values in dice.items()}
    return CaseTable(means, frozenset(cases - means.keys()), frozenset(labels))


def pool(tables: Iterable[CaseTable]) -> CaseTable:
    """Return each case's mean over the tables that score it: all of them over seeds, one over folds."""
    tables = list(tables)
    dice: dict[str, list[float]] = defaultdict(list)
    for table in tables:
        for case, value in table.dice.items():
            dice[case].append(value)
    means = {case: statistics.mean(values) for case, values in dice.items()}
    cases = frozenset().union(*(table.cases for table in tables))
    return CaseTable(means, cases - means.keys(), frozenset().union(*(table.labels for table in tables)))


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
        gains = [ours.dice[case] - theirs.dice[case] for case in ours.dice if case in theirs.dice]
        mean = statistics.mean(gains) if gains else math.nan
        found.append((first, second, mean, mean_interval(gains, bounds=(-1.0, 1.0)), len(gains), paired_t_test(gains)))
    corrected = holm([p for *_, p in found])
    return [PairedDifference(*values, corrected[number]) for number, values in enumerate(found)]


def paired_t_test(gains: Sequence[float]) -> float:
    """Return the two-sided p value of a mean gain of zero; NaN for fewer than two.

    Examples:
        >>> round(paired_t_test([0.1, 0.2, 0.3]), 4), paired_t_test([0.0, 0.0])
        (0.0742, 1.0)
    """
    if len(gains) < 2:
        return math.nan
    sample = np.asarray(gains, dtype=np.float64)
    if sample.min() == sample.max():
        return 1.0 if sample[0] == 0 else 0.0
    from scipy.special import stdtr

    t = abs(sample.mean()) / (sample.std(ddof=1) / math.sqrt(sample.size))
    return float(2 * stdtr(sample.size - 1, -t))


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
