"""What of a recipe belongs to one machine: where things lie, among them the data's folder, whose name may be a patient's.

A run keeps these paths in ``local.yaml`` alone, readable for its owner, and its ``config.yaml`` names none, so that it can be
shared. Wherever the one is read as a recipe, the other is read after it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

import yaml

from medsam_tune.data.sample import PLACEHOLDER, SAMPLE_PREFIX
from medsam_tune.files import write_text
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.yaml_files import read_dumped, read_yaml

_DATA_FILE = "FILE"
_LOCAL_HEAD = """\
# Where things lie on this machine. A folder may be named after a patient: never share this file; config.yaml names no path.
"""


def split_places(recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a recipe without paths, and what is to be read over it on this machine.

    Args:
        recipe: The resolved recipe, nested.

    Examples:
        >>> split_places({"data": {"root": "/scans/DOE", "views": 1}, "run": {"folder": "/me/runs"}})[0]
        {'data': {'root': 'DIR', 'views': 1}, 'run': {'folder': 'runs'}}
        >>> split_places({"data": {"root": "/scans/DOE", "views": 1}, "run": {"folder": "runs"}})[1]
        {'data': {'root': '/scans/DOE'}}
    """
    root = str((recipe.get("data") or {}).get("root") or "")
    shared, local = _split(recipe, "", root)
    return shared, local or {}


def write_recipe(folder: RunFolder, text: str, comment: str = "") -> str:
    """Write a run's ``config.yaml`` and, where the recipe names paths, its ``local.yaml``.

    Args:
        folder: The run.
        text: The resolved recipe as YAML.
        comment: What the recipe opens with, without its marks; a resumed run's report shows it again.

    Returns:
        What ``config.yaml`` holds.
    """
    # The parser begins its text with a comment of its own.
    text = "".join(dropwhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    shared, local = split_places(read_dumped(text))
    if local:
        # Before config.yaml, which says that the run has been recorded.
        write_text(folder.local, _LOCAL_HEAD + yaml.safe_dump(local, sort_keys=False), private=True)
        text = yaml.safe_dump(shared, sort_keys=False)
    else:
        folder.local.unlink(missing_ok=True)
    text = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines()) + text
    write_text(folder.config, text)
    return text


def read_recipe(folder: RunFolder) -> object:
    """Return the recipe of a run with the paths of this machine; whatever else ``config.yaml`` holds is returned as it is."""
    recipe = read_yaml(folder.config)
    return _merged(recipe, read_yaml(folder.local)) if folder.local.is_file() else recipe


def with_local(words: Sequence[str]) -> list[str]:
    """Return a command line in which each ``--config`` that names a run's ``config.yaml`` is followed by its ``local.yaml``."""
    found: list[str] = []
    for position, word in enumerate(words):
        found.append(word)
        option, equals, value = word.partition("=")
        if not equals and position:
            option, value = words[position - 1], word
        folder = RunFolder(Path(value).parent)
        if option in ("--config", "-c") and Path(value).name == folder.config.name and folder.local.is_file():
            found.append(f"--config={folder.local}")
    return found


def _split(value: Any, key: str, root: str) -> tuple[Any, Any]:  # noqa: ANN401 - what YAML holds
    """Return the value without paths, and what differs from it here; None where nothing does."""
    if isinstance(value, Mapping):
        parts = {name: _split(item, f"{key}.{name}" if key else str(name), root) for name, item in value.items()}
        local = {name: here for name, (_, here) in parts.items() if here is not None}
        if local and "class_path" in value:
            local = {"class_path": value["class_path"], **local}
        return {name: shared for name, (shared, _) in parts.items()}, local or None
    if isinstance(value, list):
        items = [_split(item, key, root) for item in value]
        return [shared for shared, _ in items], value if any(here is not None for _, here in items) else None
    if isinstance(value, str) and (placeholder := _placeholder(value, key, root)) is not None:
        return placeholder, value
    return value, None


def _placeholder(text: str, key: str, root: str) -> str | None:
    """Return what stands for a path; None for a text that is none."""
    if key == "data.root":
        return None if text.startswith(SAMPLE_PREFIX) else PLACEHOLDER
    of_data = key.startswith("data.")
    is_path = text.startswith((os.sep, f"..{os.sep}", f".{os.sep}")) or (root != "" and text.startswith(root + os.sep))
    # A pattern may begin as a path does, so a text of the data counts where something lies there.
    if of_data and (text.lower().endswith(".csv") or (os.sep in text and Path(text).exists())):
        return _DATA_FILE
    return Path(text).name if is_path and not of_data else None


def _merged(below: Any, over: Any) -> Any:  # noqa: ANN401 - what YAML holds
    if isinstance(below, Mapping) and isinstance(over, Mapping):
        return {**below, **{name: _merged(below.get(name), item) for name, item in over.items()}}
    return over
