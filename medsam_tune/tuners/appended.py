"""Modules that live below a frozen layer and act on its output, so the layer itself and all its parameter names stay."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from medsam_tune.backbone.attention import PER_TOKEN, works_per_token
from medsam_tune.backbone.base import Backbone


def append_to_layer(backbone: Backbone, layer: str, name: str, module: nn.Module) -> str:
    """Put ``module`` below the layer; it is called with the layer's input and output and returns the new output.

    Args:
        backbone: Where the layer lives.
        layer: Dotted name of a layer with one input.
        name: Name below the layer; ``<layer>.<name>`` must be free.
        module: Called as ``module(inputs, output)``. Where it maps each token by itself it says ``works_per_token = True``, so
            that windows of attention need not be padded before the layer.

    Returns:
        The dotted name of the module.
    """
    owner = backbone.get_submodule(layer)
    per_token = works_per_token(owner) and bool(getattr(module, PER_TOKEN, False))
    owner.add_module(name, module)
    owner.register_forward_hook(partial(_apply, name))
    setattr(owner, PER_TOKEN, per_token)
    return f"{layer}.{name}"


def _apply(name: str, owner: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    # Looked up at every call, so a deep copy of the backbone uses its own module.
    result: Tensor = owner.get_submodule(name)(inputs[0], output)
    return result


def remove_from_layer(backbone: Backbone, layer: str, name: str) -> nn.Module:
    """Take the module of this name away from below the layer again, which then works as it did before, and return it."""
    owner = backbone.get_submodule(layer)
    module = owner.get_submodule(name)
    delattr(owner, name)
    for key, hook in list(owner._forward_hooks.items()):
        if isinstance(hook, partial) and hook.func is _apply and hook.args == (name,):
            del owner._forward_hooks[key]
    if not owner._forward_hooks and hasattr(owner, PER_TOKEN):
        delattr(owner, PER_TOKEN)
    return module
