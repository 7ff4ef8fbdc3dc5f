"""The length of a training whose recipe was written for a sample: planned anew for other data, unless the user says it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam_tune.data.sample import SAMPLE_PREFIX
from medsam_tune.training.limits import config_files
from medsam_tune.training.plan import check_warmup, plan_training, shortened_warmup
from medsam_tune.training.record import flat
from medsam_tune.training.run_folder import RunFolder
from medsam_tune.training.schedule import batches_per_epoch, planned_steps, step_limit
from medsam_tune.yaml_files import read_yaml

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.training.module import TuningModule

LENGTH = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "trainer.fast_dev_run", "trainer.overfit_batches")
VALIDATION = ("trainer.check_val_every_n_epoch", "trainer.val_check_interval")
WARMUP = "model.warmup_steps"


@dataclass(frozen=True)
class Stated:
    """Say which numbers of a training's length a user has stated, and which are those of an example.

    Attributes:
        length: Whether epochs, steps or time are the user's.
        validation: Whether the interval of validations is.
        warmup: Whether the warm-up is.
        steps_alone: Whether the command line says steps and no epochs; then the recipe's epochs do not end the training sooner.
    """

    length: bool = True
    validation: bool = True
    warmup: bool = True
    steps_alone: bool = False


def stated(recipe: Path | None, words: Sequence[str], root: str) -> Stated:
    """Return what of a training's length the user has stated.

    A recipe that names a bundled sample, or no data, is an example: what it says of the length holds for its sample, and its
    warm-up for that length. The command line and further ``--config`` files are the user's, and so is all of a recipe that
    names a folder and of the stored recipe of a run.

    Args:
        recipe: The recipe's file.
        words: The command line, keys written out.
        root: The data in force.
    """
    own, keys = _example_root(recipe), _given(words)
    steps_alone = "trainer.max_steps" in keys and "trainer.max_epochs" not in keys
    if own is None:
        return Stated(steps_alone=steps_alone)
    length = root == own or _any(keys, LENGTH)
    return Stated(length, length or _any(keys, VALIDATION), _any(keys, (WARMUP,)), steps_alone)


def plan_length(trainer: pl.Trainer, model: TuningModule, data: SegmentationDataModule, said: Stated) -> dict[str, int]:
    """Set epochs, validations and warm-up of a training where the user has not stated them, and check the warm-up.

    Args:
        trainer: Built, not started.
        model: Its ``warmup_steps`` are set.
        data: Opened.
        said: What stays as it is.

    Returns:
        The keys that were set, with their numbers.

    Raises:
        RecipeError: If the training ends within its warm-up.
    """
    changed: dict[str, int] = {}
    epochs = trainer.max_epochs
    steps_per_epoch = math.ceil(batches_per_epoch(trainer, data) / trainer.accumulate_grad_batches)
    limit = step_limit(trainer)
    if said.steps_alone and epochs is not None and 0 < epochs * steps_per_epoch < limit < math.inf:
        trainer.fit_loop.max_epochs = changed["trainer.max_epochs"] = math.ceil(limit / steps_per_epoch)
    if not said.length and epochs is not None and epochs > 0:
        plan = plan_training(steps_per_epoch, epochs=epochs, warmup_steps=model.warmup_steps)
        if plan.epochs != epochs:
            trainer.fit_loop.max_epochs = changed["trainer.max_epochs"] = plan.epochs
            if not said.validation:
                trainer.check_val_every_n_epoch = changed["trainer.check_val_every_n_epoch"] = plan.validate_every
    steps = planned_steps(trainer, data)
    if not said.warmup and shortened_warmup(model.warmup_steps, steps) != model.warmup_steps:
        model.warmup_steps = changed[WARMUP] = shortened_warmup(model.warmup_steps, steps)
    check_warmup(model.warmup_steps, steps)
    return changed


def _example_root(recipe: Path | None) -> str | None:
    """Return the sample that an example names, empty where it names none; None for a recipe of a user's."""
    if recipe is None or not recipe.is_file() or recipe.name == RunFolder(Path()).config.name:
        return None
    content = read_yaml(recipe)
    data = content.get("data") if isinstance(content, Mapping) else None
    root = str((data.get("root") if isinstance(data, Mapping) else None) or "")
    return root if not root or root.startswith(SAMPLE_PREFIX) else None


def _given(words: Sequence[str]) -> set[str]:
    """Return the keys that the command line sets, and the files read over the recipe."""
    keys = {word.removeprefix("--").partition("=")[0].replace(".init_args", "") for word in words if word.startswith("--")}
    for file in list(config_files(words))[1:]:
        content: Any = read_yaml(file)
        keys |= flat(content).keys() if isinstance(content, Mapping) else set()
    return keys


def _any(keys: Iterable[str], wanted: Sequence[str]) -> bool:
    """Tell whether one of the wanted keys is given, itself or by its whole section."""
    sections = {name.partition(".")[0] for name in wanted}
    return any(key in wanted or key in sections for key in keys)
