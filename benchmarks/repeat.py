"""Run a recipe once for each value of one key and put the test figures together.

Seeds:  python benchmarks/repeat.py recipes/autosam.yaml --over seed_everything=0,1,2
Folds:  python benchmarks/repeat.py recipes/autosam_images.yaml --over data.split.fold=0,1,2,3,4 \
            --data.split.folds=5 --data.root=DIR

Every run is a process of its own in FOLDER/<value>; one that has a summary.json is not repeated, so a stopped command goes on.
Printed are each run's test Dice, their mean and standard deviation, and the mean over all test cases with its bootstrapped 95 %
interval. Over folds every case is tested once; over seeds the same cases are tested again, and each case enters with its mean.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from medsam_tune.metrics.interval import bootstrap_interval


def finished(folder: Path) -> Path | None:
    """Return the newest run below ``folder`` that has been tested, or None."""
    return max((path.parent for path in folder.glob("*/*/summary.json")), default=None)


def run_all(recipe: str, key: str, values: list[str], folder: Path, overrides: list[str]) -> dict[str, Path]:
    """Run what is missing and return each value's run folder."""
    found = {}
    for value in values:
        target = folder / value
        if finished(target) is None:
            words = ["run", recipe, f"--{key}={value}", f"--run.folder={target}", *overrides]
            subprocess.run([sys.executable, "-m", "medsam_tune", *words], check=True)
        found[value] = finished(target) or target
    return found


def case_scores(run: Path) -> dict[str, float]:
    """Return the Dice of each scored case, the mean over its labels."""
    rows = defaultdict(list)
    with (run / "test_cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["excluded"] != "true":
                rows[row["case"]].append(float(row["dice"]))
    return {case: statistics.mean(values) for case, values in rows.items()}


def report(key: str, runs: dict[str, Path]) -> str:
    """Return the table."""
    lines, means = [f"{key:<20}  test Dice  cases  fit s"], []
    pooled = defaultdict(list)
    for value, run in runs.items():
        summary = json.loads((run / "summary.json").read_text())
        means.append(summary["test"]["dice"]["mean"])
        lines.append(f"{value:<20}  {means[-1]:9.4f}  {summary['test']['n_cases']:5d}  {summary['seconds'].get('fit', 0):5.0f}")
        for case, dice in case_scores(run).items():
            pooled[case].append(dice)
    cases = [statistics.mean(values) for values in pooled.values()]
    low, high = bootstrap_interval(cases) or (float("nan"), float("nan"))
    spread = statistics.stdev(means) if len(means) > 1 else float("nan")
    lines.append(f"mean of {len(means)} runs {statistics.mean(means):.4f}, standard deviation {spread:.4f}")
    lines.append(f"mean of {len(cases)} cases {statistics.mean(cases):.4f}, 95 % interval {low:.4f} to {high:.4f}")
    return "\n".join(lines)


def main() -> int:
    """Parse the command line, run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--over", required=True, metavar="KEY=VALUE,VALUE,...")
    parser.add_argument("--folder", type=Path, default=Path("runs/repeat"), help="where the runs are kept")
    arguments, overrides = parser.parse_known_args()
    key, _, values = arguments.over.partition("=")
    folder = arguments.folder / Path(arguments.recipe).stem
    print(report(key, run_all(arguments.recipe, key, values.split(","), folder, overrides)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
