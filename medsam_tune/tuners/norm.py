"""Norm tuning: only the scales and shifts of layer norms learn.

Paper: Basu et al. 2023, Strong Baselines for Parameter Efficient Few-Shot Fine-tuning, arXiv 2304.01917; Teuber et al. 2025,
arXiv 2502.00418, on SAM. Authors' code: computational-cell-analytics/micro-sam @ 3acdcd7.

Differs from the authors' code:
- Norms are found by module type, not by a piece of their name; the mask decoder's may be included.
- TinyViT's BatchNorms stay frozen with their statistics: with the small batches of this task their estimates are poor.
"""

from __future__ import annotations

from torch import nn

from medsam_tune.backbone.anatomy import Anatomy
from medsam_tune.tuners.scoped import ScopedTuner


class NormTuning(ScopedTuner):
    """Train the weights and biases of layer norms.

    Args:
        scope: ``image_encoder``, ``mask_decoder`` or both.
        blocks: First and last encoder block, both included; null is the whole encoder, its neck included.

    Raises:
        RecipeError: If ``scope`` is empty, or ``blocks`` is given without the encoder.
    """

    def chosen(self, name: str, owner: nn.Module, anatomy: Anatomy) -> bool:
        """Choose the parameters of layer norms."""
        return isinstance(owner, anatomy.norm_kinds)
