"""3DSAM-adapter's adapter: a bottleneck with a depthwise 3 x 3 x 3 convolution in front of every encoder block.

Paper: Gong et al. 2023, 3DSAM-adapter: Holistic Adaptation of SAM from 2D to 3D for Promptable Tumor Segmentation, arXiv
2306.13465. Authors' code: med-air/3DSAM-adapter @ f4fb8f3, without a licence. This file was written from the paper's
description and contains none of its code.

Differs from the authors' code:
- The adapter alone, in SAM's own 2-D encoder on chunks of slices. Theirs makes a 3-D network of it: patches of 128 voxels a
  side, enlarged four times, embedded over 16 slices, attended in windows of 8 x 8 x 8 tokens, with a decoder of their own.
- With ``init: identity`` the up-projection starts at zero and no ReLU follows it, for behind a ReLU zeros never learn.
  ``init: repo`` has theirs: PyTorch's own start, and the last ReLU, so that every update adds and none subtracts.
- Clicks are this package's ``PointPrompt``: those of the background lie off the object and say so by their label. Theirs are
  drawn anywhere, on the object too, and have no label, so the network cannot tell them from the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.anatomy import open_block
from medsam_tune.backbone.base import Backbone
from medsam_tune.tuners.base import InsertingTuner, names_below
from medsam_tune.tuners.depth import SliceModule, depthwise_convolution
from medsam_tune.tuners.msa.bottleneck import Init, bottleneck_width, check_bottleneck
from medsam_tune.tuners.parts import BlockRange, encoder_blocks


class DepthwiseBottleneck(SliceModule):
    """Map x to x + Up(ReLU(Conv(ReLU(Down x)))), the convolution over 3 slices, rows and columns, each channel by itself.

    Args:
        channels: C.
        width: Channels in between.
        backbone: Where the adapter will stand.
        init: ``identity``, or ``repo`` with a ReLU behind Up.
    """

    def __init__(self, channels: int, width: int, backbone: Backbone, *, init: Init = "identity") -> None:
        super().__init__(backbone)
        self.down_proj = nn.Linear(channels, width)
        self.conv = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.up_proj = nn.Linear(width, channels)
        self.adds_only = init == "repo"
        if init == "identity":
            nn.init.zeros_(self.up_proj.weight)
            nn.init.zeros_(self.up_proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B D, H, W, C) to the same shape."""
        hidden = depthwise_convolution(F.relu(self.down_proj(tokens)), self.conv, self.n_slices)
        update = self.up_proj(F.relu(hidden))
        adapted: Tensor = tokens + (F.relu(update) if self.adds_only else update)
        return adapted


class DepthwiseAdapter(InsertingTuner):
    """Let neighbouring slices and tokens see each other by 3DSAM-adapter's adapter in front of each encoder block.

    Args:
        ratio: Width of the bottleneck as a share of the channels; 0.5 in the authors' code.
        rank: Width in channels; wins over ``ratio``.
        init: ``identity``: nothing changes before training; ``repo``: PyTorch's own and a last ReLU, which moves the output.
        blocks: First and last encoder block, both included; null is every block with attention.

    Raises:
        RecipeError: If a width is less than 1.
    """

    mixes_slices = True

    def __init__(
        self, ratio: float = 0.5, *, rank: int | None = None, init: Init = "identity", blocks: BlockRange | None = None
    ) -> None:
        super().__init__()
        check_bottleneck(ratio=ratio, rank=rank)
        self.ratio, self.rank, self.blocks = ratio, rank, blocks
        self.init: Init = init
        self.declares_identity = init == "identity"
        self.identity_note = "" if self.declares_identity else "init: repo starts the up-projections at random"

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Put an adapter before each block and return the names of their parameters.

        Raises:
            RecipeError: If the block range does not fit, or a block has no places.
        """
        names = []
        for block in encoder_blocks(backbone, self.blocks).values():
            width = bottleneck_width(block.width, ratio=self.ratio, rank=self.rank)
            adapter = DepthwiseBottleneck(block.width, width, backbone, init=self.init)
            open_block(backbone, block, "input_adapter").input_adapter = adapter
            names.append(f"{block.name}.input_adapter")
        return names_below(backbone, names)
