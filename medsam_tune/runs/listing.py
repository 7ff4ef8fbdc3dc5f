"""Which runs there are, how each of them stands, and what may be removed."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medsam_tune.errors import DataError, RecipeError
from medsam_tune.files import read_json
from medsam_tune.folders import expand
from medsam_tune.training.run_folder import RunFolder

State = Literal["finished", "running", "stopped", "failed"]
STILL_SECONDS = 3600.0
"""A run without a result that wrote nothing for so long is taken for stopped."""

_STARTED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d+)?|slurm-\d+.*")
_NAME = re.compile(r"^run:\n(?:  .*\n)*?  name: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class RunEntry:
    """Hold how a run stands.

    Attributes:
        folder: The run.
        data: What stands for its data in the path; empty where the folder lies elsewhere.
        recipe: The recipe's name.
        name: ``run.name``, or empty.
        state: ``finished`` with a ``summary.json``; ``running`` where something was written within the last hour; else
            ``failed`` with an ``error.log`` and ``stopped`` without.
        dice: Test Dice, or None.
        untuned: That of the untuned network the verdict is against, or None.
        verdict: Of the run, or empty.
        size: Bytes of all its files.
    """

    folder: Path
    data: str
    recipe: str
    name: str
    state: State
    dice: float | None
    untuned: float | None
    verdict: str
    size: int


def find_runs(root: Path) -> list[RunEntry]:
    """Return every run below a folder, in the order of their paths.

    Raises:
        DataError: If the folder does not exist.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder, so there are no runs in it. Give --folder=DIR, or run a recipe first.")
    return [entry_of(folder, root) for folder in sorted(_run_folders(root))]


def entry_of(folder: Path, root: Path) -> RunEntry:
    """Return how one run stands.

    Args:
        folder: The run.
        root: The folder of all runs.
    """
    files = RunFolder(folder)
    name = _name_of(files.config)
    parts = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    summary: dict[str, Any] = read_json(files.summary, "Remove the run, or test it again.") if files.summary.is_file() else {}
    verdict = summary.get("verdict") or {}
    against = (summary.get("baselines") or {}).get(verdict.get("against")) or {}
    size, changed = _size_and_change(folder)
    return RunEntry(
        folder=folder,
        data=parts[0] if len(parts) == 3 else "",
        recipe=folder.parent.name.removesuffix(f"-{name}"),
        name=name,
        state=_state(files, changed),
        dice=_dice(summary.get("test")),
        untuned=_dice(against),
        verdict=verdict.get("verdict", ""),
        size=size,
    )


def named_runs(words: Sequence[str], root: Path) -> list[RunEntry]:
    """Return the runs that words name: a run's folder, or what ``run_named`` takes.

    Raises:
        RecipeError: If a word names no run, or several.
    """
    found = []
    for word in words:
        folder = Path(word).expanduser()
        meant = folder if _is_run(folder) else run_named(word, root)
        if meant is None:
            raise RecipeError(f"{word}: is no run. Give its folder as `medsam-tune runs list` shows it.")
        found.append(entry_of(meant, root))
    return found


def run_or_folder(word: str, key: str) -> Path:
    """Return the folder that a word of the command line is, or, where there is none, the run that goes by it.

    Args:
        word: A folder, or what ``run_named`` takes.
        key: What the command line calls it.

    Raises:
        RecipeError: If several runs go by it.
    """
    folder = expand(word, key)
    return folder if folder.exists() else run_named(word) or folder


def run_named(word: str, root: Path = Path("runs")) -> Path | None:
    """Return the one run below ``root`` that goes by a word: the end of its path, its recipe and name, or its name alone.

    Args:
        word: Such as ``2026-11-26_20-56-28``, ``lora-wide``, or ``wide`` for a run that was started with ``name=wide``.
        root: Where runs lie.

    Raises:
        RecipeError: If several go by it; which one is meant is not guessed.
    """
    meant = [run for run in _run_folders(root) if _goes_by(run, word)]
    if len(meant) > 1:
        shown = ", ".join(str(run) for run in sorted(meant)[-3:])
        raise RecipeError(f"{word}: names {len(meant)} runs, such as {shown}. Give the folder of one of them.")
    return meant[0] if meant else None


def remove_runs(entries: Sequence[RunEntry], root: Path) -> None:
    """Remove runs with all their files, and the folders above them that held nothing else, up to ``root``.

    Raises:
        DataError: If one of them cannot be removed.
    """
    for entry in entries:
        try:
            shutil.rmtree(entry.folder)
        except OSError as error:
            raise DataError(f"{entry.folder}: cannot be removed ({error.strerror}). Allow it, or leave the run.") from error
        with suppress(OSError):  # a parent that is not empty
            for parent in entry.folder.parents:
                if parent == root or not parent.is_relative_to(root):
                    break
                parent.rmdir()


def _run_folders(root: Path) -> Iterator[Path]:
    """Yield every run below ``root``; what a run keeps inside of it, such as the scores of a later test, is part of it."""
    for place, folders, _ in os.walk(root):
        if _is_run(Path(place)):
            folders.clear()
            yield Path(place)


def _goes_by(run: Path, word: str) -> bool:
    kind = run.parent.name
    return f"/{run.as_posix()}".endswith(f"/{word}") or kind == word or kind.endswith(f"-{word}")


def _is_run(folder: Path) -> bool:
    # One that was killed early has no config.yaml yet.
    return RunFolder(folder).config.is_file() or (_STARTED.fullmatch(folder.name) is not None and folder.is_dir())


def _state(files: RunFolder, changed: float) -> State:
    if files.summary.is_file():
        return "finished"
    if time.time() - changed < STILL_SECONDS:
        return "running"
    return "failed" if (files.path / "error.log").is_file() else "stopped"


def _name_of(config: Path) -> str:
    found = _NAME.search(config.read_text(encoding="utf-8")) if config.is_file() else None
    return "" if found is None or found[1] == "null" else found[1].strip("'\"")


def _dice(scores: dict[str, Any] | None) -> float | None:
    value = ((scores or {}).get("dice") or {}).get("mean")
    return None if value is None else float(value)


def _size_and_change(folder: Path) -> tuple[int, float]:
    """Return the bytes of all files below a folder, and when one of them was written last."""
    size, changed = 0, folder.stat().st_mtime
    for path in folder.rglob("*"):
        with suppress(OSError):  # it has just been renamed
            status = path.lstat()
            size, changed = size + (0 if path.is_dir() else status.st_size), max(changed, status.st_mtime)
    return size, changed
