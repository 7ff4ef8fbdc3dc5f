"""Read class paths and arguments that a stranger may have written, and refuse them before anything is constructed.

A class may be named only where a seam expects it: the annotation of the argument is a seam's base class, and the named class is
a subclass of it in the same room. Its own arguments are read by the annotations of its constructor in the same way. Nothing is
imported from outside ``medsam_tune``, and no class is constructed, until the whole description has been read.
"""

from __future__ import annotations

import inspect
import math
import re
from abc import ABCMeta
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError

_PACKAGE = "medsam_tune"
# No part of a dotted name begins with an underscore: neither `__main__`, which runs, nor anything private.
_OWN_PATH = re.compile(rf"{_PACKAGE}(\.[A-Za-z]\w*)+")

FILE_ARGUMENTS = ("checkpoint", "encoder_weights", "weights")
"""Arguments that hold a file where they may also be None; a backbone's ``weights``, which may not, holds a name."""


class ForeignClassError(RecipeError):
    """A class outside ``medsam_tune`` is named, and the user has not said that it is trusted."""


@dataclass(frozen=True)
class Part:
    """Hold a class and its checked arguments, not constructed yet.

    Attributes:
        constructor: The class, or peft's configuration builder.
        arguments: By name; further parts among them.
    """

    constructor: Any
    arguments: Mapping[str, object]

    def build(self, **more: object) -> Any:  # noqa: ANN401 - an instance of the seam that was read
        """Construct the arguments, innermost first, and then the class.

        Args:
            more: Arguments that no description may give.
        """
        return self.constructor(**{name: _built(value) for name, value in self.arguments.items()}, **more)


