"""The commands of ``medsam-tune``: thin, and quick to answer because nothing heavy is imported before it is needed."""

from __future__ import annotations

import difflib
import gc
import sys
from importlib import import_module
from pathlib import Path

from medsam_tune import __version__
from medsam_tune.cli.one_line import TRACEBACK_VARIABLE, OneLine
from medsam_tune.errors import RecipeError
from medsam_tune.folders import complete_account, expand
from medsam_tune.heap import keep_heap
from medsam_tune.runs.recipe_files import SUFFIXES, bundled_recipes, name_bundled_recipes
from medsam_tune.training.recipe_paths import expand_word

__all__ = ["LIGHTNING_COMMANDS", "OWN_COMMANDS", "TRACEBACK_VARIABLE", "main"]

OWN_COMMANDS = {
    "init": "look at a folder of your own images and masks, and write a recipe that runs on it",
    "run": "run a recipe: cache, fit, test on the best checkpoint, export, report",
    "recipes": "list, show or copy the bundled recipes",
    "weights": "list or download the released weights",
    "prepare": "turn NIfTI, PNG, npz or npy data into a folder of 8-bit images, masks and splits",
    "cache": "build image embeddings; list or clear them and the priors",
    "priors": "find the automatic masks that SAMAug adds to the images of a recipe",
    "sweep": "run a recipe over many values: a W&B sweep file, on W&B or here",
    "resume": "continue the training of a run in its folder",
    "evaluate": "ask models about labelled data as published studies do: points, boxes, clicks, bad prompts",
    "compare": "hold tested runs against each other, case by case",
    "runs": "list the runs that there are, show one, remove those that came to nothing",
    "export": "write what a run trained in a reloadable form, or merge it into one plain SAM checkpoint",
    "app": "a page in the browser: draw, see the mask, correct it, save it as training data",
    "serve": "let napari and 3D Slicer ask a model, through nnInteractive's protocol",
    "completion": "print what lets a shell complete commands, options and names of recipes",
    "doctor": "say what is installed and found here; --fix mends the cache and the `lightning` command",
}
LIGHTNING_COMMANDS = {
    "fit": "train; LightningCLI with --config RECIPE, --print_config, --ckpt_path and every dotted key",
    "validate": "score a run on its validation cases, `validate RUN`; or a checkpoint, with --config RECIPE",
    "test": "score a run on its test cases, `test RUN`; or a checkpoint, with --config RECIPE",
    "predict": "write masks of new images, `predict MODEL INPUT -o OUT`; or of a recipe's data, with --config RECIPE",
}
RUN_COMMANDS = ("validate", "test", "predict", "resume")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    What a user can mend is one line on stderr and status 2, what nobody foresaw one line and status 1 with the traceback in a
    log file that the line names; ``MEDSAM_TUNE_TRACEBACK=1`` shows where either came from.

    Args:
        argv: The words after ``medsam-tune``; those of this process by default. Under ``ddp`` Lightning starts the process's
            own words again in every rank, whatever is given here.
    """
    if argv is None:
        # What is imported lives as long as the process; to look through it for garbage time and again slowed the start.
        gc.set_threshold(50_000)
        keep_heap()
    arguments = sys.argv[1:] if argv is None else argv
    with OneLine(["medsam-tune", *arguments]) as command:
        complete_account()
        command.status = _dispatch([expand_word(word) for word in arguments])
    return command.status


def _find_users_classes() -> None:
    """Let a recipe name a class in a file of the current folder; installed packages of the same name come first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _dispatch(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in {"-h", "--help", "help"}:
        print(_help())
        return 0
    if command == "--version":
        print(f"medsam-tune {__version__}")
        return 0
    if command in {**LIGHTNING_COMMANDS, "run": ""} and "--help=all" in arguments:
        stage = "fit" if command == "run" else command
        return int(import_module("medsam_tune.training.cli").main([stage, "--help"]))
    _find_users_classes()
    if command in RUN_COMMANDS and not any(word.startswith(("--config", "-c")) for word in arguments[1:]):
        module, words = ("predict", arguments[1:]) if command == "predict" else ("of_run", arguments)
        return int(import_module(f"medsam_tune.cli.{module}").main(words))
    if command in OWN_COMMANDS:
        return int(import_module(f"medsam_tune.cli.{command}").main(arguments[1:]))
    if command in LIGHTNING_COMMANDS and {"-h", "--help"} & set(arguments):
        print(import_module("medsam_tune.cli.stage_help").stage_help(command))
        return 0
    if command in LIGHTNING_COMMANDS:
        return int(import_module("medsam_tune.training.cli").main(name_bundled_recipes(arguments)))
    if expand(command, "COMMAND").suffix in SUFFIXES or command in bundled_recipes():
        raise RecipeError(f"{command}: is a recipe, no command. Did you mean `medsam-tune run {command}`?")
    near = difflib.get_close_matches(command.lower(), [*OWN_COMMANDS, *LIGHTNING_COMMANDS], n=1, cutoff=0.5)
    hint = f"Did you mean `medsam-tune {near[0]}`?" if near else "`medsam-tune --help` lists the commands."
    raise RecipeError(f"{command}: no such command. {hint}")


def _help() -> str:
    rows = [f"  {name:<10} {text}" for name, text in {**OWN_COMMANDS, **LIGHTNING_COMMANDS}.items()]
    return "\n".join(
        [
            "usage: medsam-tune COMMAND ...",
            "",
            "Adapt the Segment Anything Model to medical images.",
            "",
            *rows,
            "",
            "  medsam-tune run autosam                       the bundled sample, end to end",
            "  medsam-tune run lora data=DIR epochs=20 rank=4",
            "  medsam-tune COMMAND --help",
            "  medsam-tune --version",
        ]
    )
