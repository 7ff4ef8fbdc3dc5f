"""YAML that people write: read without running anything, each fault one line that names the file and the place."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from medsam_tune.errors import RecipeError

MAX_BYTES = 5_000_000
MAX_VALUES = 100_000

# YAML 1.1 takes 1e-5 for a word, because it has no point; people and YAML 1.2 take it for a number.
_SCIENTIFIC = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """Read 1e-5 as a number and dates as text, and refuse a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge") else None
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice; keep one of the two", key.start_mark)
            seen |= {name} if name is not None else set()
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [rule for rule in rules if not rule[0].endswith(":timestamp")]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789"))


def read_yaml(path: Path) -> object:
    """Read one YAML file.

    Args:
        path: Of a recipe, a sweep or another file that a user may have written.

    Returns:
        Mappings, lists, texts, numbers, booleans and None; dates stay texts.

    Raises:
        RecipeError: If the file cannot be read, is no text in UTF-8 or no YAML, holds a key twice, or is far too large, be it
            only after its anchors are put in.
    """
    text = read_recipe_text(path)
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        raise RecipeError(f"{path}: {_line(error)}{error.problem}. Correct the file.") from error
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"{path}: {_line(error)}is no YAML ({error.problem}). Correct the file.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is no YAML ({' '.join(str(error).split())}). Correct the file.") from error
    except (RecursionError, ValueError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise RecipeError(f"{path}: cannot be read as YAML ({reason}). Correct the file.") from error
    if _count(content, {}) > MAX_VALUES:
        raise RecipeError(f"{path}: holds more than {MAX_VALUES} values once its anchors are put in. Write them out, or fewer.")
    return content


def read_dumped(text: str) -> Any:  # noqa: ANN401 - whatever was dumped
    """Read YAML that this program wrote itself; libyaml, where PyYAML has it, takes a tenth of the time."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def read_recipe_text(path: Path) -> str:
    """Read a YAML file as text.

    Raises:
        RecipeError: If the file cannot be read, is larger than any recipe, or is no text in UTF-8.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: is larger than {MAX_BYTES // 10**6} MB, which no recipe is. Give a .yaml file.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}). Give a .yaml file that can be read.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RecipeError(f"{path}: line {line}: is no text in UTF-8. Save the file as UTF-8.") from error


def opening_comment(path: Path | None) -> str:
    """Return the comment that a YAML file opens with, without its marks; empty where there is no file or no comment."""
    if path is None or not path.is_file():
        return ""
    lines = takewhile(lambda line: line.startswith("#"), read_recipe_text(path).splitlines())
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines).strip()


def _line(error: yaml.MarkedYAMLError) -> str:
    return "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "


def _count(value: object, known: dict[int, int]) -> int:
    """Return the number of values with every anchor put in; an anchor is counted once and its number used again."""
    if not isinstance(value, Mapping | list):
        return 1
    if id(value) not in known:
        # A value that holds itself would never end.
        known[id(value)] = MAX_VALUES + 1
        inside = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_count(item, known) for item in inside)
    return known[id(value)]
