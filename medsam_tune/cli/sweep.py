"""``medsam-tune sweep``: a W&B sweep file, on W&B's server or here."""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import TYPE_CHECKING

from medsam_tune.cli.options import OptionParser
from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand
from medsam_tune.runs.recipe_files import find_recipe
from medsam_tune.training.overrides import normalise_overrides
from medsam_tune.yaml_files import read_yaml

if TYPE_CHECKING:
    from medsam_tune.sweeps import Sweep

DESCRIPTION = """\
Run a W&B sweep file. Without --local it is registered on W&B's server, which says how to start agents; it needs an account.
With --local it runs here through Optuna (pip install 'medsam-tune[sweep]'), and the same command continues it after a stop.
Further words (--key=value, --key value, key=value) are overrides that every run gets."""


def main(arguments: list[str]) -> int:
    """Run ``sweep`` with its arguments.

    Raises:
        RecipeError: If the file, an override or an option cannot be used.
    """
    options, words = parser().parse_known_args(arguments or ["--help"])
    for name, least in (("trials", 1), ("jobs", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise RecipeError(f"--{name}: expected a number of at least {least}, got {value}.")
    path = find_recipe(options.file)
    from medsam_tune.sweeps import read_sweep

    sweep = read_sweep(path, trusted=options.trust)
    recipe = find_recipe(sweep.recipe)
    if not options.trust:
        from medsam_tune.training.trust import refuse_foreign_code

        refuse_foreign_code(read_yaml(recipe), recipe)
    if not options.local:
        # W&B's own command: the file is valid as it stands.
        return subprocess.call([sys.executable, "-m", "wandb", "sweep", str(path)])
    return _run_here(sweep, options, words)


def _run_here(sweep: Sweep, options: argparse.Namespace, words: list[str]) -> int:
    """Run the sweep; the status is 1 where no run has finished."""
    from medsam_tune.sweeps.local import LocalSweep, run_sweep

    folder = expand(options.folder or f"runs/sweeps/{sweep.name}", "--folder")
    ended = run_sweep(
        LocalSweep(
            sweep,
            folder,
            trials=options.trials,
            jobs=options.jobs,
            overrides=normalise_overrides(words),
            online=options.online,
            report=lambda line: print(line, flush=True),
        )
    )
    print(f"\n{ended.table}\n\n{folder / 'sweep.csv'}")
    if not ended.finished:
        print(f"error: {folder}: no run of the sweep has finished; the table says why, for each.", file=sys.stderr)
        return 1
    print(folder / "sweep.png")
    return 0


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune sweep``."""
    parser = OptionParser("medsam-tune sweep", DESCRIPTION)
    parser.add_argument("file", metavar="SWEEP", help="a .yaml file, or the name of a bundled one such as adapter_rank")
    parser.add_argument("--local", action="store_true", help="run here, without an account")
    parser.add_argument("--trials", type=int, metavar="N", help="most runs in all; needed for random and bayes without run_cap")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at the same time (default 1)")
    parser.add_argument("--folder", metavar="DIR", help="where it all goes (default runs/sweeps/NAME)")
    parser.add_argument("--trust", action="store_true", help="let the file and its recipe name code from outside medsam_tune")
    parser.add_argument("--online", action="store_true", help="with --local: log every run to W&B's server")
    return parser
