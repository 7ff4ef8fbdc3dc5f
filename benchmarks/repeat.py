"""Run a recipe once for each value of one key and put the test figures together.

Seeds:  python benchmarks/repeat.py recipes/autosam.yaml --over seed_everything=0,1,2
Folds:  python benchmarks/repeat.py recipes/autosam_images.yaml --over data.split.fold=0,1,2,3,4 \
            --data.split.folds=5 --data.root=DIR

Paired: python benchmarks/repeat.py recipes/samaug.yaml --over seed_everything=0,1,2 --against runs/repeat/samaug_raw

Every run is a process of its own in FOLDER/<value>; one that has a summary.json is not repeated, so a stopped command goes on.
Printed are each run's test Dice, their mean and standard deviation, and the mean over all test cases with its 95 %
interval (Student's t below 30 cases, else the BCa bootstrap). Over folds every case is tested once; over seeds the same cases
are tested again, and each case enters with its mean.
``--against`` takes the folder of another recipe's finished runs over the same cases and adds the mean difference by case with
its interval. Where a recipe scores several kinds of inference, the mean of each over the runs is printed too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from medsam_tune.evaluation.case_tables import CaseTable, compare_in_pairs, pool, read_case_table
from medsam_tune.training.run_place import RUNS


def finished(folder: Path) -> Path | None:
    """Return the newest run below ``folder`` that has been tested, or None."""
    return max((path.parent for path in folder.glob(f"{RUNS}/summary.json")), default=None)


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


def pooled_scores(runs: Iterable[Path]) -> CaseTable:
    """Return each case's mean Dice over the runs that tested it."""
    return pool(read_case_table(run / "test_cases.csv") for run in runs)


def difference(runs: Iterable[Path], folder: Path) -> str:
    """Return the mean difference by case from the finished runs in ``folder``."""
    others = [found for value in sorted(folder.iterdir()) if (found := finished(value)) is not None]
    ours, theirs = pooled_scores(runs), pooled_scores(others)
    if ours.cases != theirs.cases:
        sys.exit(f"{folder}: its {len(theirs.cases)} test cases are not these {len(ours.cases)}, so nothing can be paired.")
    (pair,) = compare_in_pairs({"these": ours, folder.name: theirs})
    ends = pair.interval
    shown = "" if ends is None else f", 95 % interval ({ends.method}) {ends.low:+.4f} to {ends.high:+.4f}"
    return f"minus {folder.name} ({len(others)} runs), by case: {pair.mean:+.4f}{shown}"


def inference_lines(runs: Iterable[Path]) -> list[str]:
    """Return the mean Dice of each kind of inference over the runs; nothing where there is one kind."""
    found = defaultdict(list)
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        for kind, scores in (summary.get("inference") or {}).get("test", {}).items():
            found[kind].append(scores["dice"]["mean"])
    return [f"inference {kind:<12} {statistics.mean(values):.4f}" for kind, values in found.items()]


def report(key: str, runs: dict[str, Path]) -> str:
    """Return the table."""
    lines, means = [f"{key:<20}  test Dice  cases  fit s"], []
    for value, run in runs.items():
        summary = json.loads((run / "summary.json").read_text())
        means.append(summary["test"]["dice"]["mean"])
        lines.append(f"{value:<20}  {means[-1]:9.4f}  {summary['test']['n_cases']:5d}  {summary['seconds'].get('fit', 0):5.0f}")
    cases = pooled_scores(runs.values())
    interval = cases.interval()
    shown = "" if interval is None else f", 95 % interval ({interval.method}) {interval.low:.4f} to {interval.high:.4f}"
    spread = statistics.stdev(means) if len(means) > 1 else float("nan")
    lines.append(f"mean of {len(means)} runs {statistics.mean(means):.4f}, standard deviation {spread:.4f}")
    lines.append(f"mean of {len(cases.dice)} cases {cases.mean:.4f}{shown}")
    return "\n".join([*lines, *inference_lines(runs.values())])


def main() -> int:
    """Parse the command line, run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--over", required=True, metavar="KEY=VALUE,VALUE,...")
    parser.add_argument("--folder", type=Path, default=Path("runs/repeat"), help="where the runs are kept")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another recipe's runs, to pair the cases with")
    arguments, overrides = parser.parse_known_args()
    key, _, values = arguments.over.partition("=")
    folder = arguments.folder / Path(arguments.recipe).stem
    runs = run_all(arguments.recipe, key, values.split(","), folder, overrides)
    print(report(key, runs))
    if arguments.against is not None:
        print(difference(runs.values(), arguments.against))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
