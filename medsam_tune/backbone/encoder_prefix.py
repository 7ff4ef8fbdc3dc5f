"""The blocks of an image encoder that a tuning leaves alone: what they make of an image can be computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import normalise
from medsam_tune.types import EncoderInput, ImageEmbeddings

KEY = "data.cache_embeddings"
_HOME = "image_encoder"


def first_tuned(backbone: Backbone) -> str:
    """Return the dotted name of the first link of the encoder that learns, holds something inserted, or has a hook.

    Everything before it gives the same for the same image, whatever is trained.

    Raises:
        RecipeError: If that is the patch embedding or the first block, if it lies in no block, if slices see each other, or if
            nothing in the encoder is tuned.
    """
    chain = list(backbone.encoder_chain())
    if not chain:
        raise RecipeError(f"{KEY}: prefix needs an encoder of blocks; {type(backbone).__name__} names none. Set it to false.")
    if backbone.mixes_slices:
        raise RecipeError(
            f"{KEY}: prefix keeps single images, but {backbone.attached_tuner} lets the slices of a chunk see each other. "
            "Set it to false."
        )
    changed = list(_changed(backbone, chain))
    if not changed:
        raise RecipeError(f"{KEY}: prefix is for an encoder that learns in part; all of this one is fixed. Set it to true.")
    places = [next((i for i, link in enumerate(chain) if _is_below(name, link)), 0) for name in changed]
    place, name = min(zip(places, changed, strict=True))
    if place < 2:
        last = len(backbone.anatomy().encoder.blocks) - 1
        raise RecipeError(
            f"{KEY}: prefix needs fixed blocks at the beginning of the encoder, but {name} is tuned. Tune late blocks alone, "
            f"such as model.tuner.init_args.blocks: [{last - last // 4}, {last}], or set it to false."
        )
    return chain[place]


def encode_prefix(backbone: Backbone, inputs: EncoderInput, before: str) -> Tensor:
    """Return what the link ``before`` of the encoder is given for B images: (B, H, W, C) or (B, C, H, W), as it takes it.

    Args:
        backbone: With a chain.
        inputs: Images in 0..255, not fused.
        before: From ``first_tuned``.
    """
    x = normalise(inputs.images, inputs.frames, backbone.input_rule).to(_dtype(backbone))
    for name, link in backbone.encoder_chain().items():
        if name == before:
            break
        x = link(x)
    return x


def encode_rest(backbone: Backbone, inputs: EncoderInput, prefix: Tensor, before: str) -> ImageEmbeddings:
    """Return the embeddings of B images from what ``encode_prefix`` returned for them; gradients end there."""
    chain = list(backbone.encoder_chain().items())
    names = [name for name, _ in chain]
    x = prefix.to(_dtype(backbone))
    backbone.current_input = inputs
    try:
        for _, link in chain[names.index(before) :]:
            x = link(x)
    finally:
        backbone.current_input = None
    return ImageEmbeddings(x)


def module_kinds(encoder: nn.Module) -> Mapping[str, type[nn.Module]]:
    """Return the class of each module of an encoder, by dotted name, to see later what was inserted."""
    return {name: type(module) for name, module in encoder.named_modules()}


def _changed(backbone: Backbone, links: Sequence[str]) -> Iterator[str]:
    """Yield the dotted names of modules that are not as built or hooked, and of parameters that learn.

    A module inserted beside the links is left out: none that is as built runs it.
    """
    encoder, kinds = backbone.parts()[_HOME], backbone.encoder_kinds

    def counts(name: str) -> bool:
        return name in kinds or any(_is_below(f"{_HOME}.{name}", link) for link in links)

    for name, module in encoder.named_modules():
        hooked = module._forward_hooks or module._forward_pre_hooks
        if (hooked or kinds.get(name) is not type(module)) and counts(name):
            yield f"{_HOME}.{name}" if name else _HOME
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and counts(name.rpartition(".")[0]):
            yield f"{_HOME}.{name}"


def _is_below(name: str, link: str) -> bool:
    return name == link or name.startswith(f"{link}.")


def _dtype(backbone: Backbone) -> torch.dtype:
    return next(backbone.parts()[_HOME].parameters()).dtype
