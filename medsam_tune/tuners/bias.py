"""Bias tuning: only additive terms learn.

Paper: Ben-Zaken et al. 2022, BitFit, arXiv 2106.10199; Paranjape et al. 2023, AdaptiveSAM, arXiv 2308.03726, on SAM.
Authors' code: JayParanjape/biastuning.

Differs from the authors' code:
- Biases alone; AdaptiveSAM also trains norms, position embedding, mask decoder and a text layer.
- Freezing goes by exact names, not by pieces of them. Left out are the biases of key projections, which softmax ignores, and
  what the single mask never reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.base import InsertingTuner, decoder_names, names_below
from medsam_tune.tuners.parts import BlockRange, encoder_blocks

Scope = Literal["image_encoder", "mask_decoder"]


class BiasTuning(InsertingTuner):
    """Train the biases of linear layers, convolutions and norms.

    Args:
        scope: ``image_encoder``, ``mask_decoder`` or both.
        blocks: First and last encoder block, both included; null is the whole encoder, patch embedding and neck included.

    Raises:
        RecipeError: If ``scope`` is empty, or ``blocks`` is given without the encoder.
    """

    def __init__(self, scope: Sequence[Scope] = ("image_encoder",), *, blocks: BlockRange | None = None) -> None:
        super().__init__()
        check_scope(scope, blocks)
        self.scope = tuple(scope)
        self.blocks = blocks

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Return the names of the biases.

        Raises:
            RecipeError: If the block range does not fit.
        """
        names = scope_names(backbone, self.scope, self.blocks)
        return [name for name in names if name.endswith(".bias") and not name.endswith(".k_proj.bias")]


def check_scope(scope: Sequence[Scope], blocks: BlockRange | None) -> None:
    """Check that a scope names a part and that a block range has blocks to mean.

    Raises:
        RecipeError: If ``scope`` is empty, or ``blocks`` is given without the encoder.
    """
    if not scope:
        raise RecipeError("model.tuner.scope: is empty. Name image_encoder, mask_decoder or both.")
    if blocks is not None and "image_encoder" not in scope:
        raise RecipeError("model.tuner.blocks: counts encoder blocks, but scope has no image_encoder. Leave blocks out.")


def scope_names(backbone: Backbone, scope: Sequence[Scope], blocks: BlockRange | None) -> list[str]:
    """Return the names of all parameters in scope that can learn from the single mask.

    Raises:
        RecipeError: If the block range does not fit the encoder.
    """
    names: list[str] = []
    if "image_encoder" in scope:
        homes = ["image_encoder"] if blocks is None else list(encoder_blocks(backbone, blocks).values())
        names += names_below(backbone, homes)
    if "mask_decoder" in scope:
        names += decoder_names(backbone)
    return names
