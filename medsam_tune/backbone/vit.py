"""SAM's ViT image encoder: its anatomy, and its block with fast attention and places where a tuner may put a module.

The block takes over the children of the block it stands for, so every parameter keeps its name, and replays that block's
forward pass: with empty places the output is the same. MLP and norms stay the original modules.

Source: segment-anything @ dca509f, ``Block`` and ``ImageEncoderViT`` in modeling/image_encoder.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from medsam_tune.backbone.anatomy import Block, EncoderAnatomy, Projection, attending_block, take_over
from medsam_tune.backbone.attention import SamAttention
from medsam_tune.backbone.encoder_places import DepthPlace, SliceAttention, attend_adapted, close_places
from medsam_tune.backbone.recomputing import RecomputingBlock

_HOME = "image_encoder"


def vit_anatomy(encoder: nn.Module) -> EncoderAnatomy:
    """Describe SAM's ViT, or one whose blocks are open; its fused rows are all q, then all k, then all v."""
    blocks = tuple(_describe(f"{_HOME}.blocks.{i}", block) for i, block in enumerate(cast(Any, encoder).blocks))
    fused = {name: block.attention for block in blocks for name in block.layers["attention.qkv"]}
    linear = ("attention", "mlp")
    parts = {
        "image_encoder.patch_embed": tuple(f"{_HOME}.patch_embed.{name}" for name in _below(encoder, "patch_embed")),
        "image_encoder.neck": tuple(f"{_HOME}.neck.{name}" for name in _below(encoder, "neck")),
    }
    return EncoderAnatomy(
        blocks=blocks,
        parts=parts,
        projections={name: _rows(cast(nn.Module, attention)) for name, attention in fused.items()},
        grid_layers=frozenset(name for block in blocks for part in linear for name in block.layers[part]),
        patch_embed=f"{_HOME}.patch_embed",
        patch_stride=int(cast(Any, encoder).patch_embed.proj.weight.shape[-1]),
    )


class VitBlock(RecomputingBlock):
    """Stand for a block of SAM's ViT.

    Attributes:
        attention_adapter: Maps the attention's output (B, H, W, C), windows undone, before it is added to the residual.
        mlp_adapter: Called with the stream before and after the MLP's norm, both (B, H, W, C); added beside the MLP.
        input_adapter: Maps the block's input (B, H, W, C).
        middle_adapter: Maps the stream (B, H, W, C) between attention and MLP.
        depth_adapter: A ``DepthPlace``, which maps the attention over the slices of a chunk, to be added to the attention's.

    Args:
        block: The block whose children are taken over; segment_anything's attention becomes ``SamAttention``.
    """

    norm1: nn.LayerNorm
    attn: nn.Module
    norm2: nn.LayerNorm
    mlp: nn.Module
    attention_adapter: nn.Module | None
    mlp_adapter: nn.Module | None
    input_adapter: nn.Module | None
    middle_adapter: nn.Module | None
    depth_adapter: DepthPlace | None

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        take_over(self, block)
        self.window_size = cast(int, block.window_size)
        self.attn = SamAttention(self.attn, window=self.window_size)
        close_places(self)

    def mix(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        if self.input_adapter is not None:
            tokens = self.input_adapter(tokens)
        tokens = tokens + attend_adapted(self, cast(SliceAttention, self.attn), self.norm1(tokens))
        if self.middle_adapter is not None:
            tokens = self.middle_adapter(tokens)
        normed = self.norm2(tokens)
        mixed: Tensor = tokens + self.mlp(normed)
        return mixed if self.mlp_adapter is None else mixed + self.mlp_adapter(tokens, normed)


def exchange_blocks(encoder: nn.Module) -> None:
    """Put a ``VitBlock`` in place of each block of segment_anything's ``ImageEncoderViT``; every parameter keeps its name."""
    blocks = cast(nn.ModuleList, encoder.blocks)
    for i, block in enumerate(blocks):
        blocks[i] = VitBlock(block)


def vit_chain(encoder: nn.Module) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the links of ``ImageEncoderViT``'s forward pass by dotted name: patch embedding, blocks, neck."""
    vit = cast(Any, encoder)

    def embed(images: Tensor) -> Tensor:
        tokens: Tensor = vit.patch_embed(images)
        return tokens if vit.pos_embed is None else tokens + vit.pos_embed

    def to_embedding(tokens: Tensor) -> Tensor:
        return cast(Tensor, vit.neck(tokens.permute(0, 3, 1, 2)))

    blocks: dict[str, Callable[[Tensor], Tensor]] = {f"{_HOME}.blocks.{i}": block for i, block in enumerate(vit.blocks)}
    return {f"{_HOME}.patch_embed": embed, **blocks, f"{_HOME}.neck": to_embedding}


def _describe(name: str, block: Any) -> Block:  # noqa: ANN401 - segment_anything carries no types
    layers, norms = ("mlp.lin1", "mlp.lin2"), ("norm1", "norm2")
    return attending_block(name, block, mlp=layers, norms=norms, window=int(block.window_size), opened=VitBlock)


def _rows(attention: nn.Module) -> dict[Projection, Tensor]:
    q, k, v = torch.arange(len(cast(Any, attention).qkv.weight), device="cpu").view(3, -1)
    return {"q": q, "k": k, "v": v}


def _below(encoder: nn.Module, child: str) -> list[str]:
    return [name for name, _ in encoder.get_submodule(child).named_modules() if name]
