"""The transformer blocks of SAM with places where a tuner may put a module.

Each class takes over the children of the block it stands for, so every parameter keeps its name, and replays that block's
forward pass: with empty places the output is the same. Attention, MLP and norms stay the original modules.

Source: segment-anything @ dca509f, ``Block`` in modeling/image_encoder.py, ``TwoWayAttentionBlock`` in modeling/transformer.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn

from medsam_tune.backbone.tiny_vit import AttentionBlock


class AdapterPlace(nn.Module):
    """Stand where an adapter may come, and change nothing.

    Args:
        kind: The place's name in its block, such as ``attention_adapter``.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """Return what leaves the block as it is: 0 beside an MLP, else the first input."""
        return x.new_zeros(()) if self.kind == "mlp_adapter" else x


class OpenVitBlock(nn.Module):
    """Stand for a block of SAM's ViT.

    Attributes:
        attention_adapter: Maps the attention's output (B, H, W, C), windows undone, before it is added to the residual.
        mlp_adapter: Called with the stream before and after the MLP's norm, both (B, H, W, C); added beside the MLP.

    Args:
        block: The block whose children are taken over.
    """

    norm1: nn.LayerNorm
    attn: nn.Module
    norm2: nn.LayerNorm
    mlp: nn.Module
    attention_adapter: nn.Module | None
    mlp_adapter: nn.Module | None

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        _take_over(self, block)
        self.window_size = cast(int, block.window_size)
        self.attention_adapter = None
        self.mlp_adapter = None

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        attended = self._attend(self.norm1(tokens))
        if self.attention_adapter is not None:
            attended = self.attention_adapter(attended)
        tokens = tokens + attended
        normed = self.norm2(tokens)
        mixed: Tensor = tokens + self.mlp(normed)
        return mixed if self.mlp_adapter is None else mixed + self.mlp_adapter(tokens, normed)

    def _attend(self, normed: Tensor) -> Tensor:
        # The zeros that fill the last windows come after the norm, as in SAM.
        if self.window_size == 0:
            return cast(Tensor, self.attn(normed))
        windows, padded = window_partition(normed, self.window_size)
        return cast(Tensor, window_unpartition(self.attn(windows), self.window_size, padded, normed.shape[1:3]))


class OpenTinyVitBlock(AttentionBlock):
    """Stand for an attention block of TinyViT; the norms live inside its attention and its MLP.

    Attributes:
        attention_adapter: Maps the attention's output (B, H, W, C) before it is added to the residual.
        mlp_adapter: Called with the stream before and after the MLP's norm, both (B, H, W, C); added beside the MLP.

    Args:
        block: The block whose children are taken over.
    """

    attention_adapter: nn.Module | None
    mlp_adapter: nn.Module | None

    def __init__(self, block: AttentionBlock) -> None:
        # Not AttentionBlock's own: it would build fresh children.
        nn.Module.__init__(self)
        _take_over(self, block)
        self.window = block.window
        self.attention_adapter = None
        self.mlp_adapter = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        tokens = x.permute(0, 2, 3, 1)
        attended = self._attend(tokens)
        if self.attention_adapter is not None:
            attended = self.attention_adapter(attended)
        mixed: Tensor = self.local_conv((tokens + attended).permute(0, 3, 1, 2))
        tokens = mixed.permute(0, 2, 3, 1)
        result: Tensor = tokens + self.mlp(tokens)
        if self.mlp_adapter is not None:
            result = result + self.mlp_adapter(tokens, self.mlp.norm(tokens))
        return result.permute(0, 3, 1, 2)


