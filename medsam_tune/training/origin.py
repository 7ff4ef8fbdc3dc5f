"""What a checkpoint that is scored or predicted with brings along: the run that wrote it, that run's data and its split."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsam_tune.data.pairing import first_names
from medsam_tune.data.split_file import read_splits
from medsam_tune.data.splits import Splits, SplitSettings
from medsam_tune.errors import CheckpointError, DataWarning, RecipeError
from medsam_tune.training.places import read_recipe
from medsam_tune.training.record import flat
from medsam_tune.training.run_folder import RunFolder, run_folder_of

UNTUNED = "--untuned"
_SAME_DATA = ("root", "source", "target", "patient", "ignore_label")
_SPLIT_WORD = re.compile(r"--data\.split\.(seed|val_fraction|test_fraction|folds|fold)(?:=.*)?", re.DOTALL)


def check_weights_named(stage: str, checkpoint: object, *, untuned: bool) -> None:
    """Refuse to score or to draw with a network that nobody trained, unless that is asked for.

    Raises:
        RecipeError: If neither or both are given.
    """
    if checkpoint is None and not untuned:
        raise RecipeError(
            f"--ckpt_path: is not given, so `{stage}` would use a network that nobody trained. Give a run "
            f"(`medsam-tune {stage} RUN`) or --ckpt_path=FILE; {UNTUNED} asks for the untrained network."
        )
    if checkpoint is not None and untuned:
        raise RecipeError(f"{UNTUNED}: contradicts --ckpt_path={checkpoint}. Leave one of them out.")


def check_same_data(asked: str, run: Path, data: Mapping[str, Any]) -> None:
    """Refuse ``--ckpt_path=best`` and ``last`` where the recipe's newest run was trained on other data.

    Args:
        asked: ``best`` or ``last``.
        run: The newest run.
        data: The ``data`` section of the recipe in force.

    Raises:
        RecipeError: Naming the keys that differ, with both values.
    """
    what = "; ".join(_differences(RunFolder(run), data).values())
    if what:
        raise RecipeError(
            f"--ckpt_path={asked}: the newest run of this recipe, {run}, was trained on other data ({what}). "
            f"If that run is meant, name its file: --ckpt_path={run}/checkpoints/{asked}.ckpt."
        )


def warn_of_other_settings(checkpoint: Path, data: Mapping[str, Any], words: Sequence[str]) -> None:
    """Say aloud where a recipe reads a run's data otherwise than its training did, though nobody asked for that.

    Args:
        checkpoint: Of the run.
        data: The ``data`` section of the recipe in force.
        words: The command line: what it sets is meant.
    """
    run = run_folder_of(checkpoint)
    differ = {} if run is None else _differences(RunFolder(run), data)
    typed = [word.partition("=")[0].removeprefix("--data.").replace("init_args.", "") for word in words]
    unasked = [said for key, said in differ.items() if not any(f"{key}.".startswith(f"{name}.") for name in typed)]
    if unasked and "root" not in differ:
        message = (
            f"--ckpt_path: the training of {run} read its data otherwise ({'; '.join(unasked)}). "
            f"`medsam-tune test {run}` reads them as it did."
        )
        warnings.warn(message, DataWarning, stacklevel=2)


def _differences(run: RunFolder, data: Mapping[str, Any]) -> dict[str, str]:
    """Return what tells the data of a run from those of a recipe, by the key below ``data`` that differs."""
    recipe = read_recipe(run) if run.config.is_file() else {}
    stored = recipe.get("data") if isinstance(recipe, Mapping) else None
    then, now = (flat({key: values.get(key) for key in _SAME_DATA}) for values in (stored or {}, data))
    keys = sorted(then.keys() | now.keys())
    return {key: f"data.{key} was {then.get(key)}, is {now.get(key)}" for key in keys if then.get(key) != now.get(key)}


def run_with_split(checkpoint: Path, words: Sequence[str], split: SplitSettings) -> RunFolder:
    """Return the run whose split says which cases a checkpoint may be scored on.

    Args:
        checkpoint: The file.
        words: The command line: a split that it asks for must be the run's.
        split: The settings in force; without ``file``.

    Raises:
        CheckpointError: If the file lies in no run that stored its split.
        RecipeError: If the command line asks for another split.
    """
    run = run_folder_of(checkpoint)
    if run is None or not RunFolder(run).splits.is_file():
        raise CheckpointError(
            f"{checkpoint}: lies in no run folder with a splits.json, so nobody knows which cases it was trained on. "
            "Say which are scored: --data.split.file=FILE."
        )
    path, how = RunFolder(run).splits, read_splits(RunFolder(run).splits).how
    for name in [found[1] for found in map(_SPLIT_WORD.fullmatch, words) if found]:
        if how.get(name) != getattr(split, name):
            raise RecipeError(
                f"data.split.{name}: the checkpoint belongs to the split of its run, {path} ({name} {how.get(name)}), another "
                f"one would score cases that it was trained on. Leave {name} out, or name a split with --data.split.file."
            )
    return RunFolder(run)


def warn_of_trained_cases(checkpoint: Path, scored: Iterable[str]) -> None:
    """Say aloud that cases of a split which the user named were trained on by the checkpoint."""
    run = run_folder_of(checkpoint)
    if run is None or not RunFolder(run).splits.is_file():
        return
    cases = sorted(scored)
    trained: Splits = read_splits(RunFolder(run).splits)
    seen = [case for case in cases if case in set(trained.train)]
    if seen:
        message = (
            f"data.split.file: {len(seen)} of the {len(cases)} cases that are scored were trained on in {run}: "
            f"{first_names(seen)}. Their figures say nothing about new patients."
        )
        warnings.warn(message, DataWarning, stacklevel=2)
