"""``medsam-tune recipes upgrade``: a recipe of an earlier version in the form of today, its comments kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from medsam_tune.errors import RecipeError
from medsam_tune.files import write_text
from medsam_tune.training.old_recipes import Upgraded, old_key, upgrade_model
from medsam_tune.yaml_files import read_recipe_text, read_yaml

KEPT = ".old"


class _Dumper(yaml.SafeDumper):
    """Indent lists below their key, as the bundled recipes do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def upgrade_file(path: Path) -> tuple[str, ...]:
    """Rewrite a recipe of an earlier version; the old one stays beside it, with ``.old`` behind its name.

    Where only names change, every line stays; otherwise the ``model`` section is written anew, without the comments inside it.
    Overrides in comments follow.

    Returns:
        What was changed, a line each; empty for a recipe in the form of today, which is left alone.

    Raises:
        RecipeError: If the file is no recipe, cannot be converted, or the name for the old one is taken.
    """
    recipe = read_yaml(path)
    if not isinstance(recipe, Mapping):
        raise RecipeError(f"{path}: expected the sections of a recipe, got {type(recipe).__name__}. Give a recipe.")
    if old_key(recipe) is None:
        return ()
    try:
        upgraded = upgrade_model(recipe["model"])
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    kept = path.with_name(path.name + KEPT)
    if kept.exists():
        raise RecipeError(f"{kept}: exists already, and the old recipe would be kept there. Move it away.")
    old = read_recipe_text(path)
    new = upgraded_text(old, upgraded)
    write_text(kept, old)
    write_text(path, new)
    return upgraded.changes


def upgraded_text(text: str, upgraded: Upgraded) -> str:
    """Return the text of a recipe with its ``model`` section in the form of today."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if upgraded.names_only:
        lines = _renamed(text, node, upgraded).splitlines(keepends=True)
        return "".join(_follow(lines, upgraded))
    section = yaml.dump(
        {"model": upgraded.model},
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=124,
        allow_unicode=True,
    )
    lines = text.splitlines(keepends=True)
    first, last = _model_lines(node)
    return "".join([*_follow(lines[:first], upgraded), section, *_follow(lines[last:], upgraded)])


def _renamed(text: str, node: yaml.Node | None, upgraded: Upgraded) -> str:
    """Put the names of today where those of yesterday stand: the key, the generator's class, the list of a joint prompt."""
    (key, value) = next(pair for pair in _pairs(_value_of(node, "model")) if pair[0].value == "prompt_source")
    name = "prompt_encoder" if "prompt_encoder" in upgraded.model else "prompts"
    edits: list[tuple[yaml.Node, str]] = [(key, name)]
    if name == "prompt_encoder":
        path = upgraded.model[name]["class_path"]
        edits += [(item, path) for entry, item in _pairs(value) if entry.value == "class_path"]
    else:
        edits += [(entry, "samplers") for entry in _keys(value) if entry.value == "sources"]
    # From the end to the start, so that places stay true.
    for scalar, new in sorted(edits, key=lambda edit: -edit[0].start_mark.index):
        text = text[: scalar.start_mark.index] + new + text[scalar.end_mark.index :]
    return text


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _value_of(node: yaml.Node | None, name: str) -> yaml.Node | None:
    return next((value for key, value in _pairs(node) if key.value == name), None)


def _keys(node: yaml.Node) -> list[yaml.ScalarNode]:
    """Return every key below a node."""
    if isinstance(node, yaml.SequenceNode):
        return [key for item in node.value for key in _keys(item)]
    return [found for key, value in _pairs(node) for found in (key, *_keys(value))]


def _model_lines(node: yaml.Node | None) -> tuple[int, int]:
    """Return the first line of the ``model`` section and the line after its last."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            if key.value == "model":
                return key.start_mark.line, _last_line(value) + 1
    raise RecipeError("model: is no section of its own lines, so it cannot be replaced. Write `model:` on a line of its own.")


def _last_line(node: yaml.Node) -> int:
    """Return the line on which a value ends; a block's own end mark lies behind the comments that follow it."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _last_line(node.value[-1][1])
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _last_line(node.value[-1])
    # The end of a plain scalar may stand at the start of the line behind it.
    mark = node.end_mark
    return mark.line - 1 if mark.column == 0 and mark.line > node.start_mark.line else mark.line


def _follow(lines: list[str], upgraded: Upgraded) -> list[str]:
    """Let the overrides that comments show name the keys of today."""
    key = "prompt_encoder" if "prompt_encoder" in upgraded.model else "prompts"
    lifted = r"\bmodel\.segmenter\.(?:init_args\.)?(?=(?:backbone|tuner|prompt_source|fusion|side|objects_per_decode)\b)"
    return [
        re.sub(lifted, "model.", line).replace("model.prompt_source", f"model.{key}") if line.lstrip().startswith("#") else line
        for line in lines
    ]
