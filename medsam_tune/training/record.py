"""What a run is made of, written before any work: into its folder and into its loggers."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from medsam_tune.data.split_file import save_splits
from medsam_tune.files import read_json, write_json, write_text
from medsam_tune.training.loggers import RunCsvLogger
from medsam_tune.training.module import tuned
from medsam_tune.training.places import split_places, write_recipe
from medsam_tune.training.recipe_paths import shareable
from medsam_tune.training.saving import best_score
from medsam_tune.training.signals import slurm_job
from medsam_tune.training.test_results import parameter_counts
from medsam_tune.yaml_files import opening_comment

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from medsam_tune.training.cli import MedsamCLI
    from medsam_tune.training.run_folder import RunFolder


class RecordRun(Callback):
    """Write config.yaml, splits.json and how the run was continued; tell the loggers the recipe, the code and the data.

    Args:
        cli: Knows recipe, command and folder.
        continued: Whether the folder holds a run that goes on.
    """

    def __init__(self, cli: MedsamCLI, *, continued: bool) -> None:
        self.cli = cli
        self._continued = continued

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        folder = self.cli.run_folder
        folder.path.mkdir(parents=True, exist_ok=True)
        if not folder.config.is_file():
            write_recipe(folder, self.cli.dump(), opening_comment(self.cli.recipe_file))
        if not folder.splits.is_file() and stage != "predict":
            save_splits(self.cli.datamodule.splits, folder.splits)
        if (job := slurm_job()) is not None:
            write_text(folder.slurm_job, job)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if self._continued:
            # Not before the checkpoint was accepted.
            command = shareable(self.cli.command, self.cli.datamodule.root)
            record_continuation(self.cli.run_folder, command, self.cli.dump())
        # Callbacks of the recipe's own have looked for it by now.
        if found := self.cli.take_found():
            self.cli.results.found = found
            write_recipe(self.cli.run_folder, self.cli.dump(), opening_comment(self.cli.run_folder.config))
        facts = {**flat(split_places(self.cli.recipe_values())[0]), **self._facts(pl_module)}
        for logger in trainer.loggers:
            if not isinstance(logger, RunCsvLogger):
                logger.log_hyperparams(facts)
            if isinstance(logger, WandbLogger):
                _open_wandb(logger, self.cli.run_folder, tuned(pl_module).task.monitor)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or not trainer.is_global_zero:
            return
        task = tuned(pl_module).task
        scores = [
            float(score) for score in (best_score(trainer), trainer.callback_metrics.get(task.monitor)) if score is not None
        ]
        choose = max if task.goal == "max" else min
        best = choose((score for score in scores if math.isfinite(score)), default=None)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and best is not None:
                logger.experiment.summary[task.monitor] = best

    def _facts(self, pl_module: pl.LightningModule) -> dict[str, Any]:
        module = tuned(pl_module)
        weights = module.segmenter.base_weights()
        facts = {
            "run": "/".join(self.cli.run_folder.path.parts[-2:]),
            "git": git_commit(),
            "described": self.cli.datamodule.describe(),
            "parameters": parameter_counts(module),
            "base_weights": None if weights is None else {"name": weights.name, "sha256": weights.sha256},
        }
        return flat(facts)


def record_continuation(folder: RunFolder, command: str, config: str) -> Path:
    """Write ``resumes/NNN.yaml``: the command line and the recipe from here on; config.yaml becomes that recipe.

    ``resumes/000.yaml`` is the recipe that the run began with. None of them names a path (``places``).

    Returns:
        The file.
    """
    first = folder.resumes / "000.yaml"
    if not first.is_file():
        write_text(first, folder.config.read_text(encoding="utf-8"))
    path = folder.resumes / f"{1 + max(int(found.stem) for found in folder.resumes.glob('[0-9]*.yaml')):03d}.yaml"
    shared = write_recipe(folder, config, opening_comment(folder.config))
    return write_text(path, f"# {datetime.now().isoformat(timespec='seconds')}  {command}\n{shared}")


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested values under the dotted keys that one types; a class stands under the key that names it.

    Examples:
        >>> flat({"model": {"tuner": {"class_path": "LoRA", "init_args": {"rank": 4}}}, "seed": 0})
        {'model.tuner': 'LoRA', 'model.tuner.rank': 4, 'seed': 0}
    """
    return dict(_flat(values, above))


def git_commit() -> str | None:
    """Return the commit of the current folder's repository, with ``-dirty`` where files differ; None outside of one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def continue_wandb(trainer: Namespace, folder: RunFolder) -> None:
    """Let the W&B logger of a continued run go on in its W&B run, unless the user names one.

    Args:
        trainer: The recipe's ``trainer`` section, changed in place.
        folder: The run.
    """
    if not folder.wandb.is_file():
        return
    run_id = read_json(folder.wandb, "Remove it, and the run goes on in a new W&B run.")["id"]
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if str(getattr(logger, "class_path", "")).endswith("WandbLogger"):
            chosen = logger.init_args
            if chosen.get("id") is None and chosen.get("version") is None:
                chosen["id"] = run_id


def _open_wandb(logger: WandbLogger, folder: RunFolder, monitor: str) -> None:
    """Store the id of the W&B run, and let its summary hold the best figure, which sweeps optimise, not the last."""
    run = logger.experiment
    write_json(folder.wandb, {"id": run.id, "project": run.project, "entity": run.entity, "url": run.url})
    run.define_metric(monitor, step_metric="trainer/global_step", step_sync=True, summary="none")


def _flat(values: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{above}.{name}" if above else str(name)
        if isinstance(value, Mapping) and "class_path" in value:
            yield key, value["class_path"]
            yield from _flat(value.get("init_args") or {}, key)
        elif isinstance(value, Mapping):
            yield from _flat(value, key)
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
            yield key, yaml.safe_dump(value, default_flow_style=True).strip()
        else:
            yield key, value
