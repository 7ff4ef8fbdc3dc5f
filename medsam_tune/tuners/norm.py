"""Norm tuning: only the scales and shifts of layer norms learn.

Paper: Basu et al. 2023, Strong Baselines for Parameter Efficient Few-Shot Fine-tuning, arXiv 2304.01917; Teuber et al. 2025,
arXiv 2502.00418, on SAM. Authors' code: computational-cell-analytics/micro-sam @ 3acdcd7.

Differs from the authors' code:
- Norms are found by module type, not by a piece of their name; the mask decoder's may be included.
- TinyViT's BatchNorms stay frozen with their statistics: with the small batches of this task their estimates are poor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.blocks import LAYER_NORMS
from medsam_tune.tuners.base import InsertingTuner
from medsam_tune.tuners.bias import Scope, check_scope, scope_names
from medsam_tune.tuners.parts import BlockRange


class NormTuning(InsertingTuner):
    """Train the weights and biases of layer norms.

    Args:
        scope: ``image_encoder``, ``mask_decoder`` or both.
        blocks: First and last encoder block, both included; null is the whole encoder, its neck included.

    Raises:
        RecipeError: If ``scope`` is empty, or ``blocks`` is given without the encoder.
    """

    def __init__(self, scope: Sequence[Scope] = ("image_encoder",), *, blocks: BlockRange | None = None) -> None:
        super().__init__()
        check_scope(scope, blocks)
        self.scope = tuple(scope)
        self.blocks = blocks

    def insert(self, backbone: Backbone) -> Iterable[str]:
        """Return the names of the norms' parameters.

        Raises:
            RecipeError: If the block range does not fit.
        """
        names = scope_names(backbone, self.scope, self.blocks)
        return [name for name in names if isinstance(backbone.get_submodule(name.rpartition(".")[0]), LAYER_NORMS)]
