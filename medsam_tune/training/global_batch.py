"""``data.global_batch``: the images of an optimizer step, whatever the number of processes that make it together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medsam_tune.errors import RecipeError
from medsam_tune.training.trainer_keys import as_list

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from medsam_tune.data.datamodule import SegmentationDataModule

_KEY, _ACCUMULATED = "data.global_batch", "trainer.accumulate_grad_batches"


def accumulated(global_batch: int, batch_size: int, processes: int, *, stated: int = 1) -> int:
    """Return the batches of a step that make it ``global_batch`` images.

    Args:
        global_batch: Images a step.
        batch_size: Images a batch, on each process.
        processes: That train together.
        stated: ``trainer.accumulate_grad_batches`` of the recipe; 1 leaves the number open.

    Raises:
        RecipeError: If it does not divide, with the nearest numbers that do, or the recipe states another number.

    Example:
        >>> accumulated(32, 2, 4), accumulated(32, 2, 16)
        (4, 1)
    """
    together = batch_size * processes
    if global_batch % together:
        raise RecipeError(
            f"{_KEY}: {global_batch} images a step cannot be made of batches of {batch_size} on {_processes(processes)}, "
            f"{together} at a time. {_remedy(global_batch, batch_size, processes)}"
        )
    batches = global_batch // together
    if stated not in (1, batches):
        raise RecipeError(
            f"{_ACCUMULATED}: is {stated}, but {_KEY} {global_batch} takes {batches} batches of {batch_size} on "
            f"{_processes(processes)}. Leave {_ACCUMULATED} out, or {_KEY}."
        )
    return batches


def check_global_batch(data: SegmentationDataModule, trainer: Mapping[str, Any]) -> None:
    """Refuse a global batch that cannot be made, where the recipe itself says how many processes there are.

    Args:
        data: Built, not opened.
        trainer: The recipe's section.

    Raises:
        RecipeError: As ``accumulated``; also if something would change the batch during the training.
    """
    if data.global_batch is None:
        return
    if any(type(each).__name__ == "BatchSizeFinder" for each in as_list(trainer.get("callbacks")) or []):
        raise RecipeError(
            f"{_KEY}: a BatchSizeFinder changes what a batch is after the steps were planned. Keep one of the two."
        )
    processes = _stated_processes(trainer)
    stated = trainer.get("accumulate_grad_batches") or 1
    if processes is not None:
        accumulated(data.global_batch, data.batch_size, processes, stated=stated)


def set_global_batch(trainer: pl.Trainer, data: SegmentationDataModule) -> None:
    """Let a trainer accumulate as many batches as make a step of ``data.global_batch`` images; without one nothing changes.

    Args:
        trainer: Built, not started.
        data: Its data.

    Raises:
        RecipeError: As ``accumulated``.
    """
    if data.global_batch is not None:
        # The strategy knows its processes only once it has started them.
        processes = trainer.num_devices * trainer.num_nodes
        stated = trainer.accumulate_grad_batches
        trainer.accumulate_grad_batches = accumulated(data.global_batch, data.batch_size, processes, stated=stated)


def step_line(trainer: pl.Trainer, data: SegmentationDataModule) -> str | None:
    """Say what a step is made of where ``data.global_batch`` says how large it is, else nothing."""
    if data.global_batch is None:
        return None
    processes = trainer.num_devices * trainer.num_nodes
    parts = [f"{data.batch_size} a batch", f"{trainer.accumulate_grad_batches} accumulated", _processes(processes)]
    return f"{data.global_batch} images a step ({' x '.join(parts)})"


def _remedy(global_batch: int, batch_size: int, processes: int) -> str:
    """Say which numbers near the asked ones would do."""
    together = batch_size * processes
    below = global_batch // together * together
    near = " or ".join(str(number) for number in (below, below + together) if number)
    smaller = next((size for size in range(batch_size - 1, 0, -1) if global_batch % (size * processes) == 0), None)
    return f"Set {_KEY}: {near}" + (f", or data.batch_size: {smaller}." if smaller else ".")


def _stated_processes(trainer: Mapping[str, Any]) -> int | None:
    """Return the processes of a recipe, or None where only the built trainer knows them."""
    devices, nodes = trainer.get("devices"), int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list | tuple):
        return len(devices) * nodes
    if str(devices) == "auto" and trainer.get("accelerator") == "cpu":
        return nodes
    return int(str(devices)) * nodes if str(devices).isdecimal() and int(str(devices)) else None


def _processes(number: int) -> str:
    return f"{number} process{'es' * (number != 1)}"
