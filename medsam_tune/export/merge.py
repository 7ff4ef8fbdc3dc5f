"""Merge what was trained into the weights of a plain SAM, under its own names."""

from __future__ import annotations

import torch
from torch import Tensor

from medsam_tune.backbone.architectures import ARCHITECTURES, build_parts
from medsam_tune.backbone.weights import architecture_of
from medsam_tune.errors import CheckpointError
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter

STOCK = ("vit_b", "vit_l", "vit_h", "mobile_sam", "lite_medsam")
"""Architectures that a tool of others builds: segment_anything, MobileSAM, the authors' LiteMedSAM."""
STOCK_MASK_TOKENS = 4


def check_stock(segmenter: Segmenter) -> str:
    """Check that the network fits the shapes of released weights, and return the name of its architecture.

    Raises:
        CheckpointError: If it has another encoder, input side or number of mask tokens, or parts outside SAM.
    """
    backbone = check_plain(segmenter).backbone
    architecture = architecture_of(backbone.state_dict())
    if architecture not in STOCK:
        raise CheckpointError(
            f"model.backbone: stock tools build {', '.join(STOCK)}, this encoder is {architecture or 'another one'}"
        )
    side = ARCHITECTURES[architecture].side
    if backbone.input_rule.side != side:
        raise CheckpointError(
            f"model.backbone.side: stock tools build {architecture} for a side of {side} px, this network has "
            f"{backbone.input_rule.side}, and its position tables do not fit. Train at {side}"
        )
    tokens = len(backbone.state_dict()["mask_decoder.mask_tokens.weight"])
    if tokens != STOCK_MASK_TOKENS:
        raise CheckpointError(f"model.backbone: stock tools build {STOCK_MASK_TOKENS} mask tokens, this decoder has {tokens}")
    return architecture


def check_plain(segmenter: Segmenter) -> SamSegmenter:
    """Refuse what a SAM checkpoint has no place for.

    Raises:
        CheckpointError: Naming the part.
    """
    reason = segmenter.not_mergeable()
    if reason is not None or not isinstance(segmenter, SamSegmenter):
        raise CheckpointError(str(reason))
    return segmenter


def merged_state(segmenter: Segmenter) -> dict[str, Tensor]:
    """Merge the tuner into the backbone, in place, and return the weights under SAM's own names.

    Raises:
        CheckpointError: If the network has parts outside SAM, or its tuner cannot be merged.
    """
    plain = check_plain(segmenter)
    plain.tuner.merge()
    state = {name: tensor.detach().cpu() for name, tensor in plain.backbone.state_dict().items()}
    foreign = sorted(state.keys() ^ _stock_names(state))
    if foreign:
        raise CheckpointError(
            f"model.tuner: {type(plain.tuner).__name__} cannot be merged: it puts modules between SAM's own, such as "
            f"{foreign[0]}"
        )
    return state


def _stock_names(state: dict[str, Tensor]) -> set[str]:
    architecture = ARCHITECTURES[architecture_of(state) or "vit_b"]
    with torch.device("meta"):
        parts = build_parts(architecture, architecture.side)
    return {f"{part}.{name}" for part, module in parts.items() for name in module.state_dict()}
