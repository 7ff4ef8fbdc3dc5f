"""``medsam-tune priors``: find the automatic masks of a recipe's images, which SAMAug adds to them."""

from __future__ import annotations

import argparse
import shlex

from medsam_tune.cli.options import OptionParser
from medsam_tune.runs.recipe_files import find_recipe
from medsam_tune.training.overrides import normalise_overrides

DESCRIPTION = """\
Find the automatic masks of every image that a recipe trains, validates and tests on, as `data.priors` says, and keep them.

Optional: run, fit, validate, test and predict make what they lack. What is there already is not made again, so a stopped
command goes on where it was. The masks lie in priors/ below $MEDSAM_TUNE_CACHE, or ~/.cache/medsam_tune."""


def main(arguments: list[str]) -> int:
    """Fill the store of one recipe and say what is in it.

    Raises:
        RecipeError: If the recipe does not exist or asks for no priors.
    """
    options = parser().parse_args(arguments)
    path, overrides = find_recipe(options.recipe), normalise_overrides(options.overrides)
    from medsam_tune.training.cli import MedsamCLI
    from medsam_tune.training.precompute_stage import fill_priors

    command = shlex.join(["medsam-tune", "priors", *arguments])
    cli = MedsamCLI(["--config", str(path), *overrides], recipe_file=path, command=command, run=False)
    cli.discard_unused_folder()
    filled, counts, folder = fill_priors(cli.datamodule, stages=("train", "val", "test"))
    print(f"{counts}\n{filled.made} made in {filled.seconds:.1f} s; kept in {folder}")
    return 0


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune priors``."""
    parser = OptionParser("medsam-tune priors", DESCRIPTION)
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="--key=value")
    return parser
