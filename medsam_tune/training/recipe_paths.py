"""Paths as a recipe and a command line give them: ``~`` is the user's home, and a file of base weights has an absolute path."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medsam_tune.errors import RecipeError

if TYPE_CHECKING:
    from jsonargparse import Namespace

_LONGEST_NAME = 255  # bytes, on every usual file system
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


def check_place(key: str, value: str) -> None:
    """Refuse a text that no file or folder can be called.

    Raises:
        RecipeError: With the key.
    """
    if not _can_be_a_path(value):
        shown = value if len(value) < _LONGEST_NAME else f"{value[:20]}... of {len(value)} letters"
        raise RecipeError(f"{key}: expected the path of a folder, got {shown!r}. Correct it.")


def _can_be_a_path(value: str) -> bool:
    try:
        lengths = [len(os.fsencode(part)) for part in value.split("/")]
    except UnicodeEncodeError:
        return False
    return bool(value.strip()) and "\0" not in value and max(lengths) <= _LONGEST_NAME


def shareable(command: str, root: str) -> str:
    """Return a command without folders: ``DIR`` stands for the data's, whose name may be a patient's; files keep their names.

    Examples:
        >>> shareable("medsam-tune run /me/lora.yaml --data.root=/scans/DOE --data.split.file=/scans/DOE/s.json", "/scans/DOE")
        'medsam-tune run lora.yaml --data.root=DIR --data.split.file=DIR/s.json'
    """
    return shlex.join(_without_folder(word, "" if root.startswith("sample:") else root) for word in shlex.split(command))


def _without_folder(word: str, root: str) -> str:
    key, equals, value = word.partition("=") if word.startswith("--") or not os.path.isabs(word) else ("", "", word)
    if not equals:
        key, value = "", word
    if root and (value == root or value.startswith(root + os.sep)):
        value = "DIR" + value.removeprefix(root)
    elif os.path.isabs(value):
        value = os.path.basename(value.rstrip(os.sep))
    return key + equals + value
