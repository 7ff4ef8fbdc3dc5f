"""Settings of a recipe's bundled sample, which must not survive a change of the data.

A recipe names a sample and how that is read: its axis, its slices, its labels. The parser would keep all of it when a command
line names another folder, and whatever the other class knows too when it names another source. So in training each of them is
set back to its default before the command line's own settings count. Prediction keeps them: so the network was trained.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from medsam_tune.data.sample import SAMPLE_PREFIX
from medsam_tune.yaml_files import read_yaml

ROOT, SOURCE = "data.root", "data.source"


def sample_settings_to_reset(recipe: Path, words: Sequence[str]) -> dict[str, Any]:
    """Return the recipe's source settings that the command line makes void, each with its default.

    Args:
        recipe: The recipe's file.
        words: The command line, in the forms ``--key=value`` and ``--key value``.

    Returns:
        Name to default; empty unless the recipe reads a bundled sample and the words name another folder or class.
    """
    content = read_yaml(recipe)
    data = content.get("data") if isinstance(content, Mapping) else None
    source = data.get("source") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(source, Mapping):
        return {}
    root, kind, settings = data.get("root"), source.get("class_path"), source.get("init_args")
    of_a_sample = isinstance(root, str) and root.startswith(SAMPLE_PREFIX)
    if not of_a_sample or not isinstance(kind, str) or not isinstance(settings, Mapping):
        return {}
    new_root, new_kind = given_value(words, ROOT), given_value(words, SOURCE)
    another_class = new_kind is not None and new_kind.rpartition(".")[2] != kind.rpartition(".")[2]
    if new_root in (None, root) and not another_class:
        return {}
    defaults = _defaults(kind)
    return {name: defaults[name] for name in settings if name in defaults}


def without_sample_settings(recipe: Path, words: Sequence[str], found: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return the command line with the sample's settings set back behind its recipe, and the names of those settings.

    Args:
        recipe: The recipe's file.
        words: The command line.
        found: What was found to stand in their place, as further words before the user's own.
    """
    defaults = sample_settings_to_reset(recipe, words)
    begin = next((place for place, word in enumerate(words) if word.startswith(("--config", "-c"))), None)
    if begin is None or not (defaults or found):
        return list(words), []
    behind = begin + (1 if "=" in words[begin] else 2)
    return [*words[:behind], *reset_words(defaults), *found, *words[behind:]], list(defaults)


def reset_words(defaults: Mapping[str, Any]) -> list[str]:
    """Write settings of the source as words of a command line.

    Examples:
        >>> reset_words({"axis": "axial", "labels": None})
        ['--data.source.axis=axial', '--data.source.labels=null']
    """
    return [
        f"--{SOURCE}.{name}={value if isinstance(value, str) else json.dumps(value, default=_plain)}"
        for name, value in defaults.items()
    ]


def given_value(words: Sequence[str], key: str) -> str | None:
    """Return the last value that the words give a key, or None.

    Args:
        words: The command line, in the forms ``--key=value`` and ``--key value``.
        key: Written out, without ``init_args``.
    """
    found = None
    for position, word in enumerate(words):
        if word.startswith(f"--{key}="):
            found = word.partition("=")[2]
        elif word == f"--{key}" and position + 1 < len(words):
            found = words[position + 1]
    return found


def _defaults(class_path: str) -> dict[str, Any]:
    """Return the defaults of a source's settings; none for a class that is not there, which the parser refuses."""
    module, _, name = class_path.rpartition(".")
    try:
        source = getattr(import_module(module or "medsam_tune.data"), name)
    except (ImportError, AttributeError):
        return {}
    parameters = inspect.signature(source).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
