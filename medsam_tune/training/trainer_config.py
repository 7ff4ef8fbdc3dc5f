"""What the trainer of a run gets beside the recipe's own ``trainer`` section: loggers, callbacks, the end of the training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from medsam_tune.training.callbacks import LargeBuffers, RandomState, ResumeHint, TrainingRows
from medsam_tune.training.checkpoint import AtomicCheckpointIO
from medsam_tune.training.compiled import CompiledEncoder
from medsam_tune.training.epoch_clock import EpochClock
from medsam_tune.training.loggers import run_loggers
from medsam_tune.training.memory_advice import MemoryAdvice
from medsam_tune.training.opening import Opening
from medsam_tune.training.overlays import WandbOverlays
from medsam_tune.training.precompute_stage import PrecomputeStage
from medsam_tune.training.predictions import PredictionFiles
from medsam_tune.training.progress import EpochLines, StageBar, brings_a_bar
from medsam_tune.training.record import RecordRun
from medsam_tune.training.saving import checkpoint_callbacks
from medsam_tune.training.schedule import EndOfTraining
from medsam_tune.training.sharded import ShardedStrategy
from medsam_tune.training.signals import Interruptions
from medsam_tune.training.trainer_keys import FSDP, as_list, first_batches

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medsam_tune.training.cli import MedsamCLI


def trainer_config(cli: MedsamCLI, recipe: Mapping[str, Any], *, continued: bool) -> dict[str, Any]:
    """Return the trainer's arguments: the recipe's, with our loggers and callbacks added.

    Args:
        cli: Knows folder, model and data; its data are told where images keep their order.
        recipe: The ``trainer`` section, its classes built.
        continued: Whether the run folder holds a run that goes on.
    """
    config = dict(recipe)
    if config["max_epochs"] is None and (config["max_steps"] != -1 or config["max_time"] is not None):
        config["max_epochs"] = -1
    if config["overfit_batches"] > 0:
        config |= {"overfit_batches": 0.0, **first_batches(config["overfit_batches"], cli.datamodule)}
        cli.datamodule.fixed_order = True
    if config["strategy"] == FSDP:
        config["strategy"] = ShardedStrategy()
    theirs = as_list(config.get("callbacks")) or []
    bar = [StageBar()] if config["enable_progress_bar"] is not False and not brings_a_bar(theirs) else []
    return config | {
        "enable_progress_bar": brings_a_bar(theirs),
        "max_steps": -1,  # EndOfTraining has it
        "logger": run_loggers(cli.run_folder.path, as_list(config.get("logger"))),
        "callbacks": [*theirs, *bar, *_callbacks(cli, recipe["max_steps"], continued=continued)],
        "plugins": [*(as_list(config.get("plugins")) or []), AtomicCheckpointIO(cli.take_checkpoint())],
        "default_root_dir": str(cli.run_folder.path),
        "use_distributed_sampler": False,
    }


def _callbacks(cli: MedsamCLI, max_steps: int, *, continued: bool) -> list[Callback]:
    folder, interruptions, rows = cli.run_folder, Interruptions(), TrainingRows()
    cli.results.folder, cli.results.clock = folder, cli.clock
    cli.results.nsd_tolerance = cli.settings.nsd_tolerance_mm
    return [
        *checkpoint_callbacks(folder.checkpoints, cli.settings, interruptions, cli.model.task),
        EndOfTraining(max_steps),
        interruptions,
        RandomState(),
        LargeBuffers(),
        MemoryAdvice(),
        rows,
        EpochLines(rows),
        Opening(cli),
        *([CompiledEncoder()] if cli.settings.compile else []),
        PrecomputeStage(cli.clock),
        cli.clock,
        EpochClock(folder.epochs_csv),
        RecordRun(cli, continued=continued),
        cli.results,
        WandbOverlays(),
        PredictionFiles(folder.path / "predictions"),
        ResumeHint(folder.checkpoints, cli.command),
    ]
