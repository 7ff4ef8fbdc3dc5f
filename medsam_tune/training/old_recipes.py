"""The recipe form of earlier versions: recognised, so that it is refused with the way out, and brought to the form of today.

Then one key ``model.prompt_source`` held either how prompts are drawn or the network that makes their embedding, and a
``model.segmenter`` of its own repeated the parts that now lie flat under ``model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medsam_tune.errors import RecipeError

PARTS = ("backbone", "tuner", "prompt_source", "fusion", "side", "objects_per_decode")
"""What a segmenter repeated."""
GENERATORS = {
    "EmbeddingPromptGenerator",
    "FusedPromptGenerator",
    "HarDNetPromptGenerator",
    "ImagePromptGenerator",
    "TimmPromptGenerator",
}
SAMPLERS = {"BoxPrompt", "CombinedPrompt", "MaskPrompt", "OneOfPrompt", "PointPrompt"}

_ORDER = ("backbone", "tuner", "prompts", "prompt_encoder", "fusion", "side", "objects_per_decode", "segmenter")
_SAM = "SamSegmenter"
_SEEDED = {*SAMPLERS, "InteractiveSegmenter"}


@dataclass(frozen=True)
class Upgraded:
    """Hold what became of an old ``model`` section.

    Attributes:
        model: The section in the form of today.
        changes: What was done, a line each.
        names_only: Whether nothing but names changed, so that every line may stay where it is.
    """

    model: dict[str, Any]
    changes: tuple[str, ...]
    names_only: bool


def old_key(recipe: Mapping[str, Any]) -> str | None:
    """Return the first key of a recipe that only earlier versions had, or None for the form of today."""
    model = recipe.get("model")
    if not isinstance(model, Mapping):
        return None
    if "prompt_source" in model:
        return "model.prompt_source"
    repeated = next(iter(_repeated(model)), None)
    return None if repeated is None else f"model.segmenter.init_args.{repeated}"


def upgrade_model(model: Mapping[str, Any]) -> Upgraded:
    """Bring the ``model`` section of an old recipe to the form of today.

    Raises:
        RecipeError: If a part stands twice, or the prompt source is a class that this package never had.
    """
    flat, changes = _flatten(model)
    moved, key = bool(changes), None
    if "prompt_source" in flat:
        key, value, change = _split(flat.pop("prompt_source"))
        changes.append(change)
        if key is not None:
            flat[key] = value
    flat, n_seeds = _without_seeds(flat)
    if n_seeds:
        changes.append("seed of prompts: left out; seed_everything reaches every random choice")
    first = {name: flat[name] for name in _ORDER if name in flat}
    rest = {name: value for name, value in flat.items() if name not in first}
    return Upgraded({**first, **rest}, tuple(changes), names_only=key is not None and not moved and not n_seeds)


def _flatten(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Lift what a segmenter repeats up to the model, and drop a segmenter that says nothing more."""
    flat, segmenter = dict(model), model.get("segmenter")
    inside, lifted = _init_args(segmenter), _repeated(model)
    twice = next((part for part in lifted if flat.get(part) is not None), None)
    if twice is not None:
        raise RecipeError(f"model.{twice}: stands twice, under model and in model.segmenter. Remove one of the two.")
    if not isinstance(segmenter, Mapping) or not lifted:
        return flat, []
    flat |= lifted
    own = {name: value for name, value in inside.items() if name not in lifted}
    flat["segmenter"] = {"class_path": segmenter["class_path"], **({"init_args": own} if own else {})}
    if _class_name(segmenter) == _SAM and not own:
        del flat["segmenter"]
    return flat, [f"model.segmenter.{part}: moved to model" for part in lifted]


def _repeated(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts that a segmenter repeats; a task network's own ``side`` is a number and no part."""
    inside = _init_args(model.get("segmenter"))
    return {part: inside[part] for part in PARTS if part in inside and not (part == "side" and isinstance(inside[part], int))}


def _split(source: object) -> tuple[str | None, object, str]:
    """Return the key of today for a prompt source, its value, and what to tell; no key where there is no prompt."""
    name = _class_name(source)
    if source is None or name == "NoPrompt":
        return None, None, "model.prompt_source: left out; no key means no prompt"
    if name in GENERATORS and isinstance(source, Mapping):
        path = f"medsam_tune.prompt_encoders.{name}"
        return "prompt_encoder", {**source, "class_path": path}, f"model.prompt_source: now model.prompt_encoder, {path}"
    if name in SAMPLERS:
        return "prompts", _with_samplers(source), "model.prompt_source: now model.prompts"
    raise RecipeError(
        f"model.prompt_source: {_path(source)} is no class of medsam_tune. Name it as model.prompts where it draws prompts "
        "(PromptSampler), as model.prompt_encoder where it makes embeddings (PromptEncoder)."
    )


def _with_samplers(source: object) -> object:
    """Rename ``sources`` of a prompt that holds others, at every depth."""
    if isinstance(source, list):
        return [_with_samplers(item) for item in source]
    if not isinstance(source, Mapping):
        return source
    inside = _init_args(source)
    if "sources" not in inside:
        return dict(source)
    named = {"samplers" if name == "sources" else name: _with_samplers(value) for name, value in inside.items()}
    return {**source, "init_args": named}


def _without_seeds(value: Any) -> tuple[Any, int]:  # noqa: ANN401 - anything that YAML holds
    """Return a value without the ``seed`` of prompts and clicks, and how many there were."""
    if isinstance(value, list):
        kept = [_without_seeds(item) for item in value]
        return [item for item, _ in kept], sum(count for _, count in kept)
    if not isinstance(value, Mapping):
        return value, 0
    drop = _class_name(value) in _SEEDED and "seed" in _init_args(value)
    if drop:
        value = {**value, "init_args": {name: item for name, item in _init_args(value).items() if name != "seed"}}
    pairs = {name: _without_seeds(item) for name, item in value.items()}
    return {name: item for name, (item, _) in pairs.items()}, drop + sum(count for _, count in pairs.values())


def _init_args(part: object) -> Mapping[str, Any]:
    inside = part.get("init_args") if isinstance(part, Mapping) else None
    return inside if isinstance(inside, Mapping) else {}


def _path(part: object) -> str:
    return str(part.get("class_path") if isinstance(part, Mapping) else part)


def _class_name(part: object) -> str:
    """Return the name of a class of ours, or an empty text for anybody else's."""
    path = _path(part)
    return path.rpartition(".")[2] if path.startswith("medsam_tune.") or "." not in path else ""
