"""Keys of the recipe's ``trainer`` section: what Lightning takes and a run could not hold is refused before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from medsam_tune.data.datamodule import SegmentationDataModule, Stage
from medsam_tune.errors import RecipeError
from medsam_tune.training.half_precision import half_precision_fault
from medsam_tune.training.plan import batches_in_epoch
from medsam_tune.training.schedule import batches_per_epoch, check_figure

_WHOLE_NETWORK = {"64", "transformer-engine", "transformer-engine-float16"}
FSDP = "fsdp"
"""What a recipe says in ``trainer.strategy`` to have the image encoder sharded, see ``sharded.ShardedStrategy``."""
_OTHER_STRATEGIES = ("deepspeed", "fsdp_", "xla", "single_xla", "single_tpu", "ddp_spawn", "ddp_fork", "ddp_notebook")
_NEVER = {
    "barebones": "writes neither figures nor checkpoints, of which a run consists. Leave it out.",
    "default_root_dir": "a run has its folder below run.folder. Set that instead.",
    "model_registry": "uploads checkpoints that only this package can load. Leave it out.",
}
_CALLBACKS = {
    "LearningRateFinder": "sets a learning rate of the module, but the optimizer's own counts here. Compare values of "
    "model.optimizer.lr with medsam-tune sweep",
    "StochasticWeightAveraging": "averages after best.ckpt was chosen, so nobody tests the average. Use EMAWeightAveraging",
    "BaseFinetuning": "thaws parts by itself. Name them in model.backbone.trainable",
    "ModelPruning": "renames the weights that it prunes, so no export could be loaded. Remove it",
    "GradientAccumulationScheduler": "changes what a step is within a run. Set trainer.accumulate_grad_batches",
    "SpikeDetection": "fails in the test that follows a training. Remove it; a loss that is not finite ends a run anyhow",
}


def check_trainer_values(trainer: Mapping[str, Any], *, subcommand: str | None) -> None:
    """Refuse values under which a run could not be kept, or one of its stages would find nothing to do.

    Args:
        trainer: The recipe's section as plain values.
        subcommand: None where a test and an export follow the training.

    Raises:
        RecipeError: Naming the key.
    """
    for key, why in _NEVER.items():
        if trainer.get(key):
            raise RecipeError(f"trainer.{key}: {why}")
    if trainer.get("enable_checkpointing") is False:
        raise RecipeError("trainer.enable_checkpointing: is false, so nothing of the training would be kept. Leave it out.")
    _check_devices(trainer)
    precision = str(trainer.get("precision"))
    if precision in _WHOLE_NETWORK or (precision.endswith("-true") and precision != "32-true"):
        raise RecipeError(
            f"trainer.precision: {precision} casts the whole network, frozen weights and metrics included. "
            "Use 32-true, 16-mixed or bf16-mixed."
        )
    if fault := half_precision_fault(precision, str(trainer.get("accelerator"))):
        raise RecipeError(f"trainer.precision: {fault}.")
    interval = trainer.get("val_check_interval")
    if isinstance(interval, int | float) and not (0 < interval <= 1 or (isinstance(interval, int) and interval >= 1)):
        raise RecipeError(
            f"trainer.val_check_interval: expected a part of an epoch up to 1.0, or a number of batches, got {interval}."
        )
    if subcommand in (None, "fit"):
        _check_training(trainer, whole_run=subcommand is None)


def _check_devices(trainer: Mapping[str, Any]) -> None:
    """Refuse more processes than the CPU has cores: they would be started, and wait for each other for minutes."""
    devices, accelerator = str(trainer.get("devices")), trainer.get("accelerator")
    if not devices.isdecimal() or accelerator not in ("cpu", "auto"):
        return
    import torch

    # Two processes on one core are how a ddp run is tried out.
    cores = max(2, os.cpu_count() or 1)
    if int(devices) > cores and (accelerator == "cpu" or not torch.accelerator.is_available()):
        raise RecipeError(f"trainer.devices: {devices} processes on a CPU of {cores} cores. Use at most {cores}.")


def _check_training(trainer: Mapping[str, Any], *, whole_run: bool) -> None:
    endless = trainer.get("max_epochs") is None and trainer.get("max_time") is None and trainer.get("max_steps", -1) == -1
    if trainer and endless:
        raise RecipeError("trainer.max_epochs: is null, and nothing else ends the training. Give it, max_steps or max_time.")
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer.get(key) == 0:
            raise RecipeError(f"trainer.{key}: is 0, so nothing would be trained. Raise it, or use `medsam-tune test`.")
    if not whole_run:
        return
    if trainer.get("fast_dev_run"):
        raise RecipeError(
            "trainer.fast_dev_run: writes no checkpoint, so there is nothing to test and export. "
            "Use `medsam-tune fit`, or set trainer.max_steps: 1."
        )
    for key, missing in (("limit_val_batches", "choose the best weights"), ("limit_test_batches", "test")):
        if trainer.get(key) == 0:
            raise RecipeError(f"trainer.{key}: is 0, so nothing would {missing}. Raise it, or use `medsam-tune fit`.")


def trainer_fault(text: str, keys: Collection[str]) -> str:
    """Return what Lightning's trainer says about a value, with the key in front if its text names one.

    Examples:
        >>> trainer_fault("`num_nodes` must be a positive integer, but got 0.", ["num_nodes", "devices"])
        'trainer.num_nodes: `num_nodes` must be a positive integer, but got 0. Change it.'
    """
    said = " ".join(text.split()).rstrip(".!")
    places = {key: found.start() for key in keys if (found := re.search(rf"\b{key}\b", said))}
    named = min(places, key=lambda key: places[key], default=None)
    named = "max_time" if named is None and "Timer(" in said else named
    return f"trainer{'' if named is None else f'.{named}'}: {said}. Change it."


def check_trainer_parts(trainer: Mapping[str, Any], *, figures: Collection[str]) -> None:
    """Refuse strategies, plugins and callbacks that keep or change weights in ways a run's checkpoints do not know.

    Args:
        trainer: The recipe's section with its classes built.
        figures: What a validation logs.

    Raises:
        RecipeError: With the class.
    """
    strategy = trainer["strategy"]
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    own = isinstance(strategy, Strategy) and type(strategy) not in (DDPStrategy, SingleDeviceStrategy)
    if own or (strategy != FSDP and isinstance(strategy, str) and strategy.startswith(_OTHER_STRATEGIES)):
        raise RecipeError(f"trainer.strategy: {name}: a run's checkpoints are of one whole network. Use auto, ddp or {FSDP}.")
    for plugin in as_list(trainer.get("plugins")) or []:
        if isinstance(plugin, CheckpointIO):
            raise RecipeError(f"trainer.plugins: {type(plugin).__name__}: a run writes its checkpoints itself. Remove it.")
        if isinstance(plugin, Precision) and not isinstance(plugin, MixedPrecision) and type(plugin) is not Precision:
            raise RecipeError(
                f"trainer.plugins: {type(plugin).__name__} casts the whole network, frozen weights and metrics included. "
                "Set trainer.precision to 16-mixed or bf16-mixed."
            )
    for callback in as_list(trainer.get("callbacks")) or []:
        for kind in (kind.__name__ for kind in type(callback).__mro__ if kind.__module__.startswith("lightning.")):
            if kind in _CALLBACKS:
                raise RecipeError(f"trainer.callbacks: {type(callback).__name__} {_CALLBACKS[kind]}.")
        check_figure("trainer.callbacks.monitor", getattr(callback, "monitor", None), figures)


def as_list(value: Any) -> list[Any] | None:  # noqa: ANN401 - trainer keys take one or many of several classes
    """Return what a key holds as a list; None where it leaves the choice to the trainer."""
    if value is None or value is True:
        return None
    if value is False:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def without_finder(callbacks: Any) -> list[Any] | None:  # noqa: ANN401 - one, several or none
    """Return the recipe's callbacks, as they were parsed, without Lightning's batch-size finder: a resume would search anew."""
    return [one for one in as_list(callbacks) or [] if not str(one.class_path).endswith("BatchSizeFinder")] or None


def first_batches(share: float, data: SegmentationDataModule) -> dict[str, Any]:
    """Return the limits that ``overfit_batches`` stands for; Lightning's own sampler for it could not be resumed.

    Args:
        share: Batches, or a part of an epoch, which is one batch at least.
        data: Opened.
    """
    stages: tuple[Stage, ...] = ("train", "val")
    counts = {f"limit_{stage}_batches": _n_batches(data, stage, 1) for stage in stages}
    return {key: share if isinstance(share, int) or share * count >= 1 else 1 for key, count in counts.items()}


def check_limits(trainer: pl.Trainer, data: SegmentationDataModule, stages: Sequence[Stage], *, interval: object) -> None:
    """Refuse parts of an epoch that come to no batch, and an interval of validations longer than an epoch.

    Args:
        trainer: Built.
        data: Opened.
        stages: Parts of the data that will be used.
        interval: The recipe's ``val_check_interval``.

    Raises:
        RecipeError: With the key, the number of batches, and what to set.
    """
    processes = trainer.num_devices * trainer.num_nodes
    for stage in stages:
        limit, n_batches = getattr(trainer, f"limit_{stage}_batches"), _n_batches(data, stage, processes)
        if isinstance(limit, float) and 0 < limit * n_batches < 1:
            raise RecipeError(
                f"trainer.limit_{stage}_batches: {limit} of {n_batches} batches is less than one. Set it to 1, which is one "
                "batch."
            )
    if "train" in stages and isinstance(interval, int) and trainer.check_val_every_n_epoch is not None:
        n_batches = batches_per_epoch(trainer, data)
        if interval > n_batches:
            raise RecipeError(
                f"trainer.val_check_interval: {interval} batches are more than the {n_batches} of an epoch. Lower it, or set "
                "trainer.check_val_every_n_epoch: null to count on over epochs."
            )


def _n_batches(data: SegmentationDataModule, stage: Stage, processes: int) -> int:
    return batches_in_epoch(len(data.chunks(stage)), data.chunks_per_batch(stage), processes=processes)
