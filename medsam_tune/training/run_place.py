"""Where the runs of a recipe on some data lie below ``run.folder``: ``<data>/<recipe>-<name>``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from medsam_tune.data.sample import SAMPLE_PREFIX

RUNS = "*/*/*"
"""Pattern of run folders below ``run.folder``: data, recipe with name, time."""

_DIGITS = 6


def run_place(root: str, recipe: str, name: str | None = None) -> Path:
    """Return the folder of a recipe's runs on some data, below ``run.folder``.

    A bundled sample goes by its name. A folder's name may name a patient, and paths of runs travel in reports and loggers: your
    own data go by a checksum of the folder's path, the same for each run on it.

    Args:
        root: ``data.root``.
        recipe: The recipe's name, without folder and ending.
        name: ``run.name``.

    Examples:
        >>> run_place("sample:hippocampus", "lora", "rank-4").as_posix()
        'hippocampus/lora-rank-4'
    """
    return Path(data_name(root), recipe if name is None else f"{recipe}-{name}")


def data_name(root: str) -> str:
    """Return what stands for the data in the path of a run."""
    if root.startswith(SAMPLE_PREFIX):
        return root.removeprefix(SAMPLE_PREFIX)
    path = str(Path(root).expanduser().resolve())
    return f"own-{hashlib.blake2b(path.encode(errors='surrogatepass')).hexdigest()[:_DIGITS]}"
