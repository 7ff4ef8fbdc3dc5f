"""MA-SAM's 3-D adapter: a bottleneck with a convolution over neighbouring slices, twice in every encoder block.

Paper: Chen et al. 2024, MA-SAM: Modality-agnostic SAM Adaptation for 3D Medical Image Segmentation, arXiv 2309.08842 (Medical
Image Analysis 98). Authors' code: cchen-cc/MA-SAM @ 0c3cd90 (Apache-2.0).

One adapter carries information by one slice each way. It acts on the whole grid, before and after the attention.

Differs from the authors' code:
- With ``init: identity`` the up-projections start at zero, so nothing changes before training; ``init: repo`` gives theirs,
  PyTorch's own, with which an untrained ViT-B block moves its output.
- D is told with each batch, and a chunk with fewer slices is filled with copies of its last one; theirs is fixed.
- Blocks that have none work as before; theirs fail.
- The width is a setting; theirs is 384 for every backbone.
- FacT, trained along there, is ``FactorTuning``; ``MaSamTuner`` is both. The decoder is the segmenter's.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.anatomy import open_block
from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.base import InsertingTuner, names_below
from medsam_tune.tuners.depth import SliceModule, depth_convolution
from medsam_tune.tuners.fact import FactorTuning
from medsam_tune.tuners.msa.bottleneck import Init
from medsam_tune.tuners.parts import BlockRange, encoder_blocks

_PLACES = ("input_adapter", "middle_adapter")


class DepthBottleneck(SliceModule):
    """Map x to x + Up(GELU(Conv(Down(LN x)))), the convolution over three neighbouring slices at each place.

    Args:
        channels: C.
        width: Channels in between.
        backbone: Where the adapter will stand.
        init: ``identity`` or ``repo``.
    """

    def __init__(self, channels: int, width: int, backbone: Backbone, *, init: Init = "identity") -> None:
        super().__init__(backbone)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.down_proj = nn.Linear(channels, width, bias=False)
        self.conv = nn.Conv3d(width, width, (3, 1, 1), padding="same")
        self.up_proj = nn.Linear(width, channels, bias=False)
        if init == "identity":
            nn.init.zeros_(self.up_proj.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B D, H, W, C) to the same shape."""
        hidden = depth_convolution(self.down_proj(self.norm(tokens)), self.conv, self.n_slices)
        adapted: Tensor = tokens + self.up_proj(F.gelu(hidden))
        return adapted


class VolumeAdapter(InsertingTuner):
    """Let neighbouring slices see each other by MA-SAM's adapters, before and after each attention.

    Args:
        width: Channels of the bottleneck; 384 in the authors' code, for every backbone.
        init: ``identity``: nothing changes before training; ``repo``: PyTorch's own, which moves the output.
        blocks: First and last encoder block, both included; null is every block with attention.

    Raises:
        RecipeError: If ``width`` is less than 1.
    """

    mixes_slices = True

    def __init__(self, width: int = 384, *, init: Init = "identity", blocks: BlockRange | None = None) -> None:
        super().__init__()
        if width < 1:
            raise RecipeError(f"model.tuner.width: {width} is no width of a bottleneck. Set at least 1.")
        self.width, self.blocks = width, blocks
        self.init: Init = init
        self.declares_identity = init == "identity"
        self.identity_note = "" if self.declares_identity else "init: repo starts the up-projections at random"

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Put two adapters into each block and return the names of their parameters.

        Raises:
            RecipeError: If the block range does not fit, or a block has no places.
        """
        names = []
        for block in encoder_blocks(backbone, self.blocks).values():
            opened = open_block(backbone, block, *_PLACES)
            for place in _PLACES:
                setattr(opened, place, DepthBottleneck(block.width, self.width, backbone, init=self.init))
                names.append(f"{block.name}.{place}")
        return names_below(backbone, names)


class MaSamTuner(VolumeAdapter):
    """Tune as MA-SAM does: its 3-D adapters, and FacT on the queries and values.

    Args:
        width: As in ``VolumeAdapter``.
        rank: FacT's; 32 in the authors' code.
        scale: Factor of FacT's updates.
        dropout: Probability behind each of FacT's cores.
        init: As in ``VolumeAdapter``.
        blocks: First and last encoder block of both, both included; null is every block with attention.

    Raises:
        RecipeError: If ``width`` or ``rank`` is less than 1.
    """

    def __init__(
        self,
        width: int = 384,
        *,
        rank: int = 32,
        scale: float = 1.0,
        dropout: float = 0.1,
        init: Init = "identity",
        blocks: BlockRange | None = None,
    ) -> None:
        super().__init__(width, init=init, blocks=blocks)
        self._factors = FactorTuning(rank, scale=scale, dropout=dropout, blocks=blocks)

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Put in the adapters and the factors and return the names of their parameters.

        Raises:
            RecipeError: As ``VolumeAdapter``.
        """
        return [*super().insert(backbone), *self._factors.insert(backbone)]
