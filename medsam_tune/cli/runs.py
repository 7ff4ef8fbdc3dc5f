"""``medsam-tune runs``: the runs that there are, one of them, several as one, and the removal of those that came to nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medsam_tune.cli.cache import format_bytes
from medsam_tune.cli.options import OptionParser
from medsam_tune.cli.table import print_table
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand

if TYPE_CHECKING:
    from medsam_tune.runs.listing import RunEntry

DESCRIPTION = """\
List runs, show one, pool several, or remove those that came to nothing.

A run is finished with its test; running where it wrote something within the last hour; else stopped, or failed with an
error.log. `clean` removes stopped and failed runs, or the runs that are named, whatever their state. `pool` writes the
figures of runs that differ in seed or fold alone, such as those of a job array, as `run ... folds=5` would; `compare` takes
what it writes as one run."""

_HEAD = ("data", "recipe", "name", "state", "Dice", "untuned", "verdict", "size", "folder")


def main(arguments: list[str]) -> int:
    """Run ``runs`` with its arguments; without any it lists.

    Raises:
        RecipeError: If a run is not there, or a removal is not confirmed.
        DataError: If the folder of runs does not exist.
    """
    options = parser().parse_args(arguments or ["list"])
    from medsam_tune.runs.listing import find_runs, named_runs

    root = expand(options.folder, "--folder")
    if options.action == "list":
        list_runs(find_runs(root))
    elif options.action == "show":
        show(named_runs([options.run], root)[0])
    elif options.action == "pool":
        pool(named_runs(options.runs, root))
    else:
        clean(named_runs(options.runs, root) if options.runs else find_runs(root), root, options)
    return 0


def list_runs(entries: list[RunEntry]) -> None:
    """Print a line a run, and what all of them take."""
    print_table(_HEAD, map(_cells, entries), numbers=("Dice", "untuned", "size"))
    print(f"{len(entries)} runs, {format_bytes(sum(entry.size for entry in entries))}")


def show(entry: RunEntry) -> None:
    """Print how one run stands, its figures, and what can be done with it."""
    from medsam_tune.files import read_json
    from medsam_tune.runs.closing import closing
    from medsam_tune.training.console import labelled
    from medsam_tune.training.run_folder import RunFolder

    files = RunFolder(entry.folder)
    facts = {"Data": entry.data, "Recipe": entry.recipe, "Name": entry.name, "State": entry.state}
    for label, text in {**facts, "Size": format_bytes(entry.size)}.items():
        if text:
            print(labelled(label, text))
    page = files.report / "index.html"
    if files.summary.is_file():
        print(closing(read_json(files.summary, "Test the run again."), entry.folder, page if page.is_file() else None))
        print(f"\nmedsam-tune predict {entry.folder} INPUT -o OUT")
    else:
        print(labelled("Run folder", str(entry.folder)))
        print(f"\nmedsam-tune resume {entry.folder}")


def pool(entries: list[RunEntry]) -> None:
    """Pool runs and print their figures.

    Raises:
        RecipeError: If they do not belong together.
        DataError: If they were not made of the same data.
    """
    from medsam_tune.runs.pool import pool_runs

    pool_runs({entry.folder: entry.recipe for entry in entries})


def clean(entries: list[RunEntry], root: Path, options: object) -> None:
    """Remove the named runs, or all stopped and failed ones, after a yes.

    Raises:
        RecipeError: If nobody is there to say yes and ``--yes`` is not given.
    """
    from medsam_tune.runs.listing import remove_runs

    named = bool(getattr(options, "runs", []))
    meant = [entry for entry in entries if named or entry.state in ("stopped", "failed")]
    if not meant:
        print(f"{root}: no stopped or failed run")
        return
    print_table(_HEAD, map(_cells, meant), numbers=("Dice", "untuned", "size"))
    size = format_bytes(sum(entry.size for entry in meant))
    asked = f"Remove {'this run' if len(meant) == 1 else f'these {len(meant)} runs'} ({size}) for good? [y/N] "
    if not getattr(options, "yes", False):
        if not sys.stdin.isatty():
            raise RecipeError("runs clean: nobody is there to be asked. Say --yes to remove the runs above.")
        if input(asked).strip().lower() not in ("y", "yes"):
            print("nothing removed")
            return
    remove_runs(meant, root)
    print(f"removed {len(meant)}, freed {size}")


def _cells(entry: RunEntry) -> tuple[str, ...]:
    figures = ("" if value is None else f"{value:.4f}" for value in (entry.dice, entry.untuned))
    told = (entry.data, entry.recipe, entry.name, entry.state, *figures, entry.verdict)
    return (*(cell or "-" for cell in told), format_bytes(entry.size), str(entry.folder))


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune runs``."""
    parser = OptionParser("medsam-tune runs", DESCRIPTION)
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="data, recipe, name, state, Dice, untuned Dice, verdict and size of each")
    showing = actions.add_parser("show", help="one run, its figures and what can be done with it")
    showing.add_argument("run", metavar="RUN", help="its folder, or the end of its path, such as its time")
    pooling = actions.add_parser("pool", help="several runs of one recipe, over seeds or folds, as one")
    pooling.add_argument("runs", nargs="+", metavar="RUN", help="tested runs that differ in seed or fold alone")
    cleaning = actions.add_parser("clean", help="remove stopped and failed runs, or those that are named")
    cleaning.add_argument("runs", nargs="*", metavar="RUN", help="runs to remove, whatever their state")
    cleaning.add_argument("--yes", action="store_true", help="remove without asking")
    for action in (listing, showing, pooling, cleaning):
        action.add_argument("--folder", default="runs", metavar="DIR", help="where the runs lie (default runs)")
    return parser
