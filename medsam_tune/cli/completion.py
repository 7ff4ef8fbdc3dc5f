"""``medsam-tune completion``: what lets a shell complete commands, options, recipes and files."""

from __future__ import annotations

import argparse
from importlib import import_module

from medsam_tune.cli.options import OptionParser
from medsam_tune.runs.recipe_files import bundled_recipes

DESCRIPTION = """\
Print what lets a shell complete commands, options, names of recipes, and files.

  bash   eval "$(medsam-tune completion bash)"     in ~/.bashrc
  zsh    eval "$(medsam-tune completion zsh)"      in ~/.zshrc, after compinit"""

SHELLS = ("bash", "zsh", "tcsh")
KEYS = ("data=", "epochs=", "steps=", "batch=", "seed=", "seeds=", "folds=", "name=", "device=", "weights=", "lr=")
_OF_A_RUN = ("test", "validate", "resume", "export")
_FOLDERS = ("RUN", "DIR", "OUT", "MODEL")


def main(arguments: list[str]) -> int:
    """Print the script for one shell."""
    shell = parser().parse_args(arguments or ["--help"]).shell
    import shtab

    print(shtab.complete(whole_parser(), shell, preamble=_preamble().get(shell, "")))
    return 0


def parser() -> OptionParser:
    """Return what parses the words after ``medsam-tune completion``."""
    parser = OptionParser("medsam-tune completion", DESCRIPTION)
    parser.add_argument("shell", choices=SHELLS)
    return parser


def whole_parser() -> argparse.ArgumentParser:
    """Return one parser of every command with its options, as completion needs it."""
    from medsam_tune.cli import LIGHTNING_COMMANDS, OWN_COMMANDS

    whole = argparse.ArgumentParser("medsam-tune", allow_abbrev=False)
    whole.add_argument("--version", action="store_true", help="say the version")
    commands = whole.add_subparsers()
    for name, text in {**OWN_COMMANDS, **LIGHTNING_COMMANDS}.items():
        own = _parser_of(name)
        _complete(own)
        commands.add_parser(name, help=text, parents=[own], add_help=False)
    return whole


def _parser_of(command: str) -> argparse.ArgumentParser:
    if command in ("run", "fit"):
        return _recipe_parser(command)
    if command in _OF_A_RUN:
        made: argparse.ArgumentParser = import_module("medsam_tune.cli.of_run").parser_of(command)
    else:
        made = import_module(f"medsam_tune.cli.{command}").parser()
    return made


def _recipe_parser(command: str) -> argparse.ArgumentParser:
    parser = OptionParser(f"medsam-tune {command}")
    if command == "run":
        parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE").complete = _custom("keys")  # type: ignore[attr-defined]
    parser.add_argument("--config", metavar="RECIPE")
    parser.add_argument("--ckpt_path", metavar="FILE")
    parser.add_argument("--print_config", action="store_true")
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Say of each argument that takes a value where its values come from."""
    import shtab

    for action in parser._actions:
        metavar = str(action.metavar)
        if isinstance(action, argparse._SubParsersAction):
            for inner in set(action.choices.values()):
                _complete(inner)
        elif metavar in ("RECIPE", "SWEEP"):
            action.complete = _custom("recipes")  # type: ignore[attr-defined]
        elif metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif metavar in ("FILE", "INPUT", "SOURCE"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _custom(what: str) -> dict[str, str]:
    return {"bash": f"_medsam_tune_{what}", "zsh": f"_medsam_tune_{what}", "tcsh": "f"}


def _preamble() -> dict[str, str]:
    """Return the functions that name recipes beside files, and short keys."""
    recipes, keys = " ".join(bundled_recipes()), " ".join(KEYS)
    return {
        "bash": (
            f'_medsam_tune_recipes() {{ compgen -W "{recipes}" -- "$1"; compgen -f -X "!*.y*ml" -- "$1"; compgen -d -- "$1"; }}'
            f'\n_medsam_tune_keys() {{ compgen -W "{keys}" -- "$1"; }}'
        ),
        "zsh": (
            f"_medsam_tune_recipes() {{ _alternative 'recipes:recipe:({recipes})' 'files:file:_files -g \"*.y*ml\"' }}\n"
            f"_medsam_tune_keys() {{ _alternative 'keys:key:({keys})' }}"
        ),
    }
