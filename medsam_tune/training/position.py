"""Where in a training a checkpoint was written, in Lightning's own counters: made exact on writing, cut anew on reading.

Lightning tells from its counters what a resumed training has still to do. Three moments it cannot tell: the start of an epoch,
the pause between two batches, and a validation that has begun. They are written here as states that it does restore.
"""

from __future__ import annotations

from typing import Any, Literal

Moment = Literal["hook", "between batches", "in validation"]

_UNFINISHED = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


def settle(fit_loop: dict[str, Any], moment: Moment) -> None:
    """Rewrite the counters of a checkpoint that is written now so that training goes on with what comes next.

    Args:
        fit_loop: ``checkpoint["loops"]["fit_loop"]``.
        moment: ``hook`` is what Lightning knows: after a batch, after a validation, after an epoch, at the start of one.
    """
    epoch, batch = fit_loop["epoch_progress"], fit_loop["epoch_loop.batch_progress"]
    if epoch["total"]["ready"] > epoch["total"]["started"]:
        for counter in ("total", "current"):
            epoch[counter]["ready"] = epoch[counter]["started"]
    elif epoch["total"]["completed"] == epoch["total"]["ready"]:
        return
    elif moment == "in validation":
        validation = fit_loop["epoch_loop.val_loop.batch_progress"]
        validation |= {"total": dict(_UNFINISHED), "current": dict(_UNFINISHED), "is_last_batch": False}
    elif moment == "between batches":
        for counter in ("total", "current"):
            batch[counter]["completed"] -= 1
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def validation_pending(fit_loop: dict[str, Any]) -> bool:
    """Tell whether a checkpoint was written in the middle of a validation, which is then run anew."""
    epoch, validation = fit_loop["epoch_progress"]["total"], fit_loop["epoch_loop.val_loop.batch_progress"]["total"]
    return bool(epoch["processed"] < epoch["started"] and validation["processed"] < validation["started"])


def cut_anew(fit_loop: dict[str, Any], *, images: tuple[int, int], n_batches: int, accumulate: int) -> None:
    """Move the position within an epoch to batches of another size, so that no image is left out and no validation either.

    Some images of the epoch may be seen twice: a position is rounded down to a whole optimizer step.

    Args:
        fit_loop: ``checkpoint["loops"]["fit_loop"]``, written with batches of ``images[0]`` images.
        images: Images a batch over all processes: of the run that wrote the checkpoint, and of this one.
        n_batches: Batches an epoch of this run.
        accumulate: Batches an optimizer step of this run.
    """
    epoch, batch = fit_loop["epoch_progress"]["total"], fit_loop["epoch_loop.batch_progress"]
    if epoch["processed"] == epoch["started"]:
        return
    current = batch["current"]
    if validation_pending(fit_loop) and batch["is_last_batch"]:
        done = n_batches
    else:
        done = min(current["processed"] * images[0] // images[1], n_batches - 1) // accumulate * accumulate
    behind = current["processed"] - current["completed"]
    current |= {"ready": done, "started": done, "processed": done, "completed": done - behind}
    batch["is_last_batch"] = done == n_batches
    for loader in fit_loop["state_dict"].get("combined_loader", []):
        loader["batches"] = done
