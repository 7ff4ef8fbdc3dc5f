"""Hyper-prompting adapter: a bottleneck whose hidden channels are mixed by a matrix that the prompt writes.

Paper: Wu et al., Medical SAM Adapter, arXiv 2304.12620, "HyP-Adpt". The authors published no code for it.

Choices where the paper is silent:
- The prompt tokens of an object (box corners, points with their label, SAM's padding point) are averaged to one vector, and its
  matrix mixes the hidden channels of all decoder tokens alike; the paper does not say how unequal counts are aligned.
- The network that writes the matrix has one hidden layer, as wide as the bottleneck.
- Norm acts over all tokens and channels of an object: over the channels alone, a bottleneck of one or two would come
  out as constants and learn nothing.
- Without a prompt token the mixing is left out, so the adapter is the plain one.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.errors import RecipeError
from medsam_tune.tuners.msa.bottleneck import Activation, Bottleneck, Init


class PromptMixing(nn.Module):
    """Mix ``width`` channels by a matrix written from the prompt: ReLU(Norm(hidden x W)), W = reshape(MLP(prompt)).

    Args:
        channels: C, channels of a prompt token.
        width: Hidden channels that are mixed.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.hidden_proj = nn.Linear(channels, width)
        self.matrix_proj = nn.Linear(width, width * width)
        self.norm = nn.GroupNorm(1, width)

    def forward(self, hidden: Tensor, prompt: Tensor) -> Tensor:
        """Map hidden channels (N, L, width) to the same shape by the prompts (N, C)."""
        matrix = self.matrix_proj(F.relu(self.hidden_proj(prompt))).unflatten(-1, (self.width, self.width))
        mixed = self.norm((hidden @ matrix).transpose(1, 2))
        return F.relu(mixed).transpose(1, 2)


class HyperPromptAdapter(Bottleneck):
    """Add to the input a bottleneck that the prompt steers: x + Up(Mix(act(Down(x)), prompt)).

    Args:
        channels: C, channels of decoder and prompt tokens.
        width: Channels of the bottleneck.
        layers: How many mixings follow each other.
        activation: ``relu`` or ``gelu``.
        init: See ``Bottleneck``.

    Raises:
        RecipeError: If ``layers`` is less than 1.
    """

    def __init__(
        self, channels: int, width: int, *, layers: int = 1, activation: Activation = "relu", init: Init = "identity"
    ) -> None:
        super().__init__(channels, width, activation=activation, init=init)
        if layers < 1:
            raise RecipeError(f"model.tuner.hyper_layers: {layers} is no number of layers. Set 1, or decoder: adapters.")
        self.mixings = nn.ModuleList(PromptMixing(channels, width) for _ in range(layers))

    def forward(self, x: Tensor, prompt_tokens: Tensor) -> Tensor:
        """Map decoder tokens (N, L, C) to the same shape by the prompt tokens (N, T, C); T may be 0."""
        hidden = self.down(x)
        if prompt_tokens.shape[1]:
            prompt = prompt_tokens.mean(dim=1)
            for mixing in self.mixings:
                hidden = mixing(hidden, prompt)
        return x + cast(Tensor, self.up_proj(hidden))
