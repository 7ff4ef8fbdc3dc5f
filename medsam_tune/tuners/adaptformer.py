"""AdaptFormer: a bottleneck beside the MLP of every encoder block, with a small scale.

Paper: Chen et al. 2022, AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition, arXiv 2205.13535.
Authors' code: ShoufaChen/AdaptFormer @ 0f8c363.

Differs from the authors' code:
- Nothing in the adapter. The class head they train has no counterpart; SAM's mask decoder stays frozen unless the
  backbone's ``trainable`` names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.tuners.base import InsertingTuner
from medsam_tune.tuners.msa.bottleneck import Bottleneck, check_bottleneck
from medsam_tune.tuners.parts import BlockRange, encoder_blocks
from medsam_tune.tuners.places import put_beside_mlps


class AdaptMlp(Bottleneck):
    """Add scale * Up(Dropout(ReLU(Down(h)))) beside an MLP, where h is the stream before the MLP's norm.

    Args:
        channels: C.
        width: Channels in between.
        scale: Factor of the output.
        dropout: Probability behind the activation.
    """

    def __init__(self, channels: int, width: int, *, scale: float, dropout: float) -> None:
        super().__init__(channels, width)
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down_proj.bias)
        self.scale = scale
        self.dropout = dropout

    def forward(self, residual: Tensor, normed: Tensor) -> Tensor:
        """Return what is added to the MLP's output, of the same shape (..., C)."""
        hidden = F.dropout(self.down(residual), self.dropout, self.training)
        return self.scale * cast(Tensor, self.up_proj(hidden))


class AdaptFormer(InsertingTuner):
    """Adapt the encoder by a scaled bottleneck beside each MLP.

    Args:
        rank: Width of the bottleneck; 64 in the paper.
        scale: Factor of its output; 0.1 in the paper.
        dropout: Probability within; 0.1 in the authors' code.
        blocks: First and last encoder block, both included; null is all.

    Raises:
        RecipeError: If ``rank`` is less than 1.
    """

    def __init__(self, rank: int = 64, *, scale: float = 0.1, dropout: float = 0.1, blocks: BlockRange | None = None) -> None:
        super().__init__()
        check_bottleneck(ratio=1.0, rank=rank)
        self.rank = rank
        self.scale = scale
        self.dropout = dropout
        self.blocks = blocks

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Put a bottleneck beside each MLP and return the names of what learns.

        Raises:
            RecipeError: If the block range does not fit.
        """
        return put_beside_mlps(
            backbone,
            encoder_blocks(backbone, self.blocks).values(),
            lambda channels: AdaptMlp(channels, self.rank, scale=self.scale, dropout=self.dropout),
        )
