"""Prompt generators that read SAM's frozen image embedding, alone or beside the image.

Ours: the idea of AutoSAM (arXiv 2306.06370, a learned dense prompt into a frozen decoder), but the network reads features that
SAM has computed already. Its last layer starts at zero and is added to SAM's no-mask embedding, so training starts exactly at
SAM without a prompt, and with cached embeddings a step costs one small network and the decoder.

Differs from the authors' code:
- There is none; ``generator.py`` holds AutoSAM itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame
from medsam_tune.prompt_encoders.decoder import FeatureDecoder, Norm, conv3x3, make_norm, resize_to_grid, zero
from medsam_tune.prompt_encoders.features import build_features
from medsam_tune.prompt_encoders.generator import PromptGenerator, check_gen_size, generator_images


class DilatedBlock(nn.Module):
    """Add what a dilated 3x3 convolution sees to what it was given.

    Args:
        width: Channels in and out.
        dilation: Distance of the kernel's taps in grid cells.
        norm: Which normalisation follows the convolution.
    """

    def __init__(self, width: int, *, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.conv = conv3x3(width, width, dilation=dilation)
        self.norm = make_norm(norm, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, g, g) to the same shape."""
        return x + F.gelu(self.norm(self.conv(x)))


class DilatedTrunk(nn.Module):
    """Project to a width, pass dilated blocks, project to the prompt; starts with an output of zero.

    Args:
        in_channels: Channels that come in.
        out_channels: C of the backbone.
        width: Channels of the blocks.
        dilations: One block each; their sum times 2, plus 1, is the side of the receptive field in grid cells.
        norm: Which normalisation the blocks use.
    """

    def __init__(self, in_channels: int, out_channels: int, *, width: int, dilations: Sequence[int], norm: Norm) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(in_channels, width, 1), make_norm(norm, width), nn.GELU())
        self.blocks = nn.Sequential(*(DilatedBlock(width, dilation=dilation, norm=norm) for dilation in dilations))
        self.head = zero(nn.Conv2d(width, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, g, g) to (B, out_channels, g, g)."""
        prompt: Tensor = self.head(self.blocks(self.project(x)))
        return prompt


class EmbeddingPromptGenerator(PromptGenerator):
    """Generate the prompt from the image embedding by dilated convolutions; the image is not read.

    Args:
        width: Channels of the blocks.
        dilations: One block each, in grid cells; (1, 2, 4, 8) sees 31 of SAM's 64 cells.
        norm: ``group`` does not depend on the batch size; ``batch`` is the alternative.

    Raises:
        RecipeError: If ``dilations`` is empty or holds a number below 1.
    """

    def __init__(self, width: int = 64, *, dilations: Sequence[int] = (1, 2, 4, 8), norm: Norm = "group") -> None:
        _check_dilations(dilations)
        super().__init__(add_no_mask=True)
        self.width, self.dilations, self.norm = width, tuple(dilations), norm

    def build(self, *, channels: int, grid: int) -> None:
        """Build the network for C channels."""
        self.trunk = DilatedTrunk(channels, channels, width=self.width, dilations=self.dilations, norm=self.norm)

    def generate(self, images: Tensor, frames: Sequence[Frame], image_embeddings: Tensor) -> Tensor:
        """Return the offset (B, C, g, g) from the no-mask embedding."""
        offset: Tensor = self.trunk(image_embeddings)
        return offset


class FusedPromptGenerator(PromptGenerator):
    """Generate the prompt from both: image features joined with the image embedding on the embedding's grid.

    Args:
        encoder: ``hardnet39ds``, ``hardnet68ds``, ``hardnet68``, ``hardnet85`` or a timm name.
        gen_size: Side of the image network's own input in pixels.
        width: Channels of the decoder over the image features and of the dilated blocks.
        dilations: One block each, in grid cells.
        norm: Normalisation of everything but the image network.
        weights: A weight file of the image network; None starts from random weights, nothing is downloaded.

    Raises:
        RecipeError: If ``dilations`` is empty or holds a number below 1, or ``gen_size`` is too small.
    """

    def __init__(
        self,
        encoder: str = "hardnet39ds",
        *,
        gen_size: int = 256,
        width: int = 64,
        dilations: Sequence[int] = (1, 2, 4, 8),
        norm: Norm = "group",
        weights: str | None = None,
    ) -> None:
        _check_dilations(dilations)
        check_gen_size(gen_size)
        super().__init__(add_no_mask=True)
        self.gen_size, self.width, self.dilations, self.norm = gen_size, width, tuple(dilations), norm
        self.features = build_features(encoder, strides=(4, 8, 16), weights=weights)
        self.up = FeatureDecoder(self.features.channels, width=width, norm=norm)

    def build(self, *, channels: int, grid: int) -> None:
        """Build the layers that meet the embedding."""
        self.grid = grid
        self.embedding_norm = nn.GroupNorm(1, channels)
        self.trunk = DilatedTrunk(channels + self.width, channels, width=self.width, dilations=self.dilations, norm=self.norm)

    def generate(self, images: Tensor, frames: Sequence[Frame], image_embeddings: Tensor) -> Tensor:
        """Return the offset (B, C, g, g) from the no-mask embedding."""
        pixels = generator_images(images, frames, self.gen_size).to(next(self.parameters()).dtype)
        seen = self.up(self.features(pixels))
        both = torch.cat([self.embedding_norm(image_embeddings), resize_to_grid(seen, self.grid)], dim=1)
        offset: Tensor = self.trunk(both)
        return offset


def _check_dilations(dilations: Sequence[int]) -> None:
    if not dilations or min(dilations) < 1:
        raise RecipeError(f"model.prompt_encoder.dilations: expected one or more numbers from 1 up, got {list(dilations)}.")
