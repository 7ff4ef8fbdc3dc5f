"""What is looked at in a recipe beside its types: readable files, known sections, numbers that can be meant."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam_tune.errors import RecipeError
from medsam_tune.training.old_recipes import old_key
from medsam_tune.yaml_files import read_yaml

_OWN_CLASS = "medsam_tune."


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
    Limit(r"trainer\.(accumulate_grad_batches|check_val_every_n_epoch|num_nodes)", 1),
    Limit(r"trainer\.(min_epochs|min_steps|log_every_n_steps)", 0),
    Limit(r"trainer\.(max_epochs|max_steps|num_sanity_val_steps)", -1),
    Limit(r"data\.((eval_)?batch_size|global_batch|max_objects|views|chunk)", 1, 2**31 - 1),
    Limit(r"trainer\.limit_\w+_batches|trainer\.overfit_batches", 0),
    Limit(r"model\.backbone\.side", 1, 2**13, own=True),
    Limit(r"data\.num_workers|trainer\.gradient_clip_val|model\.(warmup_steps|objects_per_decode)", 0),
    Limit(r"model\.smallest_part", 0.0, 1.0),
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


def _check(key: str, value: float, limit: Limit) -> None:
    if not limit.low <= value <= limit.high or not math.isfinite(value):
        bounds = f"of at least {limit.low}" if limit.high == math.inf else f"from {limit.low} to {limit.high}"
        raise RecipeError(f"{key}: expected a number {bounds}, got {value}. Change it.")


def _numbers(value: object, key: str, *, own: bool) -> Iterator[tuple[str, float, bool]]:
    """Return every number below ``value`` with its dotted key, and whether a class of this package takes it."""
    if isinstance(value, Mapping):
        class_path = value.get("class_path")
        inside = class_path.startswith(_OWN_CLASS) if isinstance(class_path, str) else own
        for name, item in value.items():
            yield from _numbers(item, key if name == "init_args" else f"{key}.{name}".lstrip("."), own=inside)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value, own