@dataclass(frozen=True)
class PartReader:
    """Read parts from a description.

    Attributes:
        trusted: Take classes from outside the package too, which imports their modules, and arguments without an annotation.
        opens_files: Keep the files that the description names (``FILE_ARGUMENTS``); without it they are read as None.
        files: Files to use whatever the description names, by their key in the recipe, such as ``prompt_encoder.weights``;
            ``backbone.checkpoint`` holds for a backbone wherever it stands.
    """

    trusted: bool = False
    opens_files: bool = False
    files: Mapping[str, Path] = field(default_factory=dict)

    def part(self, value: object, seams: type | tuple[type, ...], key: str, *, given: Sequence[str] = ()) -> Part:
        """Read ``{"class_path": ..., "init_args": {...}}`` where a class of one of the seams is expected.

        Args:
            value: The description.
            seams: The base class, or several.
            key: Where it stands, for the message.
            given: Names of arguments that the caller will give.

        Raises:
            RecipeError: If it names no such class, or the class does not take the arguments.
        """
        seams = seams if isinstance(seams, tuple) else (seams,)
        if not isinstance(value, Mapping) or not isinstance(value.get("class_path"), str):
            raise RecipeError(f"{key}: expected a class_path of a {_names(seams)}, got {_shown(value)}.")
        if unknown := sorted(str(name) for name in value.keys() - {"class_path", "init_args"}):
            raise RecipeError(f"{key}.{unknown[0]}: unknown key. Beside class_path stands init_args alone.")
        arguments = value.get("init_args") or {}
        if not isinstance(arguments, Mapping):
            raise RecipeError(f"{key}.init_args: expected arguments by name, got {_shown(arguments)}.")
        if any(_is_peft_config(seam) for seam in seams):
            return _peft_part(value["class_path"], arguments, key)
        found = _named_class(value["class_path"], seams, key, trusted=self.trusted)
        return Part(found, self.arguments(found, arguments, key, given=given))

    def arguments(
        self, constructor: type, arguments: Mapping[str, object], key: str, *, given: Sequence[str] = ()
    ) -> dict[str, object]:
        """Read the arguments of a class by the annotations of its constructor.

        Args:
            constructor: The class.
            arguments: By name.
            key: Where they stand, for the message.
            given: Names of arguments that the caller will give.

        Returns:
            Plain values, and a ``Part`` wherever a class is to be constructed.

        Raises:
            RecipeError: If an argument is unknown, missing, or does not fit its annotation.
        """
        named = {name: p for name, p in inspect.signature(constructor).parameters.items() if p.kind not in _GATHERING}
        if unknown := sorted(str(name) for name in arguments if name not in named or name in given):
            raise RecipeError(
                f"{key}.{unknown[0]}: {constructor.__name__} does not take these init_args ({unknown[0]} is unknown). "
                f"It takes: {', '.join(name for name in named if name not in given) or 'none'}."
            )
        hints = _hints(constructor, key, trusted=self.trusted)
        for name, parameter in named.items():
            if parameter.default is parameter.empty and name not in arguments and name not in given:
                raise RecipeError(f"{key}.{name}: missing; expected {_wanted(hints.get(name))}.")
        found = {name: self._value(value, hints.get(name), f"{key}.{name}") for name, value in arguments.items()}
        return found | self._files(constructor, hints, arguments, key)

    def _files(
        self, constructor: type, hints: Mapping[str, Any], arguments: Mapping[str, object], key: str
    ) -> dict[str, object]:
        """Return what the arguments that hold files become."""
        part = "backbone" if issubclass(constructor, Backbone) else key.removeprefix("model.")
        names = [name for name in FILE_ARGUMENTS if NoneType in _members(hints.get(name))]
        named = {} if self.opens_files else {name: None for name in names if name in arguments}
        given = {name: self.files.get(f"{part}.{name}") for name in names if name in hints}
        return {**named, **{name: str(file) for name, file in given.items() if file is not None}}

    def _value(self, value: object, hint: Any, key: str) -> object:  # noqa: ANN401 - any annotation
        """Return the value as the annotation wants it, with a ``Part`` for each class."""
        kinds = _members(hint)
        if value is None and (NoneType in kinds or self.trusted):
            return None
        for kind in kinds:
            if (found := self._plain(value, kind, key)) is not None:
                return found[0]
        seams = tuple(kind for kind in kinds if isinstance(kind, type) and (is_seam(kind) or _is_peft_config(kind)))
        if seams and (isinstance(value, Mapping) or not self.trusted):
            return self.part(value, seams, key)
        if self.trusted:
            return self._loose(value, key)
        raise RecipeError(f"{key}: expected {_wanted(hint)}, got {_shown(value)}.")

    def _plain(self, value: object, kind: Any, key: str) -> tuple[object] | None:  # noqa: ANN401 - any annotation
        """Return the value in a tuple of one if it is of this kind of plain data, else None."""
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Literal:
            return (value,) if any(value == known and type(value) is type(known) for known in inner) else None
        if kind is float:
            return (value,) if isinstance(value, int | float) and type(value) is not bool and math.isfinite(value) else None
        if kind in (bool, int, str):
            return (value,) if type(value) is kind else None
        if isinstance(kind, type) and is_dataclass(kind) and not _is_peft_config(kind):
            if not isinstance(value, Mapping) or "class_path" in value:
                return None
            return (Part(kind, self.arguments(kind, value, key)),)
        if origin in (Sequence, list, tuple) and isinstance(value, list | tuple):
            return self._sequence(value, kind, key)
        if origin in (Mapping, dict) and isinstance(value, Mapping):
            named, hint = inner
            items = {name: self._value(item, hint, f"{key}.{name}") for name, item in value.items()}
            return (items,) if all(self._plain(name, named, key) is not None for name in items) else None
        return None

    def _sequence(self, value: Sequence[object], kind: Any, key: str) -> tuple[object] | None:  # noqa: ANN401
        inner: Sequence[Any] = get_args(kind)
        fixed = get_origin(kind) is tuple and inner[-1] is not Ellipsis
        if fixed and len(value) != len(inner):
            return None
        hints = inner if fixed else [inner[0]] * len(value)
        items = [self._value(item, hint, f"{key}[{i}]") for i, (item, hint) in enumerate(zip(value, hints, strict=True))]
        return (tuple(items) if get_origin(kind) is tuple else items,)

    def _loose(self, value: object, key: str) -> object:
        """Read what a trusted class wants without saying so in its annotations."""
        if isinstance(value, Mapping) and "class_path" in value:
            return self.part(value, object, key)
        if isinstance(value, list):
            return [self._loose(item, f"{key}[{index}]") for index, item in enumerate(value)]
        return value


