"""SAM's mask decoder: its anatomy, and its two-way block with places where a tuner may put a module.

The open block takes over the children of the block it stands for, so every parameter keeps its name, and replays that block's
forward pass: with empty places the output is the same. Attention, MLP and norms stay the original modules.

Source: segment-anything @ dca509f, ``TwoWayAttentionBlock`` in modeling/transformer.py, modeling/mask_decoder.py.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from medsam_tune.backbone.anatomy import Block, DecoderAnatomy, Output, take_over

_HOME = "mask_decoder"
_ATTENTION = r"transformer\.(layers\.\d+\.)?"
_PARTS = {
    "attention": _ATTENTION + r"\w*attn\w*\.(q|k|v|out)_proj",
    "attention.self": _ATTENTION + r"self_attn\.(q|k|v|out)_proj",
    "attention.cross": _ATTENTION + r"(final|cross)_attn\w*\.(q|k|v|out)_proj",
    **{f"attention.{which}": _ATTENTION + rf"\w*attn\w*\.{which}_proj" for which in ("q", "k", "v", "out")},
    "mlp": r"transformer\.layers\.\d+\.mlp\.lin[12]",
    "norm": r"transformer\.(layers\.\d+\.)?norm\w*",
    "upscaling": r"output_upscaling\.\d+",
    # The other hypernetworks take no part in the single mask.
    "hypernetwork": r"output_hypernetworks_mlps\.0\.layers\.\d+",
}


def decoder_anatomy(decoder: nn.Module) -> DecoderAnatomy:
    """Describe SAM's mask decoder, or one that emits a mask a class, or one whose blocks are open.

    Idle are the IoU head, which learns from a loss on the predicted IoU alone, and the hypernetworks of other masks: with one
    mask 552,036 of SAM's 4,058,340 parameters. The IoU token and all mask tokens are not: the other tokens attend to them.
    """
    names = [name for name, _ in decoder.named_modules()]
    layers = cast(Any, decoder).transformer.layers
    return DecoderAnatomy(
        blocks=tuple(_describe(decoder, f"{_HOME}.transformer.layers.{i}", block) for i, block in enumerate(layers)),
        parts={
            f"{_HOME}.{part}": tuple(f"{_HOME}.{name}" for name in names if re.fullmatch(pattern, name))
            for part, pattern in _PARTS.items()
        },
        idle=_idle(cast(Any, decoder).num_mask_tokens),
        without_effect=frozenset(f"{_HOME}.{name}.bias" for name in names if name.endswith(".k_proj")),
    )


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
        take_over(self, block)
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


def _describe(decoder: nn.Module, name: str, block: Any) -> Block:  # noqa: ANN401 - segment_anything carries no types
    projections = [
        f"{name}.{attention}.{which}_proj"
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        for which in ("q", "k", "v", "out")
    ]
    return Block(
        name=name,
        module=block,
        width=len(block.norm1.weight),
        layers={
            "attention": tuple(projections),
            "mlp": (f"{name}.mlp.lin1", f"{name}.mlp.lin2"),
            "norm": tuple(f"{name}.norm{i}" for i in range(1, 5)),
        },
        attention=block.self_attn,
        mlp=block.mlp,
        norms=(block.norm1, block.norm2, block.norm3, block.norm4),
        places=("token_adapter", "mlp_adapter", "image_adapter"),
        # The IoU token and the mask tokens come before the prompt's.
        opened=partial(OpenTwoWayBlock, n_output_tokens=1 + cast(int, decoder.num_mask_tokens)),
    )


def _idle(n_mask_tokens: int) -> dict[Output, tuple[str, ...]]:
    networks = [f"{_HOME}.output_hypernetworks_mlps.{i}" for i in range(n_mask_tokens)]
    head = f"{_HOME}.iou_prediction_head"
    return {"single_mask": (head, *networks[1:]), "multimask": (head, networks[0]), "class_masks": (head,)}
