"""SAM-Med2D's adapter: a channel gate and a strided convolution beside the MLP of every encoder block.

Paper: Cheng et al. 2023, SAM-Med2D, arXiv 2308.16184. Authors' code: OpenGVLab/SAM-Med2D @ bfd2b93.

Differs from the authors' code:
- With ``init: identity`` the last norm starts at zero, so nothing changes before training, and the other weights are PyTorch's
  own; ``init: repo`` starts it at one and draws all other weights as theirs (Kaiming's normal distribution by the outputs).
- A grid with an odd side is cropped back after the transposed convolution; theirs fails.
- Prompt encoder and mask decoder learn there as well; here the backbone's ``trainable`` names what learns beside the adapter.
- The interactive training of the paper (eight decoder-only rounds an image) belongs to the prompts, not to this file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.tuners.base import InsertingTuner
from medsam_tune.tuners.msa.bottleneck import Init, bottleneck_width, check_bottleneck
from medsam_tune.tuners.parts import BlockRange, encoder_blocks
from medsam_tune.tuners.places import put_beside_mlps


class ChannelSpatialAdapter(nn.Module):
    """Gate the channels, convolve at half the resolution, add the input, normalise.

    Args:
        channels: C.
        width: Hidden channels of the gate.
        init: ``identity``: the output is 0 before training; ``repo``: as the authors draw it.
    """

    def __init__(self, channels: int, width: int, *, init: Init = "identity") -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(channels, width, bias=False), nn.ReLU(), nn.Linear(width, channels, bias=False), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )
        self.norm = nn.LayerNorm(channels)
        if init == "identity":
            nn.init.zeros_(self.norm.weight)
            return
        for layer in (*self.gate, *self.spatial):
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, residual: Tensor, normed: Tensor) -> Tensor:
        """Return what is added to the MLP's output (B, H, W, C); the stream before the norm is not used."""
        height, width = normed.shape[1:3]
        gated = normed * self.gate(normed.mean(dim=(1, 2)))[:, None, None]
        spatial: Tensor = self.spatial(gated.permute(0, 3, 1, 2))[..., :height, :width]
        return cast(Tensor, self.norm(normed + spatial.permute(0, 2, 3, 1)))


class SamMed2DAdapter(InsertingTuner):
    """Adapt the encoder by SAM-Med2D's channel and spatial adapter; large: 180,504,576 parameters on ViT-B.

    Args:
        ratio: Hidden share of the channel gate; 0.25 in the authors' code.
        init: ``identity`` or ``repo``.
        blocks: First and last encoder block, both included; null is all.

    Raises:
        RecipeError: If ``ratio`` is not positive.
    """

    def __init__(self, ratio: float = 0.25, *, init: Init = "identity", blocks: BlockRange | None = None) -> None:
        super().__init__()
        check_bottleneck(ratio=ratio, rank=None)
        self.ratio = ratio
        self.init: Init = init
        self.blocks = blocks
        self.declares_identity = init == "identity"
        self.identity_note = "" if self.declares_identity else "init: repo adds a normalised map from the first step on"

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Put an adapter beside each MLP and return the names of what learns.

        Raises:
            RecipeError: If the block range does not fit.
        """
        return put_beside_mlps(backbone, encoder_blocks(backbone, self.blocks).values(), self._adapter)

    def _adapter(self, channels: int) -> ChannelSpatialAdapter:
        return ChannelSpatialAdapter(channels, bottleneck_width(channels, ratio=self.ratio, rank=None), init=self.init)
