"""The small data sets that travel with the package; each folder's ATTRIBUTION.md says where they come from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from medsam_tune.errors import RecipeError
from medsam_tune.folders import expand

SAMPLE_PREFIX = "sample:"
PLACEHOLDER = "DIR"
"""What stands for ``data.root`` in files that are shared."""


def sample_names() -> list[str]:
    """Return the names of the bundled data sets."""
    return sorted(folder.name for folder in _samples().iterdir() if folder.is_dir())


def sample_folder(name: str) -> Path:
    """Return the folder of a bundled data set.

    Raises:
        RecipeError: If there is none of that name.
    """
    if name not in sample_names():
        raise RecipeError(f"data.root: no bundled data set {name!r}; there are {sample_names()}.")
    return _samples() / name


def data_folder(root: str) -> Path:
    """Return the folder that ``data.root`` names: a path, or ``sample:<name>`` for a bundled data set.

    Raises:
        RecipeError: If a bundled data set of that name is not there, or ``root`` is the placeholder of a shared recipe.
    """
    if root.startswith(SAMPLE_PREFIX):
        return sample_folder(root.removeprefix(SAMPLE_PREFIX))
    folder = expand(root, "data.root")
    if root == PLACEHOLDER and not folder.is_dir():
        raise RecipeError(
            f"data.root: {root} stands for the data's folder, which config.yaml does not name. Give --data.root=FOLDER."
        )
    return folder


def _samples() -> Path:
    return Path(str(files("medsam_tune.data"))) / "sample"
