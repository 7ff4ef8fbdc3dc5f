"""``medsam-tune compare``: runs held against each other, case by case."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from medsam_tune.cli.options import OptionParser
from medsam_tune.cli.table import print_table
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand

if TYPE_CHECKING:
    from medsam_tune.metrics.interval import Interval
    from medsam_tune.runs.compare import Comparison

DESCRIPTION = """\
Hold tested runs against each other on the test cases that they share: the mean difference by case with its 95 % interval.

The unit is the patient. Below 30 of them the interval is Student's t, else the BCa bootstrap; p is that of the paired t test,
and with more than two runs Holm's correction of it stands beside. Runs whose test cases differ are refused, and the difference
is named; --data tests all of them on one folder. A folder that `run ... seeds=0,1,2` or `folds=5` pooled is taken as one run.

The page (comparison.html) holds the leaderboard, Dice against trained parameters and seconds, the runs case by case, and how
each of them sees the worst cases."""


def main(arguments: list[str]) -> int:
    """Run ``compare`` with its arguments.

    Raises:
        RecipeError: If the runs cannot be compared; the message names what differs.
    """
    options = parser().parse_intermixed_args(arguments or ["--help"])
    from medsam_tune.evaluation.comparison_page import write_comparison
    from medsam_tune.runs.compare import compare_runs
    from medsam_tune.runs.comparison_content import comparison_content, worst_slices
    from medsam_tune.runs.listing import run_or_folder

    if options.pictures < 0:
        raise RecipeError(f"--pictures: must be at least 0 cases, got {options.pictures}.")
    page = expand(options.html, "--html")
    data = None if options.data is None else str(expand(options.data, "--data"))
    comparison = compare_runs([run_or_folder(run, "RUN") for run in options.runs], data=data)
    print_runs(comparison)
    print()
    print_pairs(comparison)
    shown = worst_slices(comparison, most=options.pictures)
    print(f"\n{write_comparison(page, comparison_content(comparison, shown))}")
    if options.csv is not None:
        print(comparison.write_csv(expand(options.csv, "--csv")))
    if options.wandb is not None:
        from medsam_tune.training.comparison_log import log_comparison

        print(log_comparison(comparison_content(comparison, shown), shown, options.wandb))
    return 0


def print_runs(comparison: Comparison) -> None:
    """Print the figure of each run under a letter."""
    rows = []
    for letter, (name, table) in zip(_letters(comparison), comparison.tables.items(), strict=True):
        rows.append((letter, f"{table.mean:.4f}", _ends(table.interval(), ""), str(len(table.dice)), name))
    print_table(("", "Dice", "95 % interval", "cases", "run"), rows, numbers=("Dice", "cases"))


def print_pairs(comparison: Comparison) -> None:
    """Print the difference of every two runs, and whether it can be told from chance."""
    letters = dict(zip(comparison.tables, _letters(comparison), strict=True))
    several = len(comparison.differences) > 1
    head = ("", "difference", "95 % interval", "cases", "p", *(["p (Holm)"] if several else []), "")
    rows = []
    for pair in comparison.differences:
        p = pair.p_holm if several else pair.p
        values = (_p(pair.p), *([_p(pair.p_holm)] if several else []))
        told = "one case has no interval" if math.isnan(p) else "not told from chance" if p > 0.05 else "differ"
        name = f"{letters[pair.first]} - {letters[pair.second]}"
        rows.append((name, f"{pair.mean:+.4f}", _ends(pair.interval, "+"), str(pair.n_cases), *values, told))
    print_table(head, rows, numbers=("difference", "cases", "p", "p (Holm)"))


def _letters(comparison: Comparison) -> list[str]:
    from medsam_tune.runs.comparison_content import letters

    return letters(len(comparison.tables))


def _ends(interval: Interval | None, sign: str) -> str:
    return "-" if interval is None else f"{interval.low:{sign}.4f} to {interval.high:{sign}.4f} ({interval.method})"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune compare``."""
    parser = OptionParser("medsam-tune compare", DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="tested runs, two or more")
    parser.add_argument("--data", metavar="DIR", help="images and masks on which all runs are tested for this")
    parser.add_argument("-o", "--html", metavar="FILE", default="comparison.html", help="the page (default: comparison.html)")
    parser.add_argument("--pictures", metavar="N", type=int, default=6, help="worst cases that are drawn (default: 6; 0: none)")
    parser.add_argument("--wandb", metavar="PROJECT", help="also log tables and overlays to Weights & Biases")
    parser.add_argument("--csv", metavar="FILE", help="also write a row for each pair")
    return parser
