"""What a training checkpoint must hold: looked at once, when the file is read, before anything is built or written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsam_tune.errors import CheckpointError

REMEDY = "Use another file of the same run, such as best.ckpt for last.ckpt."
_VERSION = re.compile(r"\d+(\.\w+)+")
_LOOP = (
    "epoch_progress",
    "epoch_loop.batch_progress",
    "epoch_loop.val_loop.batch_progress",
    "epoch_loop.state_dict",
    "state_dict",
)
# Of one shape with the parameter that they belong to, in every optimizer of torch that has them.
_LIKE_PARAMETERS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg")


def check_schema(path: Path, checkpoint: object) -> dict[str, Any]:
    """Return what a checkpoint file holds, if it is what every command needs of one.

    Raises:
        CheckpointError: With the file, the entry, what was expected and what it holds.
    """
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path}: holds no state_dict. Expected a file from a run's checkpoints folder.")
    _look(path, checkpoint, _ALWAYS)
    return checkpoint


def check_goes_on(path: Path, checkpoint: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> None:
    """Check what a training that goes on needs besides.

    Args:
        path: The file, for the message.
        checkpoint: Its content, after ``check_schema``.
        parameters: What is trained, in the optimizer's order.

    Raises:
        CheckpointError: With the file, the entry, what was expected and what it holds.
    """
    if "train_means" not in checkpoint:
        raise CheckpointError(
            f"{path}: holds no state of a training of this version, so nothing can go on from it. Train anew; its weights can "
            "still be tested: medsam-tune test --config RECIPE --ckpt_path=FILE"
        )
    _look(path, checkpoint, _TO_GO_ON)
    for state in checkpoint["optimizer_states"]:
        for number, entries in state["state"].items():
            wrong = [name for name in _LIKE_PARAMETERS if name in entries and not _is_like(entries[name], number, parameters)]
            if wrong:
                raise CheckpointError(f"{path}: optimizer_states: {wrong[0]} of parameter {number} has another shape. {REMEDY}")


def _look(path: Path, checkpoint: Mapping[str, Any], entries: Mapping[str, tuple[str, Callable[[Any], bool]]]) -> None:
    for name, (expected, is_sound) in entries.items():
        if name not in checkpoint:
            raise CheckpointError(f"{path}: {name}: is missing, expected {expected}. {REMEDY}")
        if not is_sound(checkpoint[name]):
            found = type(checkpoint[name]).__name__
            raise CheckpointError(f"{path}: {name}: expected {expected}, got another {found}. {REMEDY}")


def _is_like(value: object, number: object, parameters: Sequence[nn.Parameter]) -> bool:
    known = isinstance(number, int) and number < len(parameters)
    return known and isinstance(value, Tensor) and value.shape == parameters[int(str(number))].shape


def _are_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


def _is_identity(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("name", "sha256"))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_states(value: object) -> bool:
    def is_state(one: object) -> bool:
        return (
            isinstance(one, Mapping)
            and isinstance(one.get("param_groups"), list)
            and isinstance(one.get("state"), Mapping)
            and all(isinstance(entries, Mapping) for entries in one["state"].values())
        )

    return isinstance(value, list) and len(value) == 1 and is_state(value[0])


def _are_loops(value: object) -> bool:
    fit = value.get("fit_loop") if isinstance(value, Mapping) else None
    return isinstance(fit, Mapping) and all(isinstance(fit.get(name), Mapping) for name in _LOOP)


def _are_callbacks(value: object) -> bool:
    state = value.get("RandomState") if isinstance(value, Mapping) else None
    if not isinstance(state, Mapping) or not isinstance(state.get("python"), tuple) or len(state["python"]) != 3:
        return False
    drawn = state.get("torch")
    return isinstance(drawn, Tensor) and drawn.dtype == torch.uint8 and drawn.ndim == 1


_ALWAYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "state_dict": ("tensors by name", _are_tensors),
    "base_weights": ("name and sha256, or none", lambda value: value is None or _is_identity(value)),
    "frozen": (
        "name and sha256 of each part",
        lambda value: isinstance(value, Mapping) and all(map(_is_identity, value.values())),
    ),
    "epoch": ("a number of at least 0", _is_count),
    "global_step": ("a number of at least 0", _is_count),
    "pytorch-lightning_version": (
        "a version such as 2.6.0",
        lambda value: isinstance(value, str) and _VERSION.fullmatch(value) is not None,
    ),
}
_TO_GO_ON: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "loops": ("the position in the training", _are_loops),
    "optimizer_states": ("the state of one optimizer", _are_states),
    "lr_schedulers": ("a list", lambda value: isinstance(value, list)),
    "callbacks": ("the states of the run's callbacks with its random numbers", _are_callbacks),
    "images_per_batch": ("a number of at least 0", _is_count),
}
