"""The anatomy of the SAM family, whose members differ in the image encoder alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from medsam_tune.backbone.anatomy import Anatomy
from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.mask_decoder import decoder_anatomy
from medsam_tune.backbone.tiny_vit import TinyViT, tiny_vit_anatomy, tiny_vit_chain
from medsam_tune.backbone.vit import vit_anatomy, vit_chain


def sam_anatomy(sam: nn.Module) -> Anatomy:
    """Describe a network with SAM's three parts, segment_anything's own ``Sam`` among them."""
    encoder = sam.get_submodule("image_encoder")
    described = tiny_vit_anatomy(encoder) if isinstance(encoder, TinyViT) else vit_anatomy(encoder)
    # The second kind acts over the channels of maps, in neck and decoder.
    kinds = (nn.LayerNorm, cast(type[nn.Module], LayerNorm2d))
    return Anatomy(described, decoder_anatomy(sam.get_submodule("mask_decoder")), kinds)


def encoder_chain(encoder: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the links of an image encoder of the family, as ``Backbone.encoder_chain`` says."""
    return tiny_vit_chain(encoder) if isinstance(encoder, TinyViT) else vit_chain(encoder)


def anatomy_of(network: nn.Module) -> Anatomy:
    """Return what a backbone says of itself; any other network is taken for a SAM, as peft's own functions hand one over."""
    return network.anatomy() if isinstance(network, Backbone) else sam_anatomy(network)
