"""The ``parameters`` block of a sweep file: dotted recipe keys, and the values each takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from medsam_tune.errors import RecipeError

# W&B's distributions that run here too, with the keys each takes.
_RANGES = {
    "uniform": ("min", "max"),
    "int_uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform_values": ("min", "max"),
}
_LISTS = ("categorical", "constant")


@dataclass(frozen=True)
class Parameter:
    """Say what values one dotted recipe key takes.

    Attributes:
        values: The choices; empty where a range is given.
        distribution: Name in W&B's terms where a range is given.
        low: Least value of a range.
        high: Greatest value of a range.
        step: Distance between the values of ``q_uniform``.
    """

    values: tuple[object, ...] = ()
    distribution: str = "categorical"
    low: float = 0.0
    high: float = 0.0
    step: float | None = None


def read_parameters(block: object) -> dict[str, Parameter]:
    """Check a ``parameters`` block; blocks nested in it, as W&B allows them, become dotted keys.

    Raises:
        RecipeError: If W&B or this package cannot run it; the message begins with the key.

    Examples:
        >>> read_parameters({"model": {"parameters": {"loss": {"values": ["a", None]}}}})["model.loss"].values
        ('a', None)
    """
    if not isinstance(block, Mapping) or not block:
        raise RecipeError(f"parameters: expected recipe keys with values, got {block!r}.")
    flat = _flatten(block, "")
    return {key: _parameter(key, value) for key, value in flat.items()}


def spell(value: object) -> str:
    """Write a value as it stands in ``--key=value``: null for None, lists and mappings in YAML's flow style.

    Examples:
        >>> [spell(value) for value in (None, True, 1e-05, [8, None], "word")]
        ['null', 'True', '1e-05', '[8, null]', 'word']
    """
    if value is None:
        return "null"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def _flatten(block: Mapping[object, object], prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in block.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and "parameters" in value:
            inner = value["parameters"]
            if not isinstance(inner, Mapping) or not inner or len(value) > 1:
                raise RecipeError(f"parameters.{key}.parameters: expected recipe keys with values alone, got {dict(value)!r}.")
            found = _flatten(inner, f"{key}.")
        else:
            found = {key: value}
        twice = sorted(flat.keys() & found.keys())
        if twice:
            raise RecipeError(f"parameters.{twice[0]}: stands twice, once nested and once with dots. Keep one of the two.")
        flat |= found
    return flat


def _parameter(key: str, block: object) -> Parameter:
    where = f"parameters.{key}"
    if not isinstance(block, Mapping):
        raise RecipeError(f"{where}: expected values, value, or min and max, got {block!r}.")
    if "value" in block:
        return Parameter(values=(_writable(f"{where}.value", block["value"]),))
    if "values" in block:
        if not isinstance(block["values"], list) or not block["values"]:
            raise RecipeError(f"{where}.values: expected a list, got {block['values']!r}.")
        return Parameter(values=tuple(_writable(f"{where}.values", value) for value in block["values"]))
    return _range(where, block)


def _writable(where: str, value: object) -> object:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{where}: {value!r} has no form on a command line. Use numbers, texts, lists or null.") from error
    return value


def _range(where: str, block: Mapping[str, object]) -> Parameter:
    whole = isinstance(block.get("min"), int) and isinstance(block.get("max"), int)
    distribution = str(block.get("distribution", "int_uniform" if whole else "uniform"))
    if distribution in _LISTS:
        raise RecipeError(f"{where}.values: {distribution} needs values (or value), got none. List them.")
    if distribution not in _RANGES:
        known = ", ".join(_RANGES)
        raise RecipeError(f"{where}.distribution: {distribution!r} does not run here. Use one of {known}, or values.")
    numbers = {name: _number(f"{where}.{name}", block.get(name), distribution) for name in _RANGES[distribution]}
    low, high, step = numbers["min"], numbers["max"], numbers.get("q")
    if not low < high:
        raise RecipeError(f"{where}: min must be below max, got {low} and {high}.")
    if distribution == "log_uniform_values" and low <= 0:
        raise RecipeError(f"{where}.min: a logarithmic range begins above 0, got {low}. Raise it.")
    if step is not None and not 0 < step <= high - low:
        raise RecipeError(f"{where}.q: expected a step above 0 and no wider than the range, got {step}.")
    return Parameter((), distribution, low, high, step)


def _number(where: str, value: object, distribution: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecipeError(f"{where}: {distribution} needs a number, got {value!r}.")
    if distribution == "int_uniform" and value != int(value):
        raise RecipeError(f"{where}: int_uniform needs a whole number, got {value}. Use uniform, or whole bounds.")
    return value
