"""Part names that a recipe may use, and the layers they stand for in this backbone.

A user writes ``image_encoder.attention``; which layers that is differs between backbones, and each says so in its anatomy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from medsam_tune.backbone.anatomy import Anatomy, Block
from medsam_tune.backbone.base import Backbone
from medsam_tune.backbone.sam_anatomy import anatomy_of
from medsam_tune.errors import RecipeError

BlockRange = tuple[int, int]
"""First and last encoder block, both included, counted from 0."""


def encoder_blocks(
    network: nn.Module, blocks: BlockRange | None = None, *, key: str = "model.tuner.blocks"
) -> dict[int, Block]:
    """Return the image encoder's attention blocks by their number in the forward pass, counted from 0.

    TinyViT's blocks are numbered flat over its stages; 0 and 1 are convolutional and have no attention, so ``None`` means 2 to
    11 there.

    Args:
        network: A backbone, or a SAM of segment_anything.
        blocks: First and last block wanted, both included; None is every block with attention.
        key: The recipe key to blame.

    Raises:
        RecipeError: If the range is empty, leaves the encoder, or touches a block without attention.
    """
    known = anatomy_of(network).encoder.blocks
    attending = [i for i, block in enumerate(known) if block.attention is not None]
    if blocks is None:
        return {i: known[i] for i in attending}
    first, last = blocks
    if not 0 <= first <= last < len(known):
        raise RecipeError(
            f"{key}: [{first}, {last}] is no range of this encoder's {len(known)} blocks. "
            f"Write [first, last] with 0 <= first <= last <= {len(known) - 1}."
        )
    without = [i for i in range(first, last + 1) if i not in attending]
    if without:
        begin = max(first, attending[0])
        raise RecipeError(
            f"{key}: [{first}, {last}] includes block {without[0]}, which is convolutional and has no attention. "
            f"Blocks {attending[0]} to {attending[-1]} have; write [{begin}, {max(last, begin)}]."
        )
    return {i: known[i] for i in range(first, last + 1)}


def layer_names(
    backbone: Backbone,
    parts: Sequence[str],
    *,
    blocks: BlockRange | None = None,
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
    key: str = "model.tuner.parts",
) -> list[str]:
    """Return the dotted names of the layers that the parts stand for, in the backbone's order, each once.

    Args:
        backbone: Where the layers live; ask before anything is attached, which may rename them.
        parts: Names out of ``anatomy.PART_NAMES``, or others that this backbone knows.
        blocks: First and last encoder block; concerns the encoder's attention, mlp and norm, other parts are whole.
        kinds: Layer types that are meant; others in the part are passed over.
        key: The recipe key to blame.

    Raises:
        RecipeError: If a part is unknown or holds no such layer here, or ``blocks`` is given and no part has blocks.

    Examples:
        >>> from medsam_tune.backbone import SamBackbone
        >>> layer_names(SamBackbone("random_tiny"), ["image_encoder.attention"], blocks=(1, 1))
        ['image_encoder.blocks.1.attn.qkv', 'image_encoder.blocks.1.attn.proj']
    """
    anatomy = anatomy_of(backbone)
    _check_parts(anatomy, parts, blocks, key)
    homes = encoder_blocks(backbone, blocks, key=f"{key.rpartition('.')[0]}.blocks").values()
    wanted = {part: _layers_of(anatomy, part, homes) for part in parts}
    layers = [name for name, module in backbone.named_modules() if isinstance(module, kinds)]
    for part, names in wanted.items():
        if not names.intersection(layers):
            described = " or ".join(kind.__name__ for kind in kinds)
            raise RecipeError(f"{key}: {part!r} holds no {described} layer in this backbone. Leave it out.")
    return [name for name in layers if any(name in names for names in wanted.values())]


def _check_parts(anatomy: Anatomy, parts: Sequence[str], blocks: BlockRange | None, key: str) -> None:
    known = anatomy.part_names()
    if not parts:
        raise RecipeError(f"{key}: is empty. Name at least one of {', '.join(known)}.")
    for part in parts:
        if part not in known:
            raise RecipeError(f"{key}: {part!r} is unknown. Known parts: {', '.join(known)}.")
    in_blocks = anatomy.block_parts()
    if blocks is not None and not any(part in in_blocks for part in parts):
        raise RecipeError(
            f"{key}: {', '.join(parts)} have no encoder blocks, so blocks {list(blocks)} means nothing. "
            f"Leave blocks out or add one of {', '.join(in_blocks)}."
        )


def _layers_of(anatomy: Anatomy, part: str, blocks: Iterable[Block]) -> set[str]:
    elsewhere = {*anatomy.encoder.parts.get(part, ()), *anatomy.decoder.parts.get(part, ())}
    kind = part.removeprefix("image_encoder.")
    return elsewhere | {layer for block in blocks for layer in block.layers.get(kind, ())}
