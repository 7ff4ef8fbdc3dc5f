"""Medical SAM Adapter's SD-Trans: a second branch of attention over the slices of a volume, with the weights of the first.

Paper: Wu et al., Medical SAM Adapter: Adapting Segment Anything Model for Medical Image Segmentation, arXiv 2304.12620
(Medical Image Analysis 102, 2025), "Space-Depth Transpose". Authors' repository: SuperMedIntel/Medical-SAM-Adapter @ 0add836,
GPL-3.0. This file was written from the paper's description and contains none of its code.

In each encoder block, with u = LN1(x): the space branch is the block's attention within slices and its adapter (with skip); the
depth branch is attention over the D slices at each place, by the same q, k, v and output projections, and an adapter of its own
without skip. Both are added to x. The adapter beside the MLP and those of the decoder are ``BottleneckAdapter``'s.

Differs from the authors' code:
- Slices are mixed on the whole grid. Theirs does so behind the windows' partition, where in 8 of 12 blocks of ViT-B the
  neighbours are windows of one slice.
- Over slices there are no 2-D windows and no 2-D relative positions; theirs folds slices to a grid to reuse both.
- D is told with each batch and may be any number, 1 among them; theirs never ends for 1.
- q, k and v are computed once for both branches in SAM's ViT; in TinyViT each branch computes its own.
- ``depth_positions`` gives slices a learned place; neither paper nor code has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from medsam_tune.backbone.anatomy import Block, open_block
from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.encoder_places import DepthPlace
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.base import names_below
from medsam_tune.tuners.depth import relative_bias
from medsam_tune.tuners.msa.bottleneck import Activation, Bottleneck, Init, bottleneck_width
from medsam_tune.tuners.msa.bottleneck_adapter import BottleneckAdapter
from medsam_tune.tuners.parts import BlockRange, encoder_blocks


class DepthAdapter(DepthPlace):
    """Adapt what tokens attended to over slices: Up(act(Down(v))), without skip.

    Args:
        channels: C.
        width: Channels in between.
        backbone: Where the adapter will stand.
        activation: ``relu`` or ``gelu``.
        init: ``identity`` or ``repo``.
        heads: Of the block's attention.
        positions: P, the distances 0 to P - 1 of two slices that get a learned number each way; 0 gives none.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        backbone: Backbone,
        *,
        activation: Activation,
        init: Init,
        heads: int,
        positions: int = 0,
    ) -> None:
        super().__init__()
        self._backbone = (backbone,)
        self.bottleneck = Bottleneck(channels, width, activation=activation, init=init)
        self.places = nn.Parameter(torch.zeros(heads, 2 * positions - 1)) if positions else None

    @property
    def n_slices(self) -> int:
        """Return D."""
        return self._backbone[0].slices_at_once

    def bias(self, n_slices: int) -> Tensor | None:
        """Return the learned places of D slices, (heads, D, D), or None."""
        return None if self.places is None else relative_bias(self.places, n_slices)

    def forward(self, across: Tensor) -> Tensor:
        """Map (B D, H, W, C) to the same shape."""
        return self.bottleneck.update(across)


class SpaceDepthAdapter(BottleneckAdapter):
    """Adapt SAM to volumes by attention within slices and over them (Medical SAM Adapter's SD-Trans).

    Args:
        ratio: Width of every bottleneck as a share of the channels; 0.25 in the authors' code.
        rank: Width in channels; wins over ``ratio``.
        activation: ``relu`` (paper) or ``gelu`` (authors' code).
        mlp_scale: Factor of the adapters beside the MLPs; 0.5 in the authors' code.
        mlp_input: As in ``BottleneckAdapter``.
        init: ``identity``: nothing changes before training; ``repo``: PyTorch's own, which moves the output.
        blocks: First and last encoder block, both included; null is every block with attention.
        decoder: ``none``, ``adapters``, or ``hyper`` for adapters with hyper-prompting, which needs box or point prompts.
        hyper_layers: How many prompt-written matrices follow each other.
        train_mask_decoder: Train the mask decoder's own weights too.
        depth_positions: Distances of two slices that get a learned number; 0, as in the paper, leaves their order unknown.

    Raises:
        RecipeError: If a width is less than 1 or ``depth_positions`` is negative.
    """

    mixes_slices = True

    def __init__(
        self,
        *,
        ratio: float = 0.25,
        rank: int | None = None,
        activation: Activation = "relu",
        mlp_scale: float = 0.5,
        mlp_input: Literal["normed", "residual"] = "normed",
        init: Init = "identity",
        blocks: Sequence[int] | None = None,
        decoder: Literal["none", "adapters", "hyper"] = "hyper",
        hyper_layers: int = 1,
        train_mask_decoder: bool = False,
        depth_positions: int = 0,
    ) -> None:
        super().__init__(
            ratio=ratio,
            rank=rank,
            activation=activation,
            mlp_scale=mlp_scale,
            mlp_input=mlp_input,
            init=init,
            blocks=cast("BlockRange | None", blocks),
            decoder=decoder,
            hyper_layers=hyper_layers,
            train_mask_decoder=train_mask_decoder,
        )
        if depth_positions < 0:
            raise RecipeError(f"model.tuner.depth_positions: expected 0 or more, got {depth_positions}. Set 0 for none.")
        self.ratio, self.rank, self.activation, self.depth_positions = ratio, rank, activation, depth_positions
        self.init: Init = init

    def insert(self, backbone: Backbone) -> list[str]:
        """Put adapters and depth branches into the blocks and return the names of what learns.

        Raises:
            RecipeError: If the block range does not fit the encoder.
        """
        names = super().insert(backbone)
        depth = [self._branch(backbone, block) for block in encoder_blocks(backbone, self.blocks).values()]
        return [*names, *names_below(backbone, depth)]

    def _branch(self, backbone: Backbone, block: Block) -> str:
        open_block(backbone, block, "depth_adapter").depth_adapter = DepthAdapter(
            block.width,
            bottleneck_width(block.width, ratio=self.ratio, rank=self.rank),
            backbone,
            activation=self.activation,
            init=self.init,
            heads=cast(Any, block.attention).num_heads,
            positions=self.depth_positions,
        )
        return f"{block.name}.depth_adapter"
