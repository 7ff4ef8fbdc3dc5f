"""Tables of test cases of several repetitions as one: the mean over the seeds of a case, every case once over folds."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path

from medsam_tune.errors import DataError
from medsam_tune.evaluation.case_tables import read_case_table
from medsam_tune.files import write_text

_KEPT = ("case", "label", "excluded", "patient")
_UNITS = ("hd95_unit", "size_unit")


def write_pooled_table(tables: Iterable[Path], path: Path) -> Path:
    """Write one row for each case and label of several ``test_cases.csv``, atomically.

    A figure is the mean over the tables that have one for the pair; the pair is excluded where it is in all of them. A unit
    that differs is left empty. ``n_runs`` says how many tables hold the pair.

    Args:
        tables: Tables of runs of one recipe.
        path: Where the pooled one goes.

    Raises:
        DataError: If a table cannot be read.
    """
    rows: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    columns: dict[str, None] = dict.fromkeys(("case", "label", "dice", "excluded", "patient", "n_runs"))
    for table in tables:
        read_case_table(table)  # what is no such table is refused there
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                rows.setdefault((row["case"], row["label"]), []).append(row)
                columns.update(dict.fromkeys(row))
    if not rows:
        raise DataError(f"{path}: the tables that would be pooled hold no case. Test the runs again.")
    buffer = StringIO()
    writer = csv.DictWriter(buffer, tuple(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_pooled(found, columns) for _, found in sorted(rows.items()))
    return write_text(path, buffer.getvalue())


def _pooled(rows: list[Mapping[str, str]], columns: Iterable[str]) -> dict[str, str]:
    """Return the one row for what several tables say of a case and label."""
    first = rows[0]
    pooled = {name: first.get(name) or "" for name in _KEPT}
    pooled["excluded"] = str(all(row["excluded"] == "true" for row in rows)).lower()
    pooled["patient"] = pooled["patient"] or first["case"]
    pooled["n_runs"] = str(len(rows))
    for name in columns:
        if name in pooled:
            continue
        values = [text for row in rows if (text := row.get(name) or "")]
        if name in _UNITS:
            pooled[name] = values[0] if len(set(values)) == 1 else ""
        elif values:
            mean = statistics.mean(map(float, values))
            pooled[name] = f"{mean:.6f}"
    return pooled
