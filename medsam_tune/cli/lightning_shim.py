"""The console script ``lightning``: ours for recipes, a go-between for everything else.

lightning 2.6 installs no such command; lightning-sdk does, and has no way to add to it. So ``lightning run X.yaml`` is ours,
anything else goes to lightning-sdk where that is installed, and ``lightning run script.py`` to Fabric where it is not.
A lightning-sdk installed later takes the name over: ``medsam-tune doctor`` says so, and ``medsam-tune run`` goes on working.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from pathlib import Path

HELP = "lightning: type `lightning run RECIPE.yaml` (`medsam-tune --help` shows more) or, for Fabric, `lightning run SCRIPT.py`"


def main() -> int:
    """Run the words after ``lightning`` and return the exit status."""
    words = sys.argv[1:]
    if _runs_file(words, ".yaml", ".yml"):
        from medsam_tune.cli import main as medsam_tune_main

        return medsam_tune_main()
    command = console_script("lightning-sdk", "lightning")
    if command is None and _runs_file(words, ".py"):
        command = console_script("lightning", "fabric")
    if command is None:
        print(HELP, file=sys.stderr)
        return 2
    return int(command.load()() or 0)


def console_script(distribution_name: str, script: str) -> EntryPoint | None:
    """Return the console script of an installed distribution, or None where either is missing."""
    try:
        found = distribution(distribution_name).entry_points.select(group="console_scripts", name=script)
    except PackageNotFoundError:
        return None
    return next(iter(found), None)


def _runs_file(words: Sequence[str], *suffixes: str) -> bool:
    return len(words) > 1 and words[0] == "run" and Path(words[1]).suffix.lower() in suffixes
