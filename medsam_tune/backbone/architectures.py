"""The shapes of the released networks, a tiny one for tests, and how their parts are built.

Prompt encoder and mask decoder are segment_anything's own classes, untouched, as is ViT but for its blocks (``vit.VitBlock``);
TinyViT is ours.

Source: segment-anything @ dca509f, ``build_sam.py``; MobileSAM @ d6c9073 and LiteMedSAM for the TinyViT pair.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from medsam_tune.backbone.tiny_vit import TinyViT
from medsam_tune.backbone.vit import exchange_blocks
from medsam_tune.errors import RecipeError


@dataclass(frozen=True)
class VitShape:
    """Hold the sizes of segment_anything's ViT.

    Attributes:
        embed_dim: Channels of a token.
        depth: Blocks.
        num_heads: Heads of each block.
        global_blocks: Blocks that attend over the whole grid; the others attend in windows.
        window: Side of a window in tokens.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window: int = 14


@dataclass(frozen=True)
class TinyVitShape:
    """Hold what tells the two TinyViT encoders apart.

    Attributes:
        stem_stride: Pixels per token of the first stage.
    """

    stem_stride: Literal[1, 4]


@dataclass(frozen=True)
class Architecture:
    """Hold the sizes of a promptable network.

    Attributes:
        name: Name in ``ARCHITECTURES``.
        encoder: Shape of the image encoder.
        side: Input side S the weights were trained at.
        patch: S / g, input pixels per cell of the embedding grid.
        embed_dim: C, channels of the embedding and of prompt tokens.
        decoder_mlp_dim: Hidden width in the two-way transformer.
        unused: Beginnings of keys in the released file that belong to no part of the network.
    """

    name: str
    encoder: VitShape | TinyVitShape
    side: int = 1024
    patch: int = 16
    embed_dim: int = 256
    decoder_mlp_dim: int = 2048
    unused: tuple[str, ...] = ()


ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        Architecture("vit_b", VitShape(768, 12, 12, (2, 5, 8, 11))),
        Architecture("vit_l", VitShape(1024, 24, 16, (5, 11, 17, 23))),
        Architecture("vit_h", VitShape(1280, 32, 16, (7, 15, 23, 31))),
        # The released file also holds TinyViT's ImageNet head, which MobileSAM builds and never calls.
        Architecture("mobile_sam", TinyVitShape(4), unused=("image_encoder.norm_head.", "image_encoder.head.")),
        Architecture("lite_medsam", TinyVitShape(1), side=256, patch=4),
        Architecture("tiny", VitShape(32, 2, 2, (1,), window=2), side=64, embed_dim=32, decoder_mlp_dim=64),
    )
}


def check_side(architecture: Architecture, side: int) -> None:
    """Check that the network can read a side of ``side`` pixels.

    Raises:
        RecipeError: If it is not a positive multiple of the architecture's patch.
    """
    if side <= 0 or side % architecture.patch:
        nearest = max(1, round(side / architecture.patch)) * architecture.patch
        raise RecipeError(
            f"model.backbone.side: {side} is not a positive multiple of {architecture.patch}, the pixels per embedding cell of "
            f"{architecture.name}. Set side: {nearest}, or leave it out for {architecture.side}."
        )


def build_parts(architecture: Architecture, side: int) -> dict[str, nn.Module]:
    """Build image_encoder, prompt_encoder and mask_decoder for inputs of ``side`` pixels, with fresh weights."""
    grid = side // architecture.patch
    shape = architecture.encoder
    return {
        "image_encoder": (
            TinyViT(side, shape.stem_stride, out_channels=architecture.embed_dim)
            if isinstance(shape, TinyVitShape)
            else _build_vit(shape, architecture, side)
        ),
        "prompt_encoder": PromptEncoder(
            embed_dim=architecture.embed_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(side, side),
            mask_in_chans=16,
        ),
        "mask_decoder": _build_mask_decoder(architecture),
    }


def give_class_masks(mask_decoder: nn.Module, n_classes: int) -> None:
    """Give a mask decoder, in place, one mask token and hypernetwork for the background and one for each class; they learn.

    The background starts as a copy of SAM's token and hypernetwork 0 (the single mask), the classes in turn as copies of
    those from 1 on (whole, part, subpart). Copies of one original part at the first step, because their targets differ.

    Args:
        mask_decoder: SAM's, with its weights loaded.
        n_classes: K, the background not counted.

    Raises:
        RecipeError: If ``n_classes`` is not positive.
    """
    if n_classes < 1:
        raise RecipeError(f"model.segmenter.classes: expected at least one class, got {n_classes}. Name what is segmented.")
    decoder: Any = mask_decoder
    n_candidates = decoder.num_mask_tokens - 1
    originals = [0, *(1 + i % n_candidates for i in range(n_classes))]
    tokens = decoder.mask_tokens.weight.detach()[originals]
    decoder.mask_tokens = nn.Embedding(tokens.shape[0], tokens.shape[1], _weight=tokens)
    networks = [copy.deepcopy(decoder.output_hypernetworks_mlps[i]) for i in originals]
    decoder.output_hypernetworks_mlps = nn.ModuleList(networks).requires_grad_(True)
    decoder.num_multimask_outputs, decoder.num_mask_tokens = n_classes, 1 + n_classes


