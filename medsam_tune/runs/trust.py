"""Whether a run's recipe names code of a stranger: looked at before anything that it names is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from medsam_tune.errors import RecipeError

OWN = ("medsam_tune", "torch", "torchvision", "lightning", "pytorch_lightning", "peft")
"""Packages whose classes a recipe may name without trust; the parser takes each only where its kind is expected."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def refuse_foreign_code(recipe: object, path: Path) -> None:
    """Refuse a recipe that names a class or function of a package that is none of ``OWN``.

    Every text that could be imported counts, whatever key it stands under: the parser takes a bare name for a class.

    Args:
        recipe: The recipe's content.
        path: Its file, for the message.

    Raises:
        RecipeError: Naming the key and what it names.
    """
    for key, text in _texts(recipe, ""):
        package = text.partition(".")[0]
        if _DOTTED.fullmatch(text) and package not in OWN and find_spec(package) is not None:
            raise RecipeError(
                f"{path}: {key} names {text}, code from outside medsam_tune that would run. "
                "Say --trust (trusted=True in Python) if you trust this run and that code."
            )


def _texts(value: object, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str):
        yield key, value
