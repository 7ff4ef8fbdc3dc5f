"""``medsam-tune run``: a recipe from cached embeddings to the report."""

from __future__ import annotations

import sys

from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand
from medsam_tune.runs.recipe_files import find_recipe
from medsam_tune.training.overrides import normalise_overrides

HELP = """\
usage: medsam-tune run RECIPE [--key=value | --key value | key=value ...]

Run a recipe: cache the embeddings, fit, test on the best checkpoint, export, report. All of it lands in
runs/<data>/<recipe>-<name>/<time>/.

  RECIPE                    a .yaml file, or the name of a bundled recipe (`medsam-tune recipes list`)
  data=DIR                  your own images
  weights=sam_vit_b         the base weights
  epochs=20 rank=4          any key of the recipe, as far as only one ends so; several are an error that lists them
  --trainer.max_epochs=20   the same, written out
  --config=more.yaml        a further file, read over the recipe
  seeds=0,1,2               train once for each seed, and pool the test figures; folds=5 for each fold. The same
                            command goes on where it was stopped; name=NAME trains all anew
  --ckpt_path=last          continue the newest run of this recipe on these data in its folder
  --print_config            print the resolved recipe and stop

Words of their own: data (data.root), epochs (trainer.max_epochs), steps (trainer.max_steps), batch (data.batch_size), seed
(seed_everything), name (run.name), device (trainer.accelerator: cpu, gpu, cuda:1). A class of ours needs no path:
tuner=BottleneckAdapter. `medsam-tune run --help=all` lists every key."""


def main(arguments: list[str]) -> int:
    """Run the recipe named first in ``arguments`` with the overrides after it.

    Raises:
        RecipeError: If the recipe does not exist or an override is malformed.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0 if arguments else 2
    recipe, words = arguments[0], arguments[1:]
    if recipe.startswith("-") or ("=" in recipe and not expand(recipe, "recipe").is_file()):
        raise RecipeError(f"{recipe}: expected the recipe first, then the overrides: medsam-tune run RECIPE {recipe} ...")
    path, overrides = find_recipe(recipe), normalise_overrides(words)
    from medsam_tune.sweeps.repeats import find_repeats, run_repeats

    if (repeats := find_repeats(overrides)) is not None:
        return run_repeats(path, repeats)
    from medsam_tune.runs.run import run_recipe
    from medsam_tune.training.run_folder import is_rank_zero

    if not expand(recipe, "recipe").is_file() and is_rank_zero():
        print(f"{recipe}: not a file here; running the bundled recipe {path}", file=sys.stderr)
    return run_recipe(path, overrides)