class OpenTwoWayBlock(nn.Module):
    """Stand for a block of the mask decoder's two-way transformer.

    Attributes:
        token_adapter: Called with the output (N, L, C) of the token-to-image attention and the prompt tokens (N, T, C), before
            the residual add.
        mlp_adapter: Called with the MLP's input (N, L, C) twice, here normed and stream at once; added beside the MLP.
        image_adapter: Maps the image tokens (N, H * W, C) behind the residual add of the image-to-token attention.

    Args:
        block: The block whose children are taken over.
        n_output_tokens: IoU and mask tokens, which come before the prompt tokens.
    """

    self_attn: nn.Module
    norm1: nn.LayerNorm
    cross_attn_token_to_image: nn.Module
    norm2: nn.LayerNorm
    mlp: nn.Module
    norm3: nn.LayerNorm
    cross_attn_image_to_token: nn.Module
    norm4: nn.LayerNorm
    token_adapter: nn.Module | None
    mlp_adapter: nn.Module | None
    image_adapter: nn.Module | None

    def __init__(self, block: nn.Module, n_output_tokens: int) -> None:
        super().__init__()
        _take_over(self, block)
        self.skip_first_layer_pe = cast(bool, block.skip_first_layer_pe)
        self.n_output_tokens = n_output_tokens
        self.token_adapter = None
        self.mlp_adapter = None
        self.image_adapter = None

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (N, L, C) and image tokens (N, H * W, C) to the same shapes; ``query_pe`` are the tokens as they began."""
        queries = self.norm1(self._self_attend(queries, query_pe))
        attended = self.cross_attn_token_to_image(q=queries + query_pe, k=keys + key_pe, v=keys)
        if self.token_adapter is not None:
            attended = self.token_adapter(attended, query_pe[:, self.n_output_tokens :])
        queries = self.norm2(queries + attended)
        mixed = queries + self.mlp(queries)
        if self.mlp_adapter is not None:
            mixed = mixed + self.mlp_adapter(queries, queries)
        queries = self.norm3(mixed)
        keys = keys + self.cross_attn_image_to_token(q=keys + key_pe, k=queries + query_pe, v=queries)
        if self.image_adapter is not None:
            keys = self.image_adapter(keys)
        return queries, self.norm4(keys)

    def _self_attend(self, queries: Tensor, query_pe: Tensor) -> Tensor:
        if self.skip_first_layer_pe:
            return cast(Tensor, self.self_attn(q=queries, k=queries, v=queries))
        query = queries + query_pe
        return cast(Tensor, queries + self.self_attn(q=query, k=query, v=queries))


OpenEncoderBlock = OpenVitBlock | OpenTinyVitBlock
LAYER_NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, LayerNorm2d)
"""The layer norms of SAM: over the last axis in its transformers, over the channels of maps in neck and decoder."""


def open_encoder_blocks(sam: nn.Module, names: Iterable[str]) -> dict[str, OpenEncoderBlock]:
    """Replace encoder blocks, given by dotted name, by open ones with empty places, and return these by name.

    Args:
        sam: A backbone, or any network whose ``image_encoder`` is SAM's or a TinyViT; changed in place.
        names: The blocks; one that is open already stays.
    """
    opened: dict[str, OpenEncoderBlock] = {}
    for name in names:
        block = sam.get_submodule(name)
        if not isinstance(block, OpenEncoderBlock):
            block = OpenTinyVitBlock(block) if isinstance(block, AttentionBlock) else OpenVitBlock(block)
            sam.set_submodule(name, block)
        opened[name] = block
    return opened


def open_decoder_blocks(sam: nn.Module) -> dict[str, OpenTwoWayBlock]:
    """Replace all two-way blocks of the mask decoder by open ones with empty places, and return these by dotted name.

    Args:
        sam: A backbone, or any network whose ``mask_decoder`` is SAM's; changed in place. An open block stays.
    """
    decoder: Any = sam.get_submodule("mask_decoder")
    opened = {}
    for i, block in enumerate(decoder.transformer.layers):
        name = f"mask_decoder.transformer.layers.{i}"
        if not isinstance(block, OpenTwoWayBlock):
            block = OpenTwoWayBlock(block, n_output_tokens=1 + decoder.num_mask_tokens)
            sam.set_submodule(name, block)
        opened[name] = block
    return opened


def block_width(block: OpenEncoderBlock) -> int:
    """Return C, the channels of an encoder block's tokens."""
    return cast(int, cast(Any, block).attn.qkv.in_features)


def _take_over(opened: nn.Module, block: nn.Module) -> None:
    for name, child in block.named_children():
        opened.add_module(name, child)
    opened.training = block.training
