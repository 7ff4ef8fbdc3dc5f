"""Stock segment_anything with given weights, and one training step after the loops of MedSAM and SAMed.

Sources of what a step does: bowang-lab/MedSAM @ d71e8a1, train_one_gpu.py; hitachinsk/SAMed, sam_lora_image_encoder.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn


def stock_sam(name: str, state_dict: Mapping[str, Tensor], device: str) -> Sam:
    """Return segment_anything's own model (vit_b, vit_l, vit_h at 1024 pixels; tiny at 64) with these weights."""
    with torch.device("meta"):
        # Weights drawn at random would be thrown away; those of ViT-H take seconds.
        sam = _tiny_sam() if name == "tiny" else sam_model_registry[name]()
    sam.load_state_dict({key: value.detach().to(device, copy=True) for key, value in state_dict.items()}, assign=True)
    for parameter in sam.parameters():
        parameter.requires_grad_(True)
    return sam


def _tiny_sam() -> Sam:
    encoder = ImageEncoderViT(
        img_size=64, embed_dim=32, depth=2, num_heads=2, out_chans=32, use_rel_pos=True, window_size=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), global_attn_indexes=(1,),
    )  # fmt: skip
    prompt_encoder = PromptEncoder(embed_dim=32, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, num_heads=8, mlp_dim=64)
    return Sam(encoder, prompt_encoder, MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=32))


def decode(sam: Sam, image_embeddings: Tensor, boxes: Tensor) -> Tensor:
    """Return logits (B, 1, 256, 256) of one box an image.

    As MedSAM's copy of the decoder does, the images are not repeated for each prompt; the stock method takes one image.
    """
    with torch.no_grad():
        sparse, dense = sam.prompt_encoder(points=None, boxes=boxes[:, None], masks=None)
    decoder = sam.mask_decoder
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(len(boxes), -1, -1), sparse], dim=1)
    source = image_embeddings + dense
    position = sam.prompt_encoder.get_dense_pe().expand(len(boxes), -1, -1, -1)
    hidden, source_tokens = decoder.transformer(source, position, tokens)
    upscaled = decoder.output_upscaling(source_tokens.transpose(1, 2).reshape(source.shape))
    # All four masks are made and three thrown away, and the IoU is predicted, as in the stock decoder.
    filters = torch.stack([mlp(hidden[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], dim=1)
    decoder.iou_prediction_head(hidden[:, 0])
    masks = (filters @ upscaled.flatten(2)).view(len(boxes), -1, *upscaled.shape[-2:])
    return masks[:, :1]


def medsam_loss(low_res_masks: Tensor, masks: Tensor) -> Tensor:
    """Return Dice with squared denominators plus cross-entropy, logits (B, 1, h, w) resized to the masks (B, 1, S, S)."""
    logits = F.interpolate(low_res_masks.float(), masks.shape[-2:], mode="bilinear", align_corners=False)
    probs, truth = logits.sigmoid().flatten(1), masks.float().flatten(1)
    overlap, whole = (probs * truth).sum(1), (probs**2).sum(1) + (truth**2).sum(1)
    return (1 - (2 * overlap + 1e-5) / (whole + 1e-5)).mean() + F.binary_cross_entropy_with_logits(logits, masks.float())


class LowRankQV(nn.Module):
    """SAMed's update of q and v on a fused projection, as its authors wrap the layer.

    Args:
        qkv: The frozen projection.
        rank: r.
    """

    def __init__(self, qkv: nn.Linear, rank: int) -> None:
        super().__init__()
        width = qkv.in_features
        self.qkv = qkv
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for _ in range(2))
        for layer in self.up:
            nn.init.zeros_(layer.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., C) to (..., 3C)."""
        projected, width = self.qkv(tokens), self.qkv.in_features
        projected[..., :width] += self.up[0](self.down[0](tokens))
        projected[..., -width:] += self.up[1](self.down[1](tokens))
        return projected


def add_lora(sam: Sam, rank: int = 4) -> None:
    """Freeze the encoder, wrap the projection of each of its blocks, and leave the mask decoder to learn, as SAMed does."""
    sam.requires_grad_(False)
    device = next(sam.parameters()).device
    for block in sam.image_encoder.blocks:
        block.attn.qkv = LowRankQV(block.attn.qkv, rank).to(device)
    sam.mask_decoder.requires_grad_(True)
