"""Build a segmenter from the plain ``model`` section of a recipe, without the command line's parser."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medsam_tune.errors import RecipeError
from medsam_tune.export.parts import FILE_ARGUMENTS, Part, PartReader
from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.sam import SamSegmenter


def build_segmenter(
    model_config: Mapping[str, Any],
    *,
    trusted: bool = False,
    opens_files: bool = False,
    files: Mapping[str, str | Path] | None = None,
) -> Segmenter:
    """Build the segmenter that a resolved ``model`` section describes.

    The parts that ``SamParts`` names are read where given and handed to ``segmenter``, by default ``SamSegmenter``. What only
    training reads (loss, optimizer, schedule) is passed over. The whole section is read and checked before anything is
    constructed.

    Args:
        model_config: ``{"backbone": {"class_path": ..., "init_args": {...}}, ...}``; init_args may nest further class paths.
        trusted: Import classes from outside ``medsam_tune`` too, which runs the code of their modules and constructors, and
            give them arguments that their annotations do not describe. Without it a class is accepted only where it is a
            subclass of the seam's base class, and its arguments only where they fit its annotations.
        opens_files: Open the weight files that the section names: for a section of your own run, never for one that came with
            an export. Without it they count as not named.
        files: Weight files to open whatever the section names, by their key, such as ``backbone.checkpoint``.

    Raises:
        RecipeError: If a part is missing, unknown, of the wrong kind, refuses its init_args, or lies outside the package
            and ``trusted`` is False.
    """
    given = {key: Path(file).expanduser() for key, file in (files or {}).items()}
    part = read_segmenter(model_config, PartReader(trusted, opens_files, given))
    # A caller may be under no_grad, where a part that looks at its own gradients while it is built would fail.
    with torch.enable_grad():
        try:
            segmenter: Segmenter = part.build()
        except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
            # The types were right; a value, such as a negative width, was not.
            said = " ".join(str(error).split()).rstrip(".")
            raise RecipeError(f"model: no network can be built from these values ({said}). Correct them.") from error
    return segmenter


def read_segmenter(model_config: Mapping[str, Any], reader: PartReader) -> Part:
    """Read a ``model`` section as ``build_segmenter`` does, constructing nothing.

    Raises:
        RecipeError: As for ``build_segmenter``.
    """
    _refuse_older_form(model_config)
    names = inspect.signature(SamParts).parameters
    given = {name: model_config[name] for name in names if model_config.get(name) is not None}
    parts = Part(SamParts, reader.arguments(SamParts, given, "model"))
    described = model_config.get("segmenter") or {"class_path": f"{SamSegmenter.__module__}.{SamSegmenter.__qualname__}"}
    found = reader.part(described, Segmenter, "model.segmenter", given=("parts",))
    return Part(found.constructor, {**found.arguments, "parts": parts})


def _refuse_older_form(model_config: Mapping[str, Any]) -> None:
    if "prompt_source" in model_config:
        raise RecipeError(
            "model.prompt_source: is the form of an older version, which had no model.prompts and no model.prompt_encoder. "
            "Convert the recipe with `medsam-tune recipes upgrade FILE` and train again; weights of that form do not load."
        )


def without_folders(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section as JSON values, with the names of weight files but not the folders where they lay.

    The folders name a machine and its user; whoever loads an export names the place of a file anew.
    """
    return {key: _without_folders(value) for key, value in json.loads(json.dumps(model_config)).items()}


def names_own_file(model: object) -> bool:
    """Tell whether a backbone of a described model was given a file of its own."""
    if isinstance(model, Mapping):
        return isinstance(model.get("checkpoint"), str) or any(names_own_file(value) for value in model.values())
    return isinstance(model, list) and any(names_own_file(value) for value in model)


def _without_folders(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: Path(item).name if key in FILE_ARGUMENTS and isinstance(item, str) else _without_folders(item)
        for key, item in value.items()
    }
