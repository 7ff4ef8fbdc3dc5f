"""FacT: the updates of all q and v projections share two factors; each layer keeps a small core of its own.

Paper: Jie and Deng 2023, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, arXiv 2212.03145 (tensor-train
form); Chen et al. 2024, MA-SAM, arXiv 2309.08842, uses it on SAM. Authors' code: cchen-cc/MA-SAM @ c8a252e.

Differs from the authors' code:
- No 3-D adapters; this is MA-SAM's factor tuning alone.
- The updates are not written into the projection's output in place.
- The factors' width follows the backbone (theirs is fixed at ViT-H's 1280). TinyViT's stages differ in width; each width
  has its own pair of shared factors.
- The mask decoder is not trained along; name it in the backbone's ``trainable`` for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.appended import append_to_layer, remove_from_layer
from medsam_tune.tuners.base import InsertingTuner, names_below
from medsam_tune.tuners.parts import BlockRange, layer_names

Projection = Literal["q", "k", "v"]


class SharedFactors(nn.Module):
    """Hold the two factors that all layers of one width share; the second starts at zero.

    Args:
        channels: C.
        rank: r.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(channels, rank, bias=False)
        self.up_proj = nn.Linear(rank, channels, bias=False)
        nn.init.zeros_(self.up_proj.weight)


class FactorCore(nn.Module):
    """Update the chosen rows of one fused projection by scale * Up(Core(Down(x))).

    Args:
        shared: The factors of this width; registered elsewhere, not below this module.
        rows: Which output rows each core updates, (C,) int64 each.
        rank: r.
        scale: Factor of the update.
        dropout: Probability behind the core.
    """

    works_per_token = True

    def __init__(
        self, shared: SharedFactors, rows: dict[Projection, Tensor], *, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        # In a tuple the factors are no child, so that each appears once in the state dict.
        self._shared = (shared,)
        self.cores = nn.ModuleDict({which: nn.Linear(rank, rank, bias=False) for which in rows})
        self.dropout = nn.Dropout(dropout)
        self.scale = scale
        for which, index in rows.items():
            self.register_buffer(f"{which}_rows", index, persistent=False)

    def forward(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Map a projection's output (..., 3C) to the same shape, by its input (..., C)."""
        (shared,) = self._shared
        down = shared.down_proj(inputs)
        for which, core in self.cores.items():
            update = shared.up_proj(self.dropout(core(down)))
            output = output.index_add(-1, self.get_buffer(f"{which}_rows"), (self.scale * update).to(output.dtype))
        return output

    def updates(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows (C,) that a core updates and the matrix (C, C) that it adds to them."""
        (shared,) = self._shared
        for which, core in self.cores.items():
            product = shared.up_proj.weight @ cast(Tensor, core.weight) @ shared.down_proj.weight
            yield self.get_buffer(f"{which}_rows"), self.scale * product


class FactorTuning(InsertingTuner):
    """Tune attention by factors shared over the layers (FacT in tensor-train form).

    Args:
        rank: r; 32 in MA-SAM.
        scale: Factor of the updates; 1 in MA-SAM.
        dropout: Probability behind each core; 0.1 in MA-SAM.
        projections: Which of q, k, v are updated.
        blocks: First and last encoder block, both included; null is all.

    Raises:
        RecipeError: If ``rank`` is less than 1 or no projection is named.
    """

    def __init__(
        self,
        rank: int = 32,
        *,
        scale: float = 1.0,
        dropout: float = 0.1,
        projections: Sequence[Projection] = ("q", "v"),
        blocks: BlockRange | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise RecipeError(f"model.tuner.rank: {rank} is no rank. Set at least 1.")
        if not projections:
            raise RecipeError("model.tuner.projections: is empty. Name at least one of q, k, v.")
        self.rank = rank
        self.scale = scale
        self.dropout = dropout
        self.projections = tuple(projections)
        self.blocks = blocks
        self._layers: list[str] = []

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Add shared factors and a core per projection, and return their names.

        Raises:
            RecipeError: If the block range does not fit.
        """
        layers = layer_names(backbone, ["image_encoder.attention.qkv"], blocks=self.blocks)
        self._layers = layers
        factors = nn.ModuleDict()
        backbone.parts()["image_encoder"].add_module("shared_factors", factors)
        cores = [append_to_layer(backbone, layer, "factor_core", self._core(backbone, layer, factors)) for layer in layers]
        return names_below(backbone, ["image_encoder.shared_factors", *cores])

    @torch.no_grad()
    def merge(self) -> None:
        """Add each layer's product of core and factors to the rows that it updates."""
        backbone = self.backbone()
        for layer in self._layers:
            weight = backbone.get_parameter(f"{layer}.weight")
            for rows, update in cast(FactorCore, remove_from_layer(backbone, layer, "factor_core")).updates():
                weight[rows] += update
        delattr(backbone.parts()["image_encoder"], "shared_factors")

    def _core(self, backbone: Backbone, layer: str, factors: nn.ModuleDict) -> FactorCore:
        width = backbone.get_parameter(f"{layer}.weight").shape[1]
        if str(width) not in factors:
            factors[str(width)] = SharedFactors(width, self.rank)
        made = backbone.anatomy().encoder.projections[layer]
        rows = {which: made[which] for which in self.projections if which in made}
        shared = cast(SharedFactors, factors[str(width)])
        return FactorCore(shared, rows, rank=self.rank, scale=self.scale, dropout=self.dropout)
