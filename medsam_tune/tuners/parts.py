"""Part names that a recipe may use, and the layers they stand for in this backbone.

A user writes ``image_encoder.attention``; which layers that is differs between SAM's ViT and TinyViT and is known here alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError

BlockRange = tuple[int, int]
"""First and last encoder block, both included, counted from 0."""

_ATTENTION = r"mask_decoder\.transformer\.(layers\.\d+\.)?"
# Below a block of the image encoder; SAM's ViT first, TinyViT second where they differ.
_BLOCK_PARTS = {
    "image_encoder.attention": r"attn\.(qkv|proj)",
    "image_encoder.attention.qkv": r"attn\.qkv",
    "image_encoder.attention.proj": r"attn\.proj",
    "image_encoder.mlp": r"mlp\.(lin[12]|fc[12])",
    "image_encoder.norm": r"norm[12]|(attn|mlp)\.norm",
}
_WHOLE_PARTS = {
    "image_encoder.patch_embed": r"image_encoder\.patch_embed\..+",
    "image_encoder.neck": r"image_encoder\.neck\.\d+",
    "mask_decoder.attention": _ATTENTION + r"\w*attn\w*\.(q|k|v|out)_proj",
    "mask_decoder.attention.self": _ATTENTION + r"self_attn\.(q|k|v|out)_proj",
    "mask_decoder.attention.cross": _ATTENTION + r"(final|cross)_attn\w*\.(q|k|v|out)_proj",
    "mask_decoder.attention.q": _ATTENTION + r"\w*attn\w*\.q_proj",
    "mask_decoder.attention.k": _ATTENTION + r"\w*attn\w*\.k_proj",
    "mask_decoder.attention.v": _ATTENTION + r"\w*attn\w*\.v_proj",
    "mask_decoder.attention.out": _ATTENTION + r"\w*attn\w*\.out_proj",
    "mask_decoder.mlp": r"mask_decoder\.transformer\.layers\.\d+\.mlp\.lin[12]",
    "mask_decoder.norm": r"mask_decoder\.transformer\.(layers\.\d+\.)?norm\w*",
    "mask_decoder.upscaling": r"mask_decoder\.output_upscaling\.\d+",
    # The other three hypernetworks take no part in the single mask.
    "mask_decoder.hypernetwork": r"mask_decoder\.output_hypernetworks_mlps\.0\.layers\.\d+",
}
PART_NAMES = (*_BLOCK_PARTS, *_WHOLE_PARTS)
"""All part names, encoder first."""


def encoder_blocks(backbone: nn.Module, blocks: BlockRange | None = None, *, key: str = "model.tuner.blocks") -> dict[int, str]:
    """Return the dotted names of the image encoder's attention blocks by their number.

    SAM's ViT has one block a number. TinyViT's blocks are numbered flat over its stages; 0 and 1 are convolutional and have no
    attention, so ``None`` means 2 to 11 there.

    Args:
        backbone: Where the blocks live.
        blocks: First and last block wanted, both included; None is every block with attention.
        key: The recipe key to blame.

    Raises:
        RecipeError: If the range is empty, leaves the encoder, or touches a block without attention.
    """
    names = _all_blocks(backbone)
    attending = [i for i, name in enumerate(names) if hasattr(backbone.get_submodule(name), "attn")]
    if blocks is None:
        return {i: names[i] for i in attending}
    first, last = blocks
    if not 0 <= first <= last < len(names):
        raise RecipeError(
            f"{key}: [{first}, {last}] is no range of this encoder's {len(names)} blocks. "
            f"Write [first, last] with 0 <= first <= last <= {len(names) - 1}."
        )
    without = [i for i in range(first, last + 1) if i not in attending]
    if without:
        begin = max(first, attending[0])
        raise RecipeError(
            f"{key}: [{first}, {last}] includes block {without[0]}, which is convolutional and has no attention. "
            f"Blocks {attending[0]} to {attending[-1]} have; write [{begin}, {max(last, begin)}]."
        )
    return {i: names[i] for i in range(first, last + 1)}


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
        parts: Names out of ``PART_NAMES``.
        blocks: First and last encoder block; concerns the encoder's attention, mlp and norm, other parts are whole.
        kinds: Layer types that are meant; others in the part are passed over.
        key: The recipe key to blame.

    Raises:
        RecipeError: If a part is unknown or holds no such layer here, or ``blocks`` is given and no part has blocks.

    Example:
        >>> from medsam_tune.backbone import SamBackbone
        >>> layer_names(SamBackbone("random_tiny"), ["image_encoder.attention"], blocks=(1, 1))
        ['image_encoder.blocks.1.attn.qkv', 'image_encoder.blocks.1.attn.proj']
    """
    _check_parts(parts, blocks, key)
    patterns = {part: _pattern(backbone, part, blocks, key.rpartition(".")[0]) for part in parts}
    layers = [name for name, module in backbone.named_modules() if isinstance(module, kinds)]
    for part, pattern in patterns.items():
        if not any(pattern.fullmatch(name) for name in layers):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise RecipeError(f"{key}: {part!r} holds no {wanted} layer in this backbone. Leave it out.")
    return [name for name in layers if any(pattern.fullmatch(name) for pattern in patterns.values())]


def _all_blocks(backbone: nn.Module) -> list[str]:
    """Return the names of all encoder blocks, convolutional ones among them, in the order of the forward pass."""
    pattern = re.compile(r"image_encoder\.(layers\.\d+\.)?blocks\.\d+")
    return [name for name, _ in backbone.named_modules() if pattern.fullmatch(name)]


def _check_parts(parts: Sequence[str], blocks: BlockRange | None, key: str) -> None:
    if not parts:
        raise RecipeError(f"{key}: is empty. Name at least one of {', '.join(PART_NAMES)}.")
    for part in parts:
        if part not in PART_NAMES:
            raise RecipeError(f"{key}: {part!r} is unknown. Known parts: {', '.join(PART_NAMES)}.")
    if blocks is not None and not any(part in _BLOCK_PARTS for part in parts):
        raise RecipeError(
            f"{key}: {', '.join(parts)} have no encoder blocks, so blocks {list(blocks)} means nothing. "
            f"Leave blocks out or add one of {', '.join(_BLOCK_PARTS)}."
        )


def _pattern(backbone: Backbone, part: str, blocks: BlockRange | None, tuner_key: str) -> re.Pattern[str]:
    if part in _WHOLE_PARTS:
        return re.compile(_WHOLE_PARTS[part])
    names = encoder_blocks(backbone, blocks, key=f"{tuner_key}.blocks").values()
    return re.compile(rf"({'|'.join(map(re.escape, names))})\.({_BLOCK_PARTS[part]})")
