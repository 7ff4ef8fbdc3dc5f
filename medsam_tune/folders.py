"""Folders of the user's account: paths as people write them, and where the package keeps what belongs to no run."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

from medsam_tune.errors import RecipeError


def expand(path: str | Path, key: str) -> Path:
    """Return a path with ``~`` and ``~name`` replaced.

    Args:
        path: As the user wrote it.
        key: The recipe's key or the option, for the error.

    Raises:
        RecipeError: If there is no such account, or this one has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RecipeError(f"{key}: {path}: no home folder is known for it. Write the whole path.") from error


def cache_folder() -> Path:
    """Return where caches and downloads lie: ``~/.cache/medsam_tune``."""
    return _home() / ".cache" / "medsam_tune"


def state_folder() -> Path:
    """Return where logs of faults outside a run lie: ``$XDG_STATE_HOME/medsam_tune`` or ``~/.local/state/medsam_tune``."""
    named = os.environ.get("XDG_STATE_HOME")
    return (Path(named) if named else _home() / ".local" / "state") / "medsam_tune"


def complete_account() -> None:
    """Give this process a home folder and a name where it has none, as in a container under a number that no account has.

    PyTorch's compiler, Matplotlib and W&B ask for them, some by a traceback and some by a folder that is called ``~``.
    """
    os.environ.setdefault("HOME", str(_home()))
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid{os.getuid()}"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"medsam_tune-{os.getuid()}"
