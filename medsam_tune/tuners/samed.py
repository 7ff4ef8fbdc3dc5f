"""SAMed: low-rank updates of the queries and values in every block of the image encoder, as an ordinary peft LoRA.

Paper: Zhang and Liu 2023, Customized Segment Anything Model for Medical Image Segmentation (arXiv 2304.13785).
Authors' code: https://github.com/hitachinsk/SAMed @ e351840 (MIT).

SAM computes q, k and v by one fused layer, which peft can only update as a whole. Two updates of rank r, one for the rows of q
and one for those of v, are the same as one update of rank 2r whose second factor B is zero outside two blocks:

    rows of q: columns 0..r-1        rows of k: none        rows of v: columns r..2r-1

B starts at zero and its gradient is masked, so the zeros stay, also under weight decay. The file is a plain LoRA: stock peft
loads it, switches it and merges it.

Differs from the authors' code:
- One LoRA of rank 2r with structural zeros instead of two modules around the fused layer; the function is the same.
- Works on TinyViT, where the rows of q, k and v alternate by head.
- The authors train the mask decoder and the "no mask" embedding too; here the recipe's ``trainable`` says so.
- The authors' decoder, with one mask a class, is ``segmenters.SemanticSegmenter``; this tuner goes under any segmenter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig
from torch import Tensor

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.peft_tuner import ADAPTER, PeftTuner


class SamedTuner(PeftTuner):
    """Update q and v of the encoder's attention by rank ``rank`` each, and leave k alone.

    Args:
        rank: r, the rank of the update of q and of that of v; the authors use 4.
        alpha: The update is multiplied by alpha / rank; None multiplies by 1, as the authors do.
        dropout: Probability of dropping an input of the update while training; the authors use none.
        blocks: First and last encoder block, both included; every block with attention by default.

    Raises:
        RecipeError: If the rank is not positive.
    """

    def __init__(
        self, rank: int = 4, *, alpha: float | None = None, dropout: float = 0.0, blocks: Sequence[int] | None = None
    ) -> None:
        if rank < 1:
            raise RecipeError(f"model.tuner.rank: must be at least 1, got {rank}.")
        # peft divides alpha by the stored rank 2r.
        stored_alpha = 2 * (rank if alpha is None else alpha)
        config = LoraConfig(r=2 * rank, lora_alpha=stored_alpha, lora_dropout=dropout)
        super().__init__(config, ("image_encoder.attention.qkv",), blocks=blocks)
        self.rank = rank

    def insert(self, backbone: Backbone) -> list[str]:
        """Wrap the fused layers and mask the gradient of their second factor.

        Raises:
            RecipeError: If the backbone's encoder has no attention in ``blocks``.
        """
        names = super().insert(backbone)
        for layer in self.layers:
            wrapped = backbone.get_submodule(layer)
            weight = wrapped.lora_B[ADAPTER].weight  # type: ignore[union-attr,index]
            mask = _free_entries(backbone, layer, weight, rank=self.rank)
            weight.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient))
            # Two thirds of B's rows (q and v) may use half of its columns; read by freezing.trainable_report.
            weight.free_numbers = int(mask.sum())
        return names


def _free_entries(backbone: Backbone, layer: str, weight: Tensor, *, rank: int) -> Tensor:
    """Return (3C, 2r) bool: the entries of B that may differ from zero."""
    mask = torch.zeros(weight.shape, dtype=torch.bool, device="cpu")
    encoder = backbone.anatomy().encoder
    mask[encoder.rows(layer, "q"), :rank] = True
    mask[encoder.rows(layer, "v"), rank:] = True
    return mask
