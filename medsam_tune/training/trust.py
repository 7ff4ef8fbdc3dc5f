"""Whether a recipe names code of a stranger: looked at before anything that it names is imported."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from medsam_tune.errors import RecipeError

OWN = ("medsam_tune", "torch", "torchvision", "lightning", "pytorch_lightning", "peft")
"""Packages whose classes a recipe may name without trust; the parser takes each only where its kind is expected."""

_PLAIN = (str, int, float, NoneType, PurePath, Enum)
_REMEDY = "Say --trust (trusted=True in Python) if you trust it and that code."


def refuse_foreign_code(recipe: object, path: Path) -> None:
    """Refuse a recipe that names a class or function of a package that is none of ``OWN``, or a file that could name one.

    Every text counts, but where an annotation of ours, Lightning's or torch's says that the key takes plain values alone:
    elsewhere the parser takes a bare name for a class, and a text for YAML or for the path of a YAML file.

    Args:
        recipe: The recipe's content.
        path: Its file, for the message; files that the recipe names may lie beside it.

    Raises:
        RecipeError: Naming the key and what it names.
    """
    for key, text in _texts(recipe, _sections(), ""):
        package = text.partition(".")[0]
        if package not in OWN and "." in text and package and find_spec(package) is not None:
            raise RecipeError(f"{path}: {key} names {text}, code from outside medsam_tune that would run. {_REMEDY}")
        if _is_file(text, path.parent):
            raise RecipeError(f"{path}: {key} names the file {text}, which would be read as a recipe of its own. {_REMEDY}")


def refuse_foreign_words(words: Sequence[str], path: Path) -> None:
    """Refuse overrides that a recipe could not hold without trust.

    Args:
        words: Such as ``--model.tuner=medsam_tune.tuners.SsfTuner``.
        path: The file that they come from.

    Raises:
        RecipeError: As ``refuse_foreign_code``.
    """
    for word in words:
        key, _, value = word.removeprefix("--").partition("=")
        nested: object = value
        for name in reversed(key.removesuffix("+").split(".")):
            nested = {name: nested}
        refuse_foreign_code(nested, path)


def _sections() -> dict[str, Any]:
    from lightning.pytorch import Trainer

    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.training.module import TuningModule
    from medsam_tune.training.settings import RunSettings

    kinds = {"model": TuningModule, "data": SegmentationDataModule, "trainer": Trainer, "run": RunSettings}
    return {**{name: _Arguments(_hints(kind)) for name, kind in kinds.items()}, "ckpt_path": str}


@dataclasses.dataclass(frozen=True)
class _Arguments:
    """Stand for the annotation of a mapping whose keys are annotated one by one."""

    hints: Mapping[str, Any]


def _texts(value: object, hint: Any, key: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any annotation
    """Return every text with its key that could be read as code where ``hint`` says what the key takes."""
    if isinstance(value, Mapping):
        hints = _arguments(value, hint)
        for name, item in value.items():
            yield from _texts(item, hints.get(str(name), Any), f"{key}.{name}" if key else str(name))
    elif _is_plain(hint):
        return
    elif isinstance(value, str):
        inner = _as_yaml(value)
        yield from _texts(inner, hint, key) if isinstance(inner, Mapping | list) else [(key, value)]
    elif isinstance(value, Iterable):
        for item in value:
            yield from _texts(item, Any, key)


def _arguments(value: Mapping[Any, Any], hint: Any) -> Mapping[str, Any]:  # noqa: ANN401
    """Return what the keys of a mapping take, as far as that is known."""
    if "class_path" in value:
        return {"init_args": _Arguments(_hints(_own_class(value["class_path"])))}
    if isinstance(hint, Mapping):
        return hint
    if isinstance(hint, _Arguments):
        return hint.hints
    kinds = [kind for kind in _members(hint) if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    return _hints(kinds[0]) if len(kinds) == 1 else {}


def _own_class(class_path: object) -> object:
    """Return a class of the packages that need no trust; None for everything else, which is not imported."""
    module, _, name = str(class_path).rpartition(".")
    if module.partition(".")[0] not in OWN:
        return None
    try:
        return getattr(import_module(module), name, None)
    except ImportError:
        return None


def _hints(kind: object) -> dict[str, Any]:
    """Return the annotations of a constructor; none where they cannot be read, and then every text counts."""
    try:
        return get_type_hints(kind.__init__) if isinstance(kind, type) else {}  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}


def _is_plain(hint: Any) -> bool:  # noqa: ANN401 - any annotation
    """Tell whether an annotation takes numbers, texts and paths alone, so that nothing it is given becomes code."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return True
    if origin in (Union, UnionType) or (isinstance(origin, type) and issubclass(origin, Iterable)):
        return bool(inner) and all(each is Ellipsis or _is_plain(each) for each in inner)
    return isinstance(hint, type) and issubclass(hint, _PLAIN)


def _members(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401 - any annotation
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _as_yaml(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def _is_file(text: str, beside: Path) -> bool:
    # A longer text is no path, and asking for it would fail.
    return 0 < len(text) < 1024 and any(Path(os.path.expanduser(place)).is_file() for place in (text, beside / text))
