"""``export.json``: what lies in an export folder and how it is read back without being trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsam_tune import __version__
from medsam_tune.errors import CheckpointError
from medsam_tune.files import read_json

FORMAT_VERSION = 2
DESCRIPTION_FILE = "export.json"
_KEYS: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "base_weights": (dict, type(None)),
    "frozen": dict,
    "files": dict,
}


def read_description(folder: Path) -> dict[str, Any]:
    """Read and validate ``folder/export.json``.

    Raises:
        CheckpointError: If it is missing, unreadable, incomplete or of another format version.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        alone = " peft alone loads it: PeftModel.from_pretrained(SamBackbone(NAME), FOLDER)."
        peft = alone if (folder / "adapter_config.json").is_file() else ""
        raise CheckpointError(f"{path}: no such file. Give the folder that holds it, such as runs/NAME/TIME/export.{peft}")
    description = read_object(path)
    _check_version(path, description.get("format_version"))
    wrong = [key for key, kind in _KEYS.items() if key not in description or not isinstance(description[key], kind)]
    if not wrong and not all(isinstance(identity, dict) for identity in description["frozen"].values()):
        wrong = ["frozen"]
    if wrong:
        raise CheckpointError(f"{path}: {', '.join(wrong)} missing or of the wrong type. Export the run again.")
    return description


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file of an export that holds an object.

    Raises:
        CheckpointError: If it is missing, unreadable or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Copy the whole export folder.")
    value: Any = read_json(path, "Copy it again, or export the run again.", error=CheckpointError)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(value).__name__}. Export the run again.")
    return value


def _check_version(path: Path, version: object) -> None:
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {version}, medsam-tune {__version__} reads {FORMAT_VERSION}. "
            "Install the version that wrote it (key medsam_tune), or export the run again."
        )
