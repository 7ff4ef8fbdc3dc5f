"""SSF: a scale and a shift per channel behind every layer of the encoder's blocks.

Paper: Lian et al. 2022, Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning, arXiv 2210.08823.
Authors' code: dongzelian/SSF @ 0135361.

Differs from the authors' code:
- Scales start at 1 and shifts at 0, so nothing changes before training; theirs are drawn with standard deviation 0.02.
- The patch embedding and the norm behind the last block are left alone; SAM has no such norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.tuners.appended import append_to_layer, remove_from_layer
from medsam_tune.tuners.base import InsertingTuner, names_below
from medsam_tune.tuners.parts import BlockRange, layer_names


class ScaleShift(nn.Module):
    """Multiply each of C channels, which are last, by a number and add another.

    Args:
        channels: C.
    """

    works_per_token = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Map a layer's output (..., C) to the same shape; its input is not used."""
        return (output * self.scale + self.shift).to(output.dtype)


class ScaleShiftTuning(InsertingTuner):
    """Scale and shift the features behind linear layers and norms.

    Args:
        parts: Names such as ``image_encoder.attention``; see ``anatomy.PART_NAMES``. Their linear layers and norms count.
        blocks: First and last encoder block, both included; null is all.
    """

    def __init__(
        self,
        parts: Sequence[str] = ("image_encoder.attention", "image_encoder.mlp", "image_encoder.norm"),
        *,
        blocks: BlockRange | None = None,
    ) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.blocks = blocks
        self._layers: list[str] = []

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Append a scale and a shift to each layer and return their names.

        Raises:
            RecipeError: If a part is unknown or the block range does not fit.
        """
        layers = layer_names(backbone, self.parts, blocks=self.blocks, kinds=(nn.Linear, nn.LayerNorm))
        widths = {layer: len(backbone.get_parameter(f"{layer}.bias")) for layer in layers}
        self._layers = list(widths)
        return names_below(
            backbone, [append_to_layer(backbone, layer, "scale_shift", ScaleShift(width)) for layer, width in widths.items()]
        )

    @torch.no_grad()
    def merge(self) -> None:
        """Multiply the rows of each layer's weight and bias by the scales and add the shifts to its bias."""
        for layer in self._layers:
            module = cast(ScaleShift, remove_from_layer(self.backbone(), layer, "scale_shift"))
            weight, bias = (self.backbone().get_parameter(f"{layer}.{name}") for name in ("weight", "bias"))
            weight.mul_(module.scale.reshape(-1, *[1] * (weight.ndim - 1)))
            bias.mul_(module.scale).add_(module.shift)
