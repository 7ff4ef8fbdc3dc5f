"""What is looked at in a recipe beside its types: readable files, known sections, numbers that can be meant."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam_tune.errors import RecipeError
from medsam_tune.training.old_recipes import old_key
from medsam_tune.yaml_files import read_yaml

_OWN_CLASS = "medsam_tune."
_WHOLE_NETWORK = {"64", "transformer-engine", "transformer-engine-float16"}


@dataclass(frozen=True)
class Limit:
    """Say which numbers a key takes.

    Attributes:
        keys: Pattern of the dotted key, without ``init_args``.
        low: Least number.
        high: Greatest number.
        own: Only where a class of this package takes it; another one's key of this name may mean something else.
    """

    keys: str
    low: float
    high: float = math.inf
    own: bool = False


LIMITS = (
    Limit(r"seed_everything|(.+\.)?seed", 0, 2**32 - 1),
    Limit(r"(.+\.)?(lr|weight_decay)", 0.0),
    Limit(r"trainer\.(accumulate_grad_batches|check_val_every_n_epoch)", 1),
    Limit(r"data\.num_workers|trainer\.gradient_clip_val|model\.(warmup_steps|objects_per_decode)", 0),
    Limit(r"model\..+\.(width|rank|hidden_dim|bottleneck_dim)", 1, 2**16, own=True),
)


def check_recipe_files(words: Sequence[str], sections: Iterable[str], also: Iterable[str] = ()) -> None:
    """Read every ``--config`` file of a command line once, so that what no parser would notice is refused.

    Args:
        words: The command line.
        sections: Top-level keys of a recipe.
        also: Further ones that a file may have.

    Raises:
        RecipeError: If a file is no UTF-8 or YAML, holds a key twice, or has a section that nothing would read.
    """
    sections = set(sections)
    known = sections.union(also)
    for path in config_files(words):
        content = read_yaml(path)
        if not isinstance(content, Mapping):
            raise RecipeError(f"{path}: expected the sections of a recipe, got {type(content).__name__}. Give a recipe.")
        old = old_key(content)
        if old is not None:
            raise RecipeError(f"{path}: {old}: is of an earlier version. Run: medsam-tune recipes upgrade {path}")
        unknown = [str(name) for name in content if name not in known]
        if unknown:
            raise RecipeError(f"{path}: {unknown[0]}: no such section. A recipe has {', '.join(sorted(sections))}.")


def config_files(words: Sequence[str]) -> Iterator[Path]:
    """Return the files that ``--config`` names in a command line, where they exist."""
    for position, word in enumerate(words):
        option, _, value = word.partition("=")
        if option in ("--config", "-c"):
            path = Path(value or (words[position + 1] if position + 1 < len(words) else ""))
            # What is no file is the parser's to refuse.
            if len(str(path)) < 4096 and path.is_file():
                yield path


def check_numbers(recipe: Mapping[str, Any]) -> None:
    """Refuse numbers that no part can work with, before anything is built.

    Args:
        recipe: The resolved recipe as nested mappings.

    Raises:
        RecipeError: With the key, what it takes, and the value.
    """
    for key, value, own in _numbers(recipe, "", own=False):
        for limit in LIMITS:
            if re.fullmatch(limit.keys, key) and (own or not limit.own):
                _check(key, value, limit)
    _check_trainer(recipe.get("trainer") or {})


def check_stages(trainer: Mapping[str, Any], *, whole_run: bool) -> None:
    """Refuse limits under which a stage would find nothing to do, before any work.

    Args:
        trainer: The recipe's section.
        whole_run: Whether a test and an export follow the training.

    Raises:
        RecipeError: Naming the key.
    """
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


def _check(key: str, value: float, limit: Limit) -> None:
    if not limit.low <= value <= limit.high or not math.isfinite(value):
        bounds = f"of at least {limit.low}" if limit.high == math.inf else f"from {limit.low} to {limit.high}"
        raise RecipeError(f"{key}: expected a number {bounds}, got {value}. Change it.")


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    _check_devices(trainer)
    precision = str(trainer.get("precision"))
    if precision in _WHOLE_NETWORK or (precision.endswith("-true") and precision != "32-true"):
        raise RecipeError(
            f"trainer.precision: {precision} casts the whole network, frozen weights and metrics included. "
            "Use 32-true, 16-mixed or bf16-mixed."
        )
    interval = trainer.get("val_check_interval")
    if isinstance(interval, int | float) and not (0 < interval <= 1 or (isinstance(interval, int) and interval >= 1)):
        raise RecipeError(
            f"trainer.val_check_interval: expected a part of an epoch up to 1.0, or a number of batches, got {interval}."
        )
    endless = trainer.get("max_epochs") is None and trainer.get("max_time") is None and trainer.get("max_steps", -1) == -1
    if trainer and endless:
        raise RecipeError("trainer.max_epochs: is null, and nothing else ends the training. Give it, max_steps or max_time.")


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


def _numbers(value: object, key: str, *, own: bool) -> Iterator[tuple[str, float, bool]]:
    """Return every number below ``value`` with its dotted key, and whether a class of this package takes it."""
    if isinstance(value, Mapping):
        class_path = value.get("class_path")
        inside = class_path.startswith(_OWN_CLASS) if isinstance(class_path, str) else own
        for name, item in value.items():
            yield from _numbers(item, key if name == "init_args" else f"{key}.{name}".lstrip("."), own=inside)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value, own
