"""Bias tuning: only additive terms learn.

Paper: Ben-Zaken et al. 2022, BitFit, arXiv 2106.10199; Paranjape et al. 2023, AdaptiveSAM, arXiv 2308.03726, on SAM.
Authors' code: JayParanjape/biastuning.

Differs from the authors' code:
- Biases alone; AdaptiveSAM also trains norms, position embedding, mask decoder and a text layer.
- Freezing goes by exact names, not by pieces of them. Left out are the biases of key projections, which softmax ignores, and
  what the single mask never reaches.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from medsam_tune.backbone.anatomy import Anatomy
from medsam_tune.tuners.parts import BlockRange
from medsam_tune.tuners.scoped import Scope, ScopedTuner


class BiasTuning(ScopedTuner):
    """Train the biases of linear layers, convolutions and norms.

    Args:
        scope: ``image_encoder``, ``mask_decoder`` or both.
        blocks: First and last encoder block, both included; null is the whole encoder, patch embedding and neck included.
        norms: Train the scales of layer norms too.

    Raises:
        RecipeError: If ``scope`` is empty, or ``blocks`` is given without the encoder.
    """

    def __init__(
        self, scope: Sequence[Scope] = ("image_encoder",), *, blocks: BlockRange | None = None, norms: bool = False
    ) -> None:
        super().__init__(scope, blocks=blocks)
        self.norms = norms

    def chosen(self, name: str, owner: nn.Module, anatomy: Anatomy) -> bool:
        """Choose biases, but for those that change no output, and layer norms where they are wanted."""
        if self.norms and isinstance(owner, anatomy.norm_kinds):
            return True
        return name.endswith(".bias") and name not in anatomy.decoder.without_effect
