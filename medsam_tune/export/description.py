"""``export.json``: what lies in an export folder and how it is read back without being trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsam_tune import __version__
from medsam_tune.errors import CheckpointError
from medsam_tune.files import read_json

FORMAT_VERSION = 1
DESCRIPTION_FILE = "export.json"
_KEYS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "base_weights": (dict, type(None)),
    "file": str,
    "sha256": str,
    "parameters": dict,
}


def read_description(folder: Path) -> dict[str, Any]:
    """Read and validate ``folder/export.json``.

    Raises:
        CheckpointError: If it is missing, unreadable, incomplete or of another format version.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Give the folder that holds it, such as runs/NAME/TIME/export.")
    description: Any = read_json(path, "Export the run again.", error=CheckpointError)
    if not isinstance(description, dict):
        raise CheckpointError(
            f"{path}: expected an object with a model, got {type(description).__name__}. Export the run again."
        )
    _check_version(path, description.get("format_version"))
    wrong = [key for key, kind in _KEYS.items() if key not in description or not isinstance(description[key], kind)]
    if wrong:
        raise CheckpointError(f"{path}: {', '.join(wrong)} missing or of the wrong type. Export the run again.")
    _check_file(path, description["file"])
    return description


def _check_version(path: Path, version: object) -> None:
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {version}, medsam-tune {__version__} reads {FORMAT_VERSION}. "
            "Install the version that wrote it (key medsam_tune)."
        )


def _check_file(path: Path, file: str) -> None:
    """Refuse a name that leads out of the folder: the description may come from anywhere."""
    if file in ("", ".", "..") or "/" in file or "\\" in file:
        raise CheckpointError(f"{path}: file must be a plain name within the folder, got {file!r}. Export the run again.")
