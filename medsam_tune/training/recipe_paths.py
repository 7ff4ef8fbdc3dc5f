"""Paths as a recipe and a command line give them: ``~`` is the user's home, and a file of base weights has an absolute path."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import Namespace

_HOME = re.compile(r"((?:--)?[\w.-]+=)?(~(?:/.*)?)", re.DOTALL)


def expand_word(word: str) -> str:
    """Return a word of a command line with its ``~`` replaced; a shell leaves the one in ``--key=~/x`` alone.

    Examples:
        >>> expand_word("--data.root=a~b")
        '--data.root=a~b'
        >>> expand_word("--run.folder=~/runs").endswith("~/runs")
        False
    """
    found = _HOME.fullmatch(word)
    return word if found is None else (found[1] or "") + os.path.expanduser(found[2])


def resolve_paths(values: Namespace) -> None:
    """Replace the ``~`` of every text in a parsed recipe, in place, and make every ``checkpoint`` absolute.

    The stored recipe of a run then finds its base weights from any folder.
    """
    for key, value in vars(values).items():
        found = _expanded(value)
        setattr(values, key, os.path.abspath(found) if key == "checkpoint" and isinstance(found, str) else found)


def _expanded(value: Any) -> Any:  # noqa: ANN401 - anything that YAML holds
    from jsonargparse import Namespace

    if isinstance(value, str):
        return os.path.expanduser(value) if value == "~" or value.startswith("~/") else value
    if isinstance(value, list | tuple):
        return type(value)(_expanded(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, Namespace):
        resolve_paths(value)
    return value


def without_folder(command: str, root: str) -> str:
    """Return a command or a value with ``DIR`` in place of the data folder: its name may name a patient, and reports travel.

    Examples:
        >>> without_folder("medsam-tune run lora.yaml --data.root=/data/DOE --data.split.file=/data/DOE/s.json", "/data/DOE")
        'medsam-tune run lora.yaml --data.root=DIR --data.split.file=DIR/s.json'
    """
    if root.startswith("sample:"):
        return command
    return re.sub(rf"(?<![^\s='\"]){re.escape(root)}(?=[\s/'\"]|$)", "DIR", command)
