"""What bias and norm tuning share: they let parameters learn that SAM has already, in a part of the network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import nn

from medsam_tune.backbone.anatomy import Anatomy
from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError
from medsam_tune.tuners.base import OwnWeightsTuner, decoder_names, names_below
from medsam_tune.tuners.parts import BlockRange, encoder_blocks

Scope = Literal["image_encoder", "mask_decoder"]


class ScopedTuner(OwnWeightsTuner):
    """Train those of SAM's own parameters in a scope that a subclass chooses.

    Args:
        scope: ``image_encoder``, ``mask_decoder`` or both.
        blocks: First and last encoder block, both included; null is the whole encoder, patch embedding and neck included.

    Raises:
        RecipeError: If ``scope`` is empty, or ``blocks`` is given without the encoder.
    """

    def __init__(self, scope: Sequence[Scope] = ("image_encoder",), *, blocks: BlockRange | None = None) -> None:
        super().__init__()
        _check_scope(scope, blocks)
        self.scope = tuple(scope)
        self.blocks = blocks

    @abstractmethod
    def chosen(self, name: str, owner: nn.Module, anatomy: Anatomy) -> bool:
        """Tell whether the parameter of this dotted name, which lies in scope and belongs to this module, is to learn."""

    def insert(self, backbone: Backbone) -> list[str]:
        """Return the names of the chosen parameters.

        Raises:
            RecipeError: If the block range does not fit.
        """
        anatomy, names = backbone.anatomy(), _names_in_scope(backbone, self.scope, self.blocks)
        return [name for name in names if self.chosen(name, backbone.get_submodule(name.rpartition(".")[0]), anatomy)]


def _check_scope(scope: Sequence[Scope], blocks: BlockRange | None) -> None:
    if not scope:
        raise RecipeError("model.tuner.scope: is empty. Name image_encoder, mask_decoder or both.")
    if blocks is not None and "image_encoder" not in scope:
        raise RecipeError("model.tuner.blocks: counts encoder blocks, but scope has no image_encoder. Leave blocks out.")


def _names_in_scope(backbone: Backbone, scope: Sequence[Scope], blocks: BlockRange | None) -> list[str]:
    """Return the names of all parameters in scope that can learn from the single mask."""
    names: list[str] = []
    if "image_encoder" in scope:
        homes = ["image_encoder"] if blocks is None else [block.name for block in encoder_blocks(backbone, blocks).values()]
        names += names_below(backbone, homes)
    if "mask_decoder" in scope:
        names += decoder_names(backbone)
    return names
