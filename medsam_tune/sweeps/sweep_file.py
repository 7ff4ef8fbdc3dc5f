"""W&B sweep files: read, checked against what W&B accepts, and expanded to command lines as the W&B agent does.

Source: https://docs.wandb.ai/guides/sweeps/sweep-config-keys and the JSON schema of the package sweeps 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medsam_tune.errors import RecipeError
from medsam_tune.sweeps.parameters import Parameter, read_parameters, spell
from medsam_tune.training.overrides import normalise_overrides
from medsam_tune.training.trust import refuse_foreign_words
from medsam_tune.yaml_files import read_yaml

METHODS = ("grid", "random", "bayes")
_KEYS = {
    "program", "command", "method", "metric", "parameters", "name", "description", "project", "entity",
    "run_cap", "early_terminate", "controller", "imageuri", "job",
}  # fmt: skip
# What W&B's agents or its Launch would start beside, or in place of, the command.
_OTHER_PROGRAMS = ("program", "job", "imageuri")
_HYPERBAND = {"type", "min_iter", "max_iter", "s", "eta", "strict"}


@dataclass(frozen=True)
class Sweep:
    """Hold a checked sweep file.

    Attributes:
        name: The file's name without its ending.
        method: How the next values are chosen.
        metric: What is optimised, as logged.
        maximise: Whether more of it is better.
        parameters: By dotted recipe key.
        command: The command with W&B's macros.
        run_cap: Most runs, or None.
        early_terminate: W&B's hyperband block, or None.
    """

    name: str
    method: Literal["grid", "random", "bayes"]
    metric: str
    maximise: bool
    parameters: Mapping[str, Parameter]
    command: tuple[str, ...]
    run_cap: int | None
    early_terminate: Mapping[str, Any] | None

    @property
    def recipe(self) -> str:
        """Return the recipe that every run starts from, as the command names it."""
        return expand_command(self.command, {})[2]


def read_sweep(path: Path, *, trusted: bool = False) -> Sweep:
    """Read a sweep file.

    Args:
        path: The file.
        trusted: Take one whose values name code from outside the package, or that has W&B start another program.

    Raises:
        RecipeError: If it is no YAML mapping, W&B or this package cannot run it, or it asks for trust that it has not; the
            message begins with the file and key.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such sweep file. `medsam-tune recipes list` shows the bundled ones.")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected keys such as method, metric and parameters, got {type(content).__name__}.")
    try:
        sweep = _sweep(path.stem, content)
        if not trusted:
            _check_programs(content)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    if not trusted:
        for values in ({key: value} for key, each in sweep.parameters.items() for value in each.values or (each.low,)):
            refuse_foreign_words(normalise_overrides(expand_command(sweep.command, values)[3:]), path)
    return sweep


def expand_command(command: Sequence[str], values: Mapping[str, object]) -> list[str]:
    """Return the words of one run: W&B's macros replaced, without the interpreter.

    Args:
        command: Such as ``["${env}", "medsam-tune", "run", "recipes/lora.yaml", "${args}"]``.
        values: Value of each dotted key.

    Examples:
        >>> expand_command(["${env}", "medsam-tune", "run", "msa", "${args}"], {"model.tuner.rank": 4})
        ['medsam-tune', 'run', 'msa', '--model.tuner.rank=4']
    """
    spellings = {
        "${env}": [],
        "${interpreter}": [],
        "${program}": ["medsam-tune"],
        "${args}": [f"--{key}={spell(value)}" for key, value in values.items()],
        "${args_no_hyphens}": [f"{key}={spell(value)}" for key, value in values.items()],
        "${args_no_equals}": [word for key, value in values.items() for word in (f"--{key}", spell(value))],
    }
    return [expanded for word in command for expanded in spellings.get(word, [word])]


def _sweep(name: str, content: Mapping[str, Any]) -> Sweep:
    unknown = sorted(str(key) for key in content.keys() - _KEYS)
    if unknown:
        raise RecipeError(f"{unknown[0]}: no key of a W&B sweep. Known: {', '.join(sorted(_KEYS))}.")
    method = content.get("method")
    if method not in METHODS:
        raise RecipeError(f"method: expected one of {', '.join(METHODS)}, got {method!r}.")
    metric = content.get("metric")
    if not isinstance(metric, dict) or not metric.get("name") or metric.get("goal") not in ("maximize", "minimize"):
        raise RecipeError(f"metric: expected a name and a goal, maximize or minimize, got {metric!r}. Such as name: val/dice.")
    checked = read_parameters(content.get("parameters"))
    ranges = [key for key, value in checked.items() if not value.values]
    if method == "grid" and ranges:
        raise RecipeError(f"parameters.{ranges[0]}: a grid needs values, not a range. List them, or set method: random.")
    return Sweep(
        name=name,
        method=method,
        metric=str(metric["name"]),
        maximise=metric["goal"] == "maximize",
        parameters=checked,
        command=_command(content.get("command")),
        run_cap=_run_cap(content.get("run_cap")),
        early_terminate=_early_terminate(content.get("early_terminate")),
    )


def _check_programs(content: Mapping[str, Any]) -> None:
    for key in _OTHER_PROGRAMS:
        if content.get(key, "medsam-tune") != "medsam-tune":
            raise RecipeError(
                f"{key}: names {content[key]!r}, which W&B would start. Leave it out, or say --trust if you trust this sweep."
            )


def _command(command: object) -> tuple[str, ...]:
    remedy = "Such as [${env}, medsam-tune, run, recipes/lora.yaml, ${args}]."
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise RecipeError(f"command: expected a list of words, got {command!r}. {remedy}")
    words = expand_command(command, {})
    macro = next((position for position, word in enumerate(command) if word.startswith("${args")), len(command))
    if words[:2] != ["medsam-tune", "run"] or len(expand_command(command[:macro], {})) < 3:
        raise RecipeError(f"command: must start `medsam-tune run RECIPE`, got {' '.join(command)!r}. {remedy}")
    if macro == len(command):
        raise RecipeError(f"command: has no ${{args}}, so every run would be the same. {remedy}")
    left = [word for word in words if "${" in word]
    if left:
        raise RecipeError(f"command: {left[0]} is not understood. Use ${{args}}. {remedy}")
    return tuple(command)


def _run_cap(value: object) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise RecipeError(f"run_cap: expected a number of at least 1, got {value!r}.")
    return value


def _early_terminate(block: object) -> Mapping[str, Any] | None:
    if block is None:
        return None
    if not isinstance(block, dict) or block.get("type") != "hyperband" or not block.keys() & {"min_iter", "max_iter"}:
        raise RecipeError(f"early_terminate: expected type: hyperband with min_iter or max_iter, got {block!r}.")
    unknown = sorted(block.keys() - _HYPERBAND)
    if unknown:
        raise RecipeError(f"early_terminate.{unknown[0]}: unknown. Known: {', '.join(sorted(_HYPERBAND))}.")
    for name, least in (("min_iter", 1), ("max_iter", 1), ("eta", 2)):
        value = block.get(name, least)
        if not isinstance(value, int) or value < least:
            raise RecipeError(f"early_terminate.{name}: expected a whole number of at least {least}, got {value!r}.")
    return block
