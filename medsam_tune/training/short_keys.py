"""Short keys on the command line: ``rank=4`` wherever exactly one key of the resolved recipe ends so."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module

from medsam_tune.errors import RecipeError

ALIASES = {
    "data": "data.root",
    "epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "batch": "data.batch_size",
    "seed": "seed_everything",
    "name": "run.name",
    "device": "trainer.accelerator",
}
"""Words that stand for one key in every recipe."""
PREFERRED = {"weights": "model.backbone.weights", "lr": "model.optimizer.lr"}
"""The key that is meant where several end so."""
SYNONYMS = {"rank": ("rank", "r")}
"""Endings that are tried in turn; peft calls the rank of an update r."""

DEFAULT_OPTIMIZER = ("--model.optimizer=torch.optim.AdamW", "--model.optimizer.init_args.weight_decay=0.0001")
"""What a recipe that names no optimizer has, written out: ``training.module.default_optimizer``."""

ROOMS = ("backbone", "data", "fusion", "losses", "prompt_encoders", "prompts", "segmenters", "side", "tasks", "tuners")
"""Rooms whose classes a word may name without their path."""

_CLASS = re.compile(r"--([\w.]+\+?)=([A-Z]\w*)")
_NAME = re.compile(r"[A-Z]\w*")
_CLASS_PATH = re.compile(r"=(?:\w+\.)*[A-Z]\w*$")
_WORD = re.compile(r"--([A-Za-z_][\w.]*)(\+?)=(.*)", re.DOTALL)
_DEVICE = re.compile(r"--device=(cuda|gpu|mps|xpu):(\d+)")
_NO_VALUE_OF_OURS = re.compile(r"\s*\{|.*\.ya?ml$", re.DOTALL)


def expand_short_keys(
    words: Sequence[str], *, whole: Iterable[str], keys_of: Callable[[list[str]], Iterable[str]]
) -> list[str]:
    """Return a command line with every short key written out.

    Args:
        words: Overrides as ``--key=value``, among other words.
        whole: First parts of keys that are written out already, such as ``model`` and ``config``.
        keys_of: Returns the keys of the resolved recipe under the words given to it, ``init_args`` included; called only where
            a word cannot be written out without it.

    Raises:
        RecipeError: If no key ends so, or several do; the message names them.

    Examples:
        >>> expand_short_keys(["--rank=4"], whole={"model"}, keys_of=lambda words: ["model.tuner.init_args.rank"])
        ['--model.tuner.init_args.rank=4']
    """
    words, whole = [each for word in words for each in _one_device(word)], set(whole)
    parsed = {position: _short(word, whole) for position, word in enumerate(words)}
    full = {position: ALIASES[short] for position, short in parsed.items() if short in ALIASES}
    pending = {position: short for position, short in parsed.items() if short is not None and position not in full}
    while pending:
        known = [_written(word, full.get(position)) for position, word in enumerate(words) if position not in pending]
        keys = list(keys_of(known))
        place = next((position for position, short in pending.items() if _sets_default_optimizer(short, keys)), None)
        if place is not None:
            words = [*words[:place], *DEFAULT_OPTIMIZER, *words[place:]]
            return expand_short_keys(words, whole=whole, keys_of=keys_of)
        found = {position: _matches(short, keys) for position, short in pending.items()}
        certain = {position: matches[0] for position, matches in found.items() if len(matches) == 1}
        if not certain:
            _refuse(pending, found, keys)
        # A class brings keys of its own and takes others away, so it comes before them.
        classes = {position: key for position, key in certain.items() if _CLASS_PATH.search(words[position])}
        full |= classes or certain
        pending = {position: short for position, short in pending.items() if position not in full}
    return [_written(word, full.get(position)) for position, word in enumerate(words)]


def expand_class_names(words: Sequence[str]) -> list[str]:
    """Return a command line in which our classes, such as ``--model.tuner=SsfTuner``, are named by their dotted path.

    Examples:
        >>> expand_class_names(["--model.loss=BceDiceLoss", "--data.root=Mine", "--model.x=torch.nn.ReLU"])
        ['--model.loss=medsam_tune.losses.BceDiceLoss', '--data.root=Mine', '--model.x=torch.nn.ReLU']
    """
    return [f"--{found[1]}={_path_of(found[2])}" if (found := _CLASS.fullmatch(word)) else word for word in words]


def load_named_classes(recipe: object) -> None:
    """Load the classes of ours that a recipe names without their path; the parser finds such names among loaded classes alone.

    Args:
        recipe: What the file holds, nested.
    """
    if isinstance(recipe, Mapping):
        for item in recipe.values():
            load_named_classes(item)
    elif isinstance(recipe, list):
        for item in recipe:
            load_named_classes(item)
    elif isinstance(recipe, str) and _NAME.fullmatch(recipe):
        for room in ROOMS:
            if recipe in getattr(module := import_module(f"medsam_tune.{room}"), "__all__", ()):
                getattr(module, recipe)


def _one_device(word: str) -> list[str]:
    """Return ``--device=cuda:1`` as the two keys that the trainer has for it."""
    found = _DEVICE.fullmatch(word)
    return [f"--trainer.accelerator={found[1]}", f"--trainer.devices=[{found[2]}]"] if found else [word]


def _path_of(name: str) -> str:
    for room in ROOMS:
        if name in getattr(import_module(f"medsam_tune.{room}"), "__all__", ()):
            return f"medsam_tune.{room}.{name}"
    return name


def _short(word: str, whole: set[str]) -> str | None:
    """Return the short key that a word sets, or None where it sets none."""
    found = _WORD.fullmatch(word)
    if found is None:
        return None
    name, value = found[1], found[3]
    if name in ALIASES:
        # LightningCLI reads a file, or a mapping, into the section of the same name.
        return None if name in whole and _NO_VALUE_OF_OURS.match(value) else name
    return None if name.partition(".")[0] in whole else name


def _written(word: str, key: str | None) -> str:
    found = _WORD.fullmatch(word)
    return word if key is None or found is None else f"--{key}{found[2]}={found[3]}"


def _matches(short: str, keys: Sequence[str]) -> list[str]:
    by_plain = {_plain(key): key for key in keys if not key.endswith((".init_args", ".class_path"))}
    for ending in SYNONYMS.get(short, (short,)):
        found = [plain for plain in by_plain if plain == ending or plain.endswith(f".{ending}")]
        if PREFERRED.get(short) in found:
            return [by_plain[PREFERRED[short]]]
        if found:
            return [by_plain[plain] for plain in found]
    return []


def _sets_default_optimizer(short: str, keys: Sequence[str]) -> bool:
    """Tell whether a word sets the optimizer's learning rate where the recipe names no optimizer."""
    wanted = PREFERRED.get(short, "").rpartition(".")[0]
    return wanted == "model.optimizer" and wanted in keys and not any(key.startswith(f"{wanted}.") for key in keys)


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "init_args")


def _refuse(pending: Mapping[int, str], found: Mapping[int, Sequence[str]], keys: Sequence[str]) -> None:
    position, short = next(iter(pending.items()))
    if found[position]:
        several = ", ".join(sorted(_plain(key) for key in found[position]))
        raise RecipeError(f"{short}: several keys of this recipe end so: {several}. Write one of them.")
    near = _near(short, [_plain(key) for key in keys])
    hint = f"Did you mean {near}?" if near else "`--print_config` shows the keys."
    raise RecipeError(f"{short}: no such key, and no key of this recipe ends so. {hint}")


def _near(short: str, keys: Sequence[str]) -> str | None:
    """Return what a mistyped key was likely meant to be: a section where it has several parts, else an ending."""
    section, dots, _ = short.partition(".")
    sections = {key.partition(".")[0] for key in keys}
    endings = {key.rpartition(".")[2] for key in keys}
    near = difflib.get_close_matches(section, sections if dots else [*ALIASES, *SYNONYMS, *endings], n=1)
    return near[0] if near else None
