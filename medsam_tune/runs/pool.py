"""Runs that were started one by one, such as the folds of a job array, pooled as if one command had run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam_tune.data.split_file import read_splits, split_differences
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.training.console import say
from medsam_tune.training.pooling import pooled_folder, pooled_text, write_pooled
from medsam_tune.training.record import flat
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.yaml_files import read_yaml

AXES = {"fold": "data.split.fold", "seed": "seed_everything"}
"""In what runs that are pooled may differ, by what stands before its value in their labels."""

_MAY_DIFFER = (*AXES.values(), "run", "trainer", "ckpt_path", "data.num_workers")
_TRAINS = ("trainer.max_epochs", "trainer.max_steps", "trainer.precision", "trainer.accumulate_grad_batches")
"""Of the trainer's keys those that make other weights; where a run trained, and what it logged, does not."""


@dataclass(frozen=True)
class Member:
    """Hold one of the runs that are pooled.

    Attributes:
        folder: The run.
        recipe: Name of its recipe.
        settings: Its resolved recipe under dotted keys.
    """

    folder: Path
    recipe: str
    settings: Mapping[str, Any]


def pool_runs(runs: Mapping[Path, str]) -> Path:
    """Write what several runs of one recipe tested as one, and say its figures.

    Args:
        runs: Folders of tested runs that differ in seed or fold alone, each with the name of its recipe; two at least.

    Returns:
        The folder of ``summary.json`` and ``test_cases.csv``, which ``medsam-tune compare`` takes as a run.

    Raises:
        RecipeError: If there are fewer than two, one was not tested, their settings differ in more than seed and fold, or two
            have the same seed and fold.
        DataError: If they were not made of the same cases and files, or a file of theirs cannot be read.
    """
    if len(runs) < 2:
        raise RecipeError(f"pool: expected two runs or more, got {len(runs)}. `medsam-tune runs list` shows them.")
    members = [_member(folder, recipe) for folder, recipe in runs.items()]
    first, *others = members
    for other in others:
        _check_same_settings(first, other)
        _check_same_data(first, other)
    varied = [axis for axis, key in AXES.items() if len({member.settings.get(key) for member in members}) > 1]
    labels = _labels(members, varied)
    _warn_of_missing_folds(members)
    folder = pooled_folder(first.folder, f"{first.recipe}-{'-'.join(f'{axis}s' for axis in varied)}")
    say(pooled_text(write_pooled(labels, folder), folder))
    return folder


def _member(folder: Path, recipe: str) -> Member:
    files = RunFolder(folder)
    missing = [path.name for path in (files.config, files.splits, files.summary, files.test_cases) if not path.is_file()]
    if missing:
        raise RecipeError(
            f"{folder}: has no {' and no '.join(missing)}, so it is no run that was tested. "
            f"`medsam-tune resume {folder}` goes on with it, `medsam-tune test {folder}` tests it."
        )
    content = read_yaml(files.config)
    if not isinstance(content, Mapping):
        raise DataError(f"{files.config}: expected a recipe, got {type(content).__name__}. Restore the file.")
    return Member(folder, recipe, flat(content))


def _check_same_settings(first: Member, other: Member) -> None:
    ours, theirs = _compared(first.settings), _compared(other.settings)
    differ = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if differ:
        shown = "; ".join(f"{key} is {theirs.get(key)} for {ours.get(key)}" for key in differ[:3])
        more = f", and {len(differ) - 3} keys more" if len(differ) > 3 else ""
        raise RecipeError(
            f"{other.folder}: differs from {first.folder} in more than seed and fold: {shown}{more}. "
            f"Pool runs of one recipe; `medsam-tune compare {first.folder} {other.folder}` holds two against each other."
        )


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    def matters(key: str) -> bool:
        return key in _TRAINS or not any(key == name or key.startswith(f"{name}.") for name in _MAY_DIFFER)

    return {key: value for key, value in settings.items() if matters(key)}


def _check_same_data(first: Member, other: Member) -> None:
    ours, theirs = (read_splits(RunFolder(member.folder).splits) for member in (first, other))
    differ = split_differences(ours, theirs.cases(), patients=theirs.patients, files=theirs.files)
    if differ:
        raise DataError(
            f"{other.folder}: its data are not those of {first.folder}: {differ.message()}. "
            "Pool runs of the same data; --data of `medsam-tune compare` tests several on one folder."
        )


def _labels(members: Sequence[Member], varied: Sequence[str]) -> dict[str, Path]:
    """Return the runs by what tells them apart, such as ``fold0-seed1``.

    Raises:
        RecipeError: If two have the same, so that one would count twice.
    """
    labels: dict[str, Path] = {}
    for member in sorted(members, key=_place):
        label = "-".join(f"{axis}{member.settings.get(AXES[axis])}" for axis in varied)
        if label in labels:
            raise RecipeError(f"{member.folder}: has the fold and seed of {labels[label]}. Name one of the two.")
        labels[label] = member.folder
    return labels


def _place(member: Member) -> tuple[int, ...]:
    values = (member.settings.get(key) for key in AXES.values())
    return tuple(value if isinstance(value, int) else -1 for value in values)


def _warn_of_missing_folds(members: Sequence[Member]) -> None:
    folds = members[0].settings.get("data.split.folds")
    there = {member.settings.get(AXES["fold"]) for member in members}
    missing = [str(fold) for fold in range(folds or 0) if fold not in there]
    if missing:
        say(f"WARNING: no run of fold {', '.join(missing)} of {folds} is among them; its cases stand in no figure below.")
