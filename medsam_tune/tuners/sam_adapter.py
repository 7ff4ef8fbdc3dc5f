"""SAM-Adapter: task prompts from the image's high frequencies, added to the tokens before every encoder block.

Paper: Chen et al. 2023, SAM Fails to Segment Anything? SAM-Adapter, arXiv 2304.09148 (after EVP, Liu et al. 2023).
Authors' code: tianrun-chen/SAM-Adapter-PyTorch @ ea368fe.

Differs from the authors' code:
- With ``init: identity`` the shared up-projection starts at zero, so nothing changes before training; ``init: repo`` draws it
  as theirs. All other weights start as theirs in both: linear layers from a truncated normal distribution with standard
  deviation 0.02, the convolution from a normal one with variance 2 / (outputs of a pixel), biases at zero.
- The mask decoder, trained along there, stays frozen unless the backbone's ``trainable`` names it. Boxes and points may prompt.
- Encoders whose blocks have one width, such as SAM's ViT: the prompts of all blocks come out of one projection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.base import InsertingTuner, names_below
from medsam_tune.tuners.msa.bottleneck import Init


def high_frequencies(images: Tensor, rate: float) -> Tensor:
    """Return the magnitude of what remains of images (B, 3, S, S) without their lowest frequencies, float32.

    A centred square of about ``rate`` of the spectrum's area is removed.

    Args:
        images: Normalised images.
        rate: Share of the spectrum's area that is removed, in 0..1.

    Source: Liu et al. 2023, Explicit Visual Prompting, arXiv 2303.10883, section 3.2.
    """
    height, width = images.shape[-2:]
    half = int((height * width * rate) ** 0.5 // 2)
    # The Fourier transform knows no bfloat16.
    with torch.autocast(images.device.type, enabled=False):
        spectrum = torch.fft.fftshift(torch.fft.fft2(images.float()), dim=(-2, -1))
        kept = torch.ones(height, width, device=images.device)
        kept[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 0
        remaining: Tensor = torch.fft.ifft2(torch.fft.ifftshift(spectrum * kept, dim=(-2, -1))).real.abs()
        return remaining


class TaskPrompts(nn.Module):
    """Make one prompt per encoder block from the patch embedding and the image's high frequencies, and add it to the tokens.

    Args:
        channels: C of the tokens.
        width: Channels of the small MLPs.
        n_blocks: Encoder blocks.
        patch: Pixels per token.
        rate: See ``high_frequencies``.
        init: ``identity`` or ``repo``.
    """

    def __init__(self, channels: int, width: int, *, n_blocks: int, patch: int, rate: float, init: Init) -> None:
        super().__init__()
        self.rate = rate
        self.embedding_proj = nn.Linear(channels, width)
        self.frequency_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.block_projs = nn.ModuleList(nn.Linear(width, width) for _ in range(n_blocks))
        self.up_proj = nn.Linear(width, channels)
        for layer in (self.embedding_proj, self.up_proj, *self.block_projs):
            nn.init.trunc_normal_(cast(Any, layer).weight, std=0.02)
            nn.init.zeros_(cast(Any, layer).bias)
        nn.init.kaiming_normal_(self.frequency_embed.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(cast(Tensor, self.frequency_embed.bias))
        if init == "identity":
            nn.init.zeros_(self.up_proj.weight)
        self._prompts: list[Tensor] = []

    def forward(self, images: Tensor, tokens: Tensor) -> list[Tensor]:
        """Return a prompt (B, h, w, C) per block from normalised images (B, 3, S, S) and their patch embedding (B, h, w, C)."""
        frequencies = self.frequency_embed(high_frequencies(images, self.rate).to(self.frequency_embed.weight.dtype))
        features = self.embedding_proj(tokens) + frequencies.permute(0, 2, 3, 1)
        return [self.up_proj(F.gelu(project(features))) for project in self.block_projs]

    def read(self, patch_embed: nn.Module, inputs: tuple[Tensor, ...], tokens: Tensor) -> None:
        """Look at what the patch embedding maps to what; a hook behind it."""
        self._prompts = self(inputs[0], tokens)

    def prompt(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Add the next prompt to the tokens (B, h, w, C) of a block; a hook before each."""
        return (inputs[0] + self._prompts.pop(0), *inputs[1:])


class SamAdapter(InsertingTuner):
    """Prompt every block of SAM's ViT with task information from the image's high frequencies.

    Args:
        scale_factor: Channels of the tokens divided by those of the small MLPs; 32 in the authors' code.
        rate: Share of the spectrum, from its centre, that is removed; 0.25 in the authors' code.
        init: ``identity`` or ``repo``.

    Raises:
        RecipeError: If ``scale_factor`` is less than 1 or ``rate`` is not between 0 and 1.
    """

    def __init__(self, scale_factor: int = 32, *, rate: float = 0.25, init: Init = "identity") -> None:
        super().__init__()
        if scale_factor < 1:
            raise RecipeError(f"model.tuner.scale_factor: {scale_factor} divides no channels. Set at least 1.")
        if not 0 < rate < 1:
            raise RecipeError(f"model.tuner.rate: {rate} is no share of the spectrum. Set a number between 0 and 1.")
        self.scale_factor = scale_factor
        self.rate = rate
        self.init: Init = init
        self.declares_identity = init == "identity"
        self.identity_note = "" if self.declares_identity else "init: repo starts the shared up-projection at random"

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Put the prompts in front of the blocks and return the names of what learns.

        Raises:
            RecipeError: If the encoder's blocks differ in width, or ``scale_factor`` leaves no channel.
        """
        described = backbone.anatomy().encoder
        channels = described.blocks[0].width
        if any(block.width != channels or block.attention is None for block in described.blocks):
            raise RecipeError(
                "model.tuner: SamAdapter needs tokens of one width in all blocks, TinyViT's differ. "
                "Choose weights of SAM's ViT such as sam_vit_b, or another tuner."
            )
        if channels < self.scale_factor:
            raise RecipeError(
                f"model.tuner.scale_factor: {self.scale_factor} leaves none of the {channels} channels. Set {channels} or less."
            )
        task_prompts = TaskPrompts(
            channels,
            channels // self.scale_factor,
            n_blocks=len(described.blocks),
            patch=described.patch_stride,
            rate=self.rate,
            init=self.init,
        )
        backbone.parts()["image_encoder"].add_module("task_prompts", task_prompts)
        backbone.get_submodule(described.patch_embed).register_forward_hook(task_prompts.read)
        for block in described.blocks:
            block.module.register_forward_pre_hook(task_prompts.prompt)
        return names_below(backbone, ["image_encoder.task_prompts"])