def upscale_further(mask_decoder: nn.Module, stages: int) -> list[str]:
    """Let a mask decoder, in place, double its grid four times in place of two: MA-SAM's, whose masks have the input's side.

    Channels go C to C/4, C/8, C/16, C/32; a norm and GELU follow each but the last, which has GELU alone. The hypernetworks
    end in C/32 numbers. What SAM has no weights for starts at random and learns.

    Args:
        mask_decoder: SAM's, with its weights and class masks.
        stages: 2 changes nothing.

    Returns:
        Names of the fresh modules in the decoder.

    Raises:
        RecipeError: If ``stages`` is neither 2 nor 4.

    Source: cchen-cc/MA-SAM @ 0c3cd90, ``mask_decoder_224.py`` and ``mask_decoder_512.py`` in segment_anything/modeling.
    """
    if stages == 2:
        return []
    if stages != 4:
        raise RecipeError(f"model.segmenter.upscale_stages: expected 2 (as SAM) or 4 (as MA-SAM), got {stages}.")
    decoder: Any = mask_decoder
    first, norm, act, second, last_act = decoder.output_upscaling
    channels = int(first.in_channels)
    fresh = {
        4: norm_of(channels // 8),
        6: nn.ConvTranspose2d(channels // 8, channels // 16, kernel_size=2, stride=2),
        7: norm_of(channels // 16),
        9: nn.ConvTranspose2d(channels // 16, channels // 32, kernel_size=2, stride=2),
    }
    layers = [first, norm, act, second, fresh[4], last_act, fresh[6], fresh[7], nn.GELU(), fresh[9], nn.GELU()]
    decoder.output_upscaling = nn.Sequential(*layers)
    names = [f"output_upscaling.{place}" for place in fresh]
    for i, network in enumerate(decoder.output_hypernetworks_mlps):
        network.layers[-1] = nn.Linear(network.layers[-1].in_features, channels // 32)
        names.append(f"output_hypernetworks_mlps.{i}.layers.{len(network.layers) - 1}")
    return names


def norm_of(channels: int) -> nn.Module:
    """Return SAM's norm over the channels of a map."""
    from segment_anything.modeling.common import LayerNorm2d

    made: nn.Module = LayerNorm2d(channels)
    return made


def fill_zero_tables(image_encoder: nn.Module, generator: torch.Generator) -> None:
    """Draw the position tables that start at zero, so that random weights hide no fault in how they are used.

    Args:
        image_encoder: ViT (pos_embed, rel_pos) or TinyViT (attention_biases).
        generator: Where the values come from; their standard deviation is 0.02.
    """
    for name, parameter in image_encoder.named_parameters():
        if name.rpartition(".")[2] in ("pos_embed", "rel_pos_h", "rel_pos_w", "attention_biases"):
            nn.init.normal_(parameter, std=0.02, generator=generator)


def resize_position_tables(state_dict: Mapping[str, Tensor], image_encoder: nn.Module) -> dict[str, Tensor]:
    """Bring ViT's position tables to the grid of ``image_encoder``: absolute ones bicubically, relative ones linearly.

    Args:
        state_dict: Weights of the whole network, at the grid they were trained at.
        image_encoder: Built for the wanted side.

    Returns:
        The weights, with ``pos_embed`` and ``rel_pos_*`` resized where their size differs and nothing else changed.
    """
    resized = dict(state_dict)
    for name, wanted in image_encoder.named_parameters():
        key, kind = f"image_encoder.{name}", name.rpartition(".")[2]
        table = resized.get(key)
        if table is None or table.shape == wanted.shape or table.shape[-1] != wanted.shape[-1]:
            continue
        if kind == "pos_embed":
            size = (wanted.shape[1], wanted.shape[2])
            grid = F.interpolate(table.permute(0, 3, 1, 2).float(), size, mode="bicubic", antialias=True)
            resized[key] = grid.permute(0, 2, 3, 1)
        elif kind in ("rel_pos_h", "rel_pos_w"):
            resized[key] = F.interpolate(table.T[None].float(), wanted.shape[0], mode="linear")[0].T
    return resized


def _build_vit(shape: VitShape, architecture: Architecture, side: int) -> nn.Module:
    encoder: nn.Module = ImageEncoderViT(
        img_size=side,
        patch_size=architecture.patch,
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        out_chans=architecture.embed_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=shape.window,
        global_attn_indexes=shape.global_blocks,
    )
    exchange_blocks(encoder)
    return encoder


def _build_mask_decoder(architecture: Architecture) -> nn.Module:
    dim = architecture.embed_dim
    decoder: nn.Module = MaskDecoder(
        transformer_dim=dim,
        transformer=TwoWayTransformer(depth=2, embedding_dim=dim, num_heads=8, mlp_dim=architecture.decoder_mlp_dim),
        iou_head_hidden_dim=dim,
    )
    return decoder
