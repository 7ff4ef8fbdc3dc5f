"""Conv-LoRA: low-rank updates whose bottleneck carries convolutions at several scales, one of them chosen for each image.

Paper: Zhong et al. 2024, Convolution Meets LoRA: Parameter Efficient Finetuning for Segment Anything Model, arXiv 2401.17868.
Authors' code: autogluon/autogluon, ``multimodal/models/adaptation_layers.py``.

Differs from the authors' code:
- The chosen expert's output is added as it is. Theirs passes it through exp and log, which overflows in half precision.
- The balance loss has the term of the load only: with one expert chosen, that of the importance has no gradient.
- As there, the gate's value is not multiplied in, so the gate learns from the balance loss alone.
- The mask decoder, trained along there, stays frozen unless the backbone's ``trainable`` names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.appended import append_to_layer
from medsam_tune.tuners.base import InsertingTuner, names_below
from medsam_tune.tuners.parts import BlockRange, layer_names


class NoisyGate(nn.Module):
    """Choose one expert per item, with learned noise in training, and measure how unevenly they are chosen.

    Args:
        channels: r, channels of the pooled features.
        n_experts: Experts to choose from, at least 2.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks, arXiv 1701.06538, sections 2.1 and 4 and appendix A.
    """

    def __init__(self, channels: int, n_experts: int) -> None:
        super().__init__()
        self.choice = nn.Parameter(torch.zeros(channels, n_experts))
        self.noise = nn.Parameter(torch.zeros(channels, n_experts))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen expert (B,) int64 and the imbalance, a scalar, for maps (B, r, H, W)."""
        pooled = features.float().mean(dim=(2, 3))
        clean = pooled @ self.choice.float()
        if not self.training:
            return clean.argmax(dim=1), clean.new_zeros(())
        deviation = F.softplus(pooled @ self.noise.float()) + 1e-2
        noisy = clean + torch.randn_like(clean) * deviation
        best = noisy.topk(2, dim=1).values
        # An expert is chosen if it beats the best of the others: the second best for the chosen one, the best for the rest.
        rivals = torch.where(noisy == best[:, :1], best[:, 1:], best[:, :1])
        load = torch.special.ndtr((clean - rivals) / deviation).sum(dim=0)
        return noisy.argmax(dim=1), _squared_variation(load)


class ConvLora(nn.Module):
    """Update a linear layer on a grid of tokens by scale * B(A x + Expert(A x)).

    Args:
        in_features: Channels of the layer's input.
        out_features: Channels of its output.
        rank: r.
        n_experts: Experts; number i works on the grid enlarged i times.
        scale: Factor of the update.

    Attributes:
        imbalance: How unevenly the experts were chosen in the last forward pass, a scalar; None before it.
    """

    def __init__(self, in_features: int, out_features: int, *, rank: int, n_experts: int, scale: float) -> None:
        super().__init__()
        self.down_proj = nn.Linear(in_features, rank, bias=False)
        self.up_proj = nn.Linear(rank, out_features, bias=False)
        self.gate = NoisyGate(rank, n_experts)
        self.experts = nn.ModuleList(nn.Conv2d(rank, rank, 3, padding=1) for _ in range(n_experts))
        self.scale = scale
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up_proj.weight)
        for expert in self.experts:
            nn.init.zeros_(cast(Tensor, expert.bias))
        self.imbalance: Tensor | None = None

    def forward(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Map the layer's output (B, H, W, C') or (B, L, C'), L a square, to the same shape."""
        side = math.isqrt(inputs.shape[1]) if inputs.ndim == 3 else inputs.shape[1]
        down = self.down_proj(inputs)
        maps = down.reshape(len(down), side, -1, down.shape[-1]).permute(0, 3, 1, 2)
        chosen, self.imbalance = self.gate(maps)
        maps = maps + self._by_experts(maps, chosen)
        update: Tensor = self.up_proj(maps.permute(0, 2, 3, 1).reshape(down.shape))
        return output + (self.scale * update).to(output.dtype)

    def _by_experts(self, maps: Tensor, chosen: Tensor) -> Tensor:
        result = torch.zeros_like(maps)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            # Also without rows, so that every expert has a gradient and plain ddp does not wait for one.
            result = result.index_add(0, rows, self._convolve(expert, maps[rows], scale=i + 1).to(maps.dtype))
        return result

    def _convolve(self, expert: nn.Module, maps: Tensor, *, scale: int) -> Tensor:
        size = maps.shape[-2:]
        if scale == 1 or len(maps) == 0:
            return F.gelu(cast(Tensor, expert(maps)))
        enlarged = F.interpolate(maps, scale_factor=float(scale), mode="bicubic")
        convolved: Tensor = F.gelu(cast(Tensor, expert(enlarged)))
        return F.interpolate(convolved, size=size, mode="bicubic")


class ConvLoraTuner(InsertingTuner):
    """Tune the encoder's fused attention projections by Conv-LoRA.

    Args:
        rank: r; 3 in the paper.
        n_experts: Experts at scales 1, 2, ...; 8 in the paper.
        alpha: The update is scaled by alpha / r.
        balance_weight: Factor of the balance loss, summed over layers; 0.01 in the authors' code.
        blocks: First and last encoder block, both included; null is all.

    Raises:
        RecipeError: If a number is too small.
    """

    def __init__(
        self,
        rank: int = 3,
        *,
        n_experts: int = 8,
        alpha: float = 8.0,
        balance_weight: float = 0.01,
        blocks: BlockRange | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise RecipeError(f"model.tuner.rank: {rank} is no rank. Set at least 1.")
        if n_experts < 2:
            raise RecipeError(f"model.tuner.n_experts: {n_experts} leaves nothing to choose. Set at least 2, or use LoRA.")
        self.rank = rank
        self.n_experts = n_experts
        self.alpha = alpha
        self.balance_weight = balance_weight
        self.blocks = blocks
        self._updates: list[ConvLora] = []

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Append an update to each fused projection and return the names of what learns.

        Raises:
            RecipeError: If the block range does not fit.
        """
        appended = []
        for layer in layer_names(backbone, ["image_encoder.attention.qkv"], blocks=self.blocks):
            out_features, in_features = backbone.get_parameter(f"{layer}.weight").shape
            update = ConvLora(in_features, out_features, rank=self.rank, n_experts=self.n_experts, scale=self.alpha / self.rank)
            self._updates.append(update)
            appended.append(append_to_layer(backbone, layer, "conv_lora", update))
        return names_below(backbone, appended)

    def auxiliary_loss(self) -> Tensor:
        """Return how unevenly the experts were chosen in the last forward pass, weighted; 0 before it and in eval mode."""
        terms = [update.imbalance for update in self._updates if update.imbalance is not None]
        return self.balance_weight * torch.stack(terms).sum() if terms else super().auxiliary_loss()

    def after_backward(self, step: int) -> None:
        """Let go of the step's graph."""
        for update in self._updates:
            update.imbalance = None


def _squared_variation(load: Tensor) -> Tensor:
    """Return the squared coefficient of variation of (E,) loads."""
    return load.var() / (load.mean() ** 2 + 1e-10)