_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _built(value: object) -> object:
    if isinstance(value, Part):
        return value.build()
    if isinstance(value, list | tuple):
        return type(value)(_built(item) for item in value)
    if isinstance(value, dict):
        return {name: _built(item) for name, item in value.items()}
    return value


def _hints(constructor: type, key: str, *, trusted: bool) -> dict[str, Any]:
    try:
        return get_type_hints(constructor.__init__)  # type: ignore[misc]
    except NameError as error:
        if trusted:
            return {}
        raise RecipeError(f"{key}: {constructor.__name__} has annotations that cannot be read ({error}).") from error


def is_seam(kind: type) -> bool:
    """Tell whether a class is the base class of a seam, an abstract class of a room's ``base.py``, or derived from one."""
    return any(
        isinstance(base, ABCMeta) and base.__module__.startswith(f"{_PACKAGE}.") and base.__module__.endswith(".base")
        for base in kind.__mro__
    )


def _named_class(class_path: str, seams: tuple[type, ...], key: str, *, trusted: bool) -> type:
    module_name, _, name = class_path.rpartition(".")
    if not trusted:
        _check_place(class_path, module_name, seams, key)
    try:
        found = getattr(import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"{key}: {class_path} cannot be imported ({error}). Install its package or correct the name."
        ) from error
    if not isinstance(found, type):
        raise RecipeError(f"{key}: {class_path} is no class, got {type(found).__name__}. Name a class by its dotted path.")
    if not issubclass(found, seams) or inspect.isabstract(found):
        raise RecipeError(f"{key}: expected a class_path of a {_names(seams)}, got {found.__name__}.")
    if not (trusted or found.__module__.startswith(f"{_PACKAGE}.")):
        raise _outside(class_path, key)
    return found


def _check_place(class_path: str, module_name: str, seams: tuple[type, ...], key: str) -> None:
    """Refuse a name outside the rooms of the seams before any module is imported for it."""
    if class_path.split(".")[0] != _PACKAGE:
        raise _outside(class_path, key)
    rooms = {".".join(seam.__module__.split(".")[:2]) for seam in seams}
    inside = module_name == _PACKAGE or any(module_name == room or module_name.startswith(f"{room}.") for room in rooms)
    if not (inside and _OWN_PATH.fullmatch(class_path)):
        raise RecipeError(
            f"{key}: expected a class_path of a {_names(seams)}, which lie in {', '.join(sorted(rooms))}, got {class_path}."
        )


def _outside(class_path: str, key: str) -> ForeignClassError:
    return ForeignClassError(
        f"{key}: {class_path} lies outside medsam_tune, and building it runs its code. "
        "Pass trusted=True if you trust this file and that package."
    )


def _is_peft_config(kind: object) -> bool:
    return isinstance(kind, type) and any(base.__module__ == "peft.config" for base in kind.__mro__)


def _peft_part(class_path: str, arguments: Mapping[str, object], key: str) -> Part:
    """Read a configuration of the peft library, which is plain data; peft is asked for nothing but its own table."""
    from medsam_tune.tuners.peft_settings import build_config

    package, _, name = class_path.rpartition(".")
    if package.split(".")[0] != "peft":
        raise RecipeError(f"{key}: expected a class_path of peft such as peft.LoraConfig, got {class_path}.")
    build_config(name, arguments)
    return Part(build_config, {"class_name": name, "settings": dict(arguments)})


def _members(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401 - any annotation
    """Return the members of a union, or the annotation alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (NoneType if hint is None else hint,)


def _wanted(hint: Any) -> str:  # noqa: ANN401 - any annotation
    """Return an annotation in words for a message."""
    kinds = [kind for kind in _members(hint) if kind is not NoneType]
    seams = [kind for kind in kinds if isinstance(kind, type) and (is_seam(kind) or _is_peft_config(kind))]
    if seams:
        return f"a class_path of a {_names(tuple(seams))}"
    return " or ".join(kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind) for kind in kinds)


def _names(seams: tuple[type, ...]) -> str:
    return " or ".join(seam.__name__ for seam in seams)


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, bool | int | float | str) else type(value).__name__
