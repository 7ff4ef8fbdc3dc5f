"""Adapters that stand beside the MLPs of the encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from medsam_tune.backbone.anatomy import Block, open_block
from medsam_tune.backbone.base import Backbone
from medsam_tune.tuners.base import names_below


def put_beside_mlps(backbone: Backbone, blocks: Iterable[Block], adapter: Callable[[int], nn.Module]) -> list[str]:
    """Put an adapter beside the MLP of each block and return the dotted names of their parameters.

    Args:
        backbone: Changed in place.
        blocks: From its anatomy.
        adapter: Builds one for C channels; it is given the stream before and after the MLP's norm, both (..., C), and returns
            what is added to the MLP's output.

    Raises:
        RecipeError: If a block has no place for it.
    """
    names = []
    for block in blocks:
        open_block(backbone, block).mlp_adapter = adapter(block.width)
        names.append(f"{block.name}.mlp_adapter")
    return names_below(backbone, names)
