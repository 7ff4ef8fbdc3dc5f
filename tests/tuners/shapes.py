"""Backbones of a released shape without memory for it, and how much a tuner trains on one."""

from __future__ import annotations

import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.architectures import ARCHITECTURES, build_parts
from medsam_tune.tuners.base import Tuner


def true_shape(name: str) -> SamBackbone:
    """A frozen backbone whose parts have a released shape, on the meta device."""
    backbone = SamBackbone("random_tiny")
    with torch.device("meta"):
        for part, module in build_parts(ARCHITECTURES[name], 1024).items():
            setattr(backbone, part, module.requires_grad_(False))
    backbone.embed_dim = ARCHITECTURES[name].embed_dim
    return backbone


def trained_count(name: str, tuner: Tuner) -> int:
    """How many parameters the tuner trains on the backbone of that shape."""
    backbone = true_shape(name)
    with torch.device("meta"):
        tuner.attach(backbone)
    return sum(p.numel() for p in backbone.parameters() if p.requires_grad)
