"""SAM-Adapter: task prompts from the image's high frequencies, added to the tokens before every encoder block.

Paper: Chen et al. 2023, SAM Fails to Segment Anything? SAM-Adapter, arXiv 2304.09148 (after EVP, Liu et al. 2023).
Authors' code: tianrun-chen/SAM-Adapter-PyTorch @ ea368fe.

Differs from the authors' code:
- With ``init: identity`` the shared up-projection starts at zero, so nothing changes before training; ``init: repo`` draws it
  from a truncated normal distribution with standard deviation 0.02, as theirs.
- The mask decoder, trained along there, stays frozen unless the backbone's ``trainable`` names it. Boxes and points may prompt.
- SAM's ViT only: the prompts of all blocks come out of one projection, so all tokens must have one width.
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
from medsam_tune.tuners.bottleneck import Init


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
    """Make one prompt per encoder block from the patch embedding and the image's high frequencies.

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
        if init == "identity":
            nn.init.zeros_(self.up_proj.weight)

    def forward(self, images: Tensor, tokens: Tensor) -> list[Tensor]:
        """Return a prompt (B, g, g, C) per block from normalised images (B, 3, S, S) and their patch embedding (B, g, g, C)."""
        frequencies = self.frequency_embed(high_frequencies(images, self.rate))
        features = self.embedding_proj(tokens) + frequencies.permute(0, 2, 3, 1)
        return [self.up_proj(F.gelu(project(features))) for project in self.block_projs]


class PromptedVit(nn.Module):
    """Stand for SAM's ViT encoder, whose children and parameter names it takes over, and add a prompt before every block.

    Args:
        encoder: The encoder.
        task_prompts: What makes the prompts.
    """

    def __init__(self, encoder: nn.Module, task_prompts: TaskPrompts) -> None:
        super().__init__()
        self.img_size = cast(int, encoder.img_size)
        self.pos_embed = cast(nn.Parameter, encoder.pos_embed)
        for name, child in encoder.named_children():
            self.add_module(name, child)
        self.task_prompts = task_prompts
        self.training = encoder.training

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, S, S) to image embeddings (B, C, g, g)."""
        parts: Any = self
        tokens: Tensor = parts.patch_embed(images)
        prompts = self.task_prompts(images, tokens)
        tokens = tokens + self.pos_embed
        for block, prompt in zip(parts.blocks, prompts, strict=True):
            tokens = block(tokens + prompt)
        return cast(Tensor, parts.neck(tokens.permute(0, 3, 1, 2)))


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
            RecipeError: If the encoder is not SAM's ViT, or ``scale_factor`` leaves no channel.
        """
        encoder: Any = backbone.parts()["image_encoder"]
        if not hasattr(encoder, "blocks"):
            raise RecipeError(
                "model.tuner: SamAdapter needs tokens of one width in all blocks, TinyViT's differ. "
                "Choose weights of SAM's ViT such as sam_vit_b, or another tuner."
            )
        channels = encoder.pos_embed.shape[-1]
        if channels < self.scale_factor:
            raise RecipeError(
                f"model.tuner.scale_factor: {self.scale_factor} leaves none of the {channels} channels. Set {channels} or less."
            )
        task_prompts = TaskPrompts(
            channels,
            channels // self.scale_factor,
            n_blocks=len(encoder.blocks),
            patch=backbone.input_rule.side // backbone.embedding_size,
            rate=self.rate,
            init=self.init,
        )
        backbone.set_submodule("image_encoder", PromptedVit(encoder, task_prompts))
        return names_below(backbone, ["image_encoder.task_prompts"])
