"""Tiny backbones of both encoder families, for tests of what is inserted into them."""

from __future__ import annotations

import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.architectures import fill_zero_tables
from medsam_tune.backbone.encoder_prefix import module_kinds
from medsam_tune.backbone.freezing import freeze
from medsam_tune.backbone.tiny_vit import TinyViT


def make_vit() -> SamBackbone:
    """SAM's ViT: two blocks, the first in windows; side 64, grid 4, 32 channels."""
    return SamBackbone("random_tiny")


def make_tiny_vit() -> SamBackbone:
    """TinyViT with six blocks, two of them convolutional; side 64, grid 4, before the same decoder."""
    backbone = SamBackbone("random_tiny")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        backbone.image_encoder = TinyViT(
            64, 4, embed_dims=(8, 8, 16, 16), depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 4), windows=(2, 2, 3, 2), out_channels=32
        )
        fill_zero_tables(backbone.image_encoder, torch.default_generator)
    backbone.encoder_kinds = module_kinds(backbone.image_encoder)
    freeze(backbone)
    backbone.train()
    return backbone


BACKBONES = {"vit": make_vit, "tiny_vit": make_tiny_vit}
