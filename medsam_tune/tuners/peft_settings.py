"""Configurations of the peft library from plain values that a stranger may have written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import peft
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from medsam_tune.errors import RecipeError
from medsam_tune.tuners.peft_methods import KEY

# Fields that hold a word. Any other text is refused, because peft imports, opens or downloads what some fields name.
_WORDS = (
    "act_fn", "activation", "bias", "decoder", "init", "init_lora_weights", "init_weights", "mlp_input", "peft_type",
    "peft_version", "placement", "task_type", "variant", "wavelet_family",
)  # fmt: skip
# Names of layers, which peft compares with those of the network.
_LAYERS = ("exclude_modules", "feedforward_modules", "layers_pattern", "modules_to_save", "target_modules", "target_parameters")


def build_config(class_name: str, settings: Mapping[str, object]) -> PeftConfig:
    """Build a peft configuration from plain values, as an exported recipe stores it.

    Numbers, words of known fields and names of layers are taken. Whatever else a field may hold (a module that peft would
    import, a file that it would open, a nested configuration) must be peft's default.

    Args:
        class_name: Such as ``LoraConfig``.
        settings: Its fields; those that are None keep peft's default.

    Raises:
        RecipeError: If there is no such configuration, or it refuses a field.
    """
    kinds = {kind.__name__: kind for kind in PEFT_TYPE_TO_CONFIG_MAPPING.values() if kind.__module__.startswith("peft.")}
    if class_name not in kinds:
        raise RecipeError(f"{KEY}: peft {peft.__version__} has no configuration {class_name!r}. Such as: peft.LoraConfig.")
    return _build(kinds[class_name], settings)


def read_config(kind: type[PeftConfig], stored: Mapping[str, object]) -> PeftConfig:
    """Build the configuration that an ``adapter_config.json`` holds, of a method that is known already.

    Raises:
        RecipeError: As for ``build_config``.
    """
    # A name for people; what it names is compared elsewhere, by its checksum.
    return _build(kind, {name: value for name, value in stored.items() if name != "base_model_name_or_path"})


def _build(kind: type[PeftConfig], settings: Mapping[str, object]) -> PeftConfig:
    try:
        return kind(**plain_settings(kind, settings))
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{KEY}: {kind.__name__} of peft {peft.__version__} does not take these settings ({error})."
        ) from error


def plain_settings(kind: type[PeftConfig], settings: Mapping[str, object]) -> dict[str, object]:
    """Return the settings that differ from peft's defaults, after checking that each is plain data.

    Raises:
        RecipeError: If one is none.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    given = {name: value for name, value in settings.items() if value is not None}
    # The parser writes these two out although they are peft's own defaults: a nested class, and a setting for quantised bases.
    given.pop("runtime_config", None)
    if given.get("init_lora_weights") != "loftq":
        given.pop("loftq_config", None)
    for name, value in given.items():
        if not _is_plain(name, value) and value != defaults.get(name):
            raise RecipeError(
                f"{KEY}.{name}: expected numbers, or words where peft's field is one, got {value!r}. Leave it out: what it "
                "names would be imported, opened or downloaded."
            )
    return given


def _is_plain(name: str, value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(not isinstance(item, list | tuple | Mapping) and _is_plain(name, item) for item in value)
    if isinstance(value, Mapping):
        return name.endswith("_pattern") and all(isinstance(item, bool | int | float) for item in value.values())
    return isinstance(value, bool | int | float) or (isinstance(value, str) and name in _WORDS + _LAYERS)
