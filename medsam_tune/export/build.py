"""Build a segmenter from the plain ``model`` section of a recipe, without the command line's parser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, get_args, get_type_hints

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.fusion.base import InputFusion
from medsam_tune.prompts.base import PromptSource
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.side.base import SideNetwork
from medsam_tune.tuners.base import Tuner

_PACKAGE = "medsam_tune."


def build_segmenter(model_config: Mapping[str, Any], *, trusted: bool = False) -> Segmenter:
    """Build the segmenter that a resolved ``model`` section describes.

    ``segmenter`` alone stands for the whole network; else ``backbone`` and ``prompt_source`` are needed, and ``tuner``,
    ``fusion``, ``side`` and ``objects_per_decode`` are read where given. What only training reads (loss, optimizer,
    schedule) is passed over.

    Args:
        model_config: ``{"backbone": {"class_path": ..., "init_args": {...}}, ...}``; init_args may nest further class paths.
        trusted: Import classes from outside ``medsam_tune`` too; that runs their code.

    Raises:
        RecipeError: If a part is missing, unknown, of the wrong kind, refuses its init_args, or lies outside the package
            and ``trusted`` is False.
    """
    if model_config.get("segmenter") is not None:
        segmenter: Segmenter = _part(model_config, "segmenter", Segmenter, trusted=trusted)
        return segmenter
    return SamSegmenter(
        _part(model_config, "backbone", Backbone, trusted=trusted),
        _part(model_config, "prompt_source", PromptSource, trusted=trusted),
        tuner=_optional_part(model_config, "tuner", Tuner, trusted=trusted),
        fusion=_optional_part(model_config, "fusion", InputFusion, trusted=trusted),
        side=_optional_part(model_config, "side", SideNetwork, trusted=trusted),
        objects_per_decode=int(model_config.get("objects_per_decode") or 0),
    )


def _optional_part(config: Mapping[str, Any], key: str, seam: type[Any], *, trusted: bool) -> Any:  # noqa: ANN401 - an instance of seam
    return None if config.get(key) is None else _part(config, key, seam, trusted=trusted)


def _part(config: Mapping[str, Any], key: str, seam: type[Any], *, trusted: bool) -> Any:  # noqa: ANN401 - an instance of seam
    part = _build(config.get(key), f"model.{key}", trusted=trusted)
    if not isinstance(part, seam):
        raise RecipeError(f"model.{key}: expected a class_path of a {seam.__name__}, got {type(part).__name__}.")
    return part


def _build(value: object, key: str, *, trusted: bool) -> object:
    """Build every mapping that has a ``class_path``, innermost first; leave other values as they are."""
    if isinstance(value, Mapping) and "class_path" in value:
        arguments = {
            name: _build(argument, f"{key}.{name}", trusted=trusted)
            for name, argument in (value.get("init_args") or {}).items()
        }
        if (peft_name := _peft_config_name(str(value["class_path"]))) is not None:
            from medsam_tune.tuners.peft_methods import build_config

            return build_config(peft_name, arguments)
        constructor = _import_class(str(value["class_path"]), key, trusted=trusted)
        try:
            return constructor(**_with_dataclasses(constructor, arguments))
        except TypeError as error:
            raise RecipeError(
                f"{key}: {constructor.__name__} does not take these init_args ({error}). Correct them."
            ) from error
    if isinstance(value, list):
        return [_build(item, f"{key}[{index}]", trusted=trusted) for index, item in enumerate(value)]
    return value


def _peft_config_name(class_path: str) -> str | None:
    """Return the class name of a configuration of the peft library: plain data, so it may be built without trust."""
    package, _, name = class_path.rpartition(".")
    return name if package.split(".")[0] == "peft" and name.endswith("Config") else None


def _with_dataclasses(constructor: type[Any], arguments: Mapping[str, object]) -> dict[str, object]:
    """Turn each mapping into the dataclass that its argument is annotated with, such as the jitter of a box."""
    try:
        hints = get_type_hints(constructor.__init__)
    except NameError:
        # Annotations that only a type checker imports name no dataclass of a recipe.
        return dict(arguments)
    return {name: _as_dataclass(value, hints.get(name)) for name, value in arguments.items()}


def _as_dataclass(value: object, hint: object) -> object:
    if not isinstance(value, Mapping):
        return value
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)]
    return kinds[0](**value) if kinds else value


def _import_class(class_path: str, key: str, *, trusted: bool) -> type[Any]:
    module_name, _, class_name = class_path.rpartition(".")
    if not (trusted or class_path.startswith(_PACKAGE)):
        raise _outside(class_path, key)
    try:
        found = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"{key}: {class_path} cannot be imported ({error}). Install its package or correct the name."
        ) from error
    if not isinstance(found, type):
        raise RecipeError(f"{key}: {class_path} is no class, got {type(found).__name__}. Name a class by its dotted path.")
    # A room may import foreign classes for its own use; those are as untrusted as any other.
    if not (trusted or found.__module__.startswith(_PACKAGE)):
        raise _outside(f"{found.__module__}.{found.__qualname__}", key)
    return found


def _outside(class_path: str, key: str) -> RecipeError:
    return RecipeError(
        f"{key}: {class_path} lies outside medsam_tune, and building it runs its code. "
        "Pass trusted=True if you trust this file and that package."
    )
