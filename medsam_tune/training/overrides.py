"""The three spellings of an override, brought to one.

``key=value`` and ``++key=value`` are what W&B sweeps write with ``${args_no_hyphens}`` and ``${args_override_hydra}``,
``--key value`` with ``${args_no_equals}``; jsonargparse takes ``--key=value``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from medsam_tune.errors import RecipeError

# jsonargparse appends to a list with `--key+=value`.
_ASSIGNMENT = re.compile(r"(?:--|\+\+|\+)?([A-Za-z_][\w.\-]*\+?)=(.*)", re.DOTALL)
_OPTION = re.compile(r"--([A-Za-z_][\w.\-]*)")


def normalise_overrides(words: Sequence[str]) -> list[str]:
    """Write every override as ``--key=value``; an option with no value, such as ``--print_config``, stays as it is.

    Raises:
        RecipeError: If a word is neither an override nor the value of the option before it.

    Examples:
        >>> normalise_overrides(["model.lr=0.1", "++trainer.devices=2", "--data.root", "my images"])
        ['--model.lr=0.1', '--trainer.devices=2', '--data.root=my images']
    """
    normal: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        following = words[position + 1] if position + 1 < len(words) else None
        position += 1
        if assignment := _ASSIGNMENT.fullmatch(word):
            normal.append(f"--{assignment[1]}={_value(assignment[2])}")
        elif not _OPTION.fullmatch(word):
            raise RecipeError(f"{word}: expected an override, --key=value or key=value. A value with spaces needs quotes.")
        elif following is None or _begins_override(following):
            normal.append(word)
        else:
            normal.append(f"{word}={_value(following)}")
            position += 1
    return normal


def _value(text: str) -> str:
    # W&B's agent writes null as Python does.
    return "null" if text == "None" else text


def _begins_override(word: str) -> bool:
    return word.startswith(("--", "++")) or _ASSIGNMENT.fullmatch(word) is not None
