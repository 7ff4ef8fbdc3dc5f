"""Training the network's own weights: all, the mask decoder alone, or chosen parts; the ends that other tuners lie between.

Paper: Kirillov et al. 2023, Segment Anything (the network); Ma et al. 2024, Segment Anything in Medical Images (MedSAM trains
image encoder and mask decoder); Teuber et al. 2025, arXiv 2502.00418 (attention only, late blocks only).
Authors' code: bowang-lab/MedSAM @ d71e8a1.

Differs from the authors' code:
- What a loss on the single mask never reaches (IoU head, hypernetworks 1 to 3) stays frozen; theirs declares it trainable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.tuners.base import OwnWeightsTuner, decoder_names, names_below
from medsam_tune.tuners.parts import BlockRange, layer_names


class FullTuning(OwnWeightsTuner):
    """Train the image encoder and the mask decoder; the prompt encoder stays frozen."""

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Return the names of encoder and decoder parameters."""
        return [*names_below(backbone, ["image_encoder"]), *decoder_names(backbone)]


class DecoderTuning(OwnWeightsTuner):
    """Train the mask decoder; the embedding cache stays valid."""

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Return the names of decoder parameters."""
        return decoder_names(backbone)


class PartTuning(OwnWeightsTuner):
    """Train the layers of chosen parts whole, by default the encoder's attention.

    Args:
        parts: Names such as ``image_encoder.attention``; see ``anatomy.PART_NAMES``.
        blocks: First and last encoder block, both included; null is all. With late blocks only, the backward pass stops early.
    """

    def __init__(self, parts: Sequence[str] = ("image_encoder.attention",), *, blocks: BlockRange | None = None) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.blocks = blocks

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Return the names of the layers' parameters.

        Raises:
            RecipeError: If a part is unknown or the block range does not fit.
        """
        kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm)
        return names_below(backbone, layer_names(backbone, self.parts, blocks=self.blocks, kinds=kinds))
