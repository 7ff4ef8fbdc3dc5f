"""Which tuners of the peft library fit a SAM backbone, and why the others do not.

Source: peft 0.21.2, tried one by one on SAM's modules.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from peft import PeftConfig
from torch import nn

from medsam_tune.errors import RecipeError

KEY = "model.tuner.config"

NOT_FOR_IMAGES = {
    **dict.fromkeys(
        ("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
        "it tunes the prompt of a language model",
    ),
    "POLY": "it needs a task number with every input",
    "SHADOW": "it needs a second model beside a transformers model",
    "SUPERTUNING": "it is written for transformers models",
    "TRAINABLE_TOKENS": "it tunes the rows of a token embedding",
    "XLORA": "it mixes adapters of a transformers model that exist already",
}
"""peft types without a meaning here, and the reason."""

TAKES_THREE_AXES = {
    "OFT": "its rotation reshapes (B, L, C)",
    "GRALORA": "its blocks are cut from (B, L, C)",
}
"""Tuners of linear layers that fail on the (B, H, W, C) tensors of SAM's image encoder."""

UNSUPPORTED_INITS = {
    "eva": "it needs activations of the training data before the start",
    "corda": "it needs activations of the training data before the start",
    "lora_ga": "it needs gradients of the training data before the start",
    "loftq": "it is meant for a quantised base",
    "pissa_niter": "its random decomposition cannot be repeated when the adapter is loaded",
    "mica": "its frozen factor is defined up to a sign, which another machine may choose differently",
}
"""Values of ``init_lora_weights`` that are refused, and the reason."""

_OWNED_BY_PARTS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")


def check_config(config: PeftConfig) -> None:
    """Check that the method and its settings can work on a SAM backbone.

    Raises:
        RecipeError: If they cannot; the message says why and what to do instead.
    """
    kind = method_name(config)
    if kind in NOT_FOR_IMAGES:
        raise RecipeError(
            f"{KEY}: {type(config).__name__} does not fit a SAM: {NOT_FOR_IMAGES[kind]}. "
            "Take a tuner of layers such as peft.LoraConfig."
        )
    for name in _OWNED_BY_PARTS:
        if getattr(config, name, None):
            remedy = "model.backbone.trainable" if name == "modules_to_save" else "model.tuner.parts and blocks"
            raise RecipeError(f"{KEY}.{name}: leave it out; {remedy} says which layers are meant.")
    if getattr(config, "inference_mode", False):
        raise RecipeError(f"{KEY}.inference_mode: true freezes the adapter. Leave it out.")
    _check_initial_weights(config)


def check_layers(config: PeftConfig, layers: Mapping[str, nn.Module], *, on_grids: Collection[str]) -> None:
    """Check that the method can be put on these layers.

    Args:
        config: The peft configuration.
        layers: The layers by dotted name.
        on_grids: Those among them that read tokens as (B, H, W, C).

    Raises:
        RecipeError: If a layer's kind or the shape of its input rules the method out.
    """
    name = type(config).__name__
    transposed = [layer for layer, module in layers.items() if isinstance(module, nn.ConvTranspose2d)]
    if transposed:
        raise RecipeError(
            f"model.tuner.parts: {transposed[0]} is a ConvTranspose2d, which no tuner of peft supports. "
            "Leave mask_decoder.upscaling out, or train it whole: model.backbone.trainable: [mask_decoder.output_upscaling]."
        )
    reason = TAKES_THREE_AXES.get(method_name(config))
    for layer, module in layers.items() if reason else ():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            raise RecipeError(
                f"{KEY}: {name} cannot be put on {layer}: peft cuts patches of {module.kernel_size} pixels without padding and "
                "changes the output before training. Choose other parts, or another method."
            )
        if layer in on_grids and isinstance(module, nn.Linear):
            raise RecipeError(
                f"{KEY}: {name} cannot be put on {layer}: {reason}, but that layer reads (B, H, W, C). "
                "Choose parts of the mask decoder, or another method."
            )


def identity_note(config: PeftConfig) -> str:
    """Return why the method moves the output already before training, or an empty text where it does not."""
    kind = method_name(config)
    if kind == "FOURIERFT" and not getattr(config, "init_weights", False):
        return "FourierFT starts from a random spectrum; init_weights: true starts as the untouched network"
    if kind == "C3A" and getattr(config, "init_weights", None) is not True:
        return "C3A starts from random kernels; init_weights: true starts as the untouched network"
    if kind == "VBLORA":
        return "VB-LoRA draws both factors from a random vector bank"
    if kind == "UNILORA":
        return "Uni-LoRA projects a random vector into both factors"
    if getattr(config, "init_lora_weights", True) is False or getattr(config, "init_weights", True) is False:
        return f"{type(config).__name__} is told to start from random weights"
    return ""


def method_name(config: PeftConfig) -> str:
    """Return peft's name of the method, such as ``LORA``."""
    kind = config.peft_type
    return str(getattr(kind, "value", kind))


def _check_initial_weights(config: PeftConfig) -> None:
    initial = getattr(config, "init_lora_weights", True)
    if not isinstance(initial, str):
        return
    for name, reason in UNSUPPORTED_INITS.items():
        if initial.startswith(name):
            raise RecipeError(
                f"{KEY}.init_lora_weights: {initial} is not supported: {reason}. Use true, gaussian, olora or pissa."
            )
