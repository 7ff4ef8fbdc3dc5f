"""What a cache saves: a step of the mask decoder alone (P1, G4), of AutoSAM (P3, G5), and of late blocks (P8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from inputs import Inputs, make_batch, make_inputs
from measure import Result, Settings, Step, alternate, per_second, relative_error, variant
from reference.stock import decode, stock_sam
from sides import logits_of, lora_sides, training_step
from torch import Tensor, nn

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.encoder_prefix import encode_prefix, encode_rest, first_tuned
from medsam_tune.tuners.samed import SamedTuner


def decoder_cached(
    settings: Settings,
    name: str = "vit_b",
    *,
    batch: int = 1,
    reference_batch: int = 1,
    dtype: torch.dtype | None = None,
    warm_up: int = 0,
) -> Result:
    """Compare a step of the mask decoder on embeddings at hand with the same behind the stock encoder, in 1024 px."""
    device = settings.device
    backbone = SamBackbone(f"random_{name}", trainable=["mask_decoder"]).to(device)
    stock = stock_sam(name, backbone.state_dict(), device)
    stock.image_encoder.requires_grad_(False)
    stock.prompt_encoder.requires_grad_(False)
    inputs, fewer = make_inputs(backbone, batch, device), make_inputs(backbone, reference_batch, device)
    with torch.no_grad():
        few = backbone.encode(fewer.encoder).main.half()
    embeddings = few.repeat(batch // reference_batch, 1, 1, 1)

    def theirs() -> Tensor:
        with torch.no_grad():
            encoded = stock.image_encoder(fewer.normalised)
        return decode(stock, encoded, fewer.boxes)

    with torch.no_grad():
        error = relative_error(logits_of(backbone, fewer, few.float()), theirs())

    def ours() -> Tensor:
        return logits_of(backbone, inputs, embeddings.float())

    result = alternate(
        lambda: training_step(ours, backbone.parameters(), inputs.masks, dtype=dtype),
        lambda: training_step(theirs, stock.parameters(), fewer.masks, dtype=dtype),
        settings,
        metric="decoder step, an image",
        units=(batch, reference_batch),
        warm_up=warm_up,
    )
    result.error = error
    result.notes.append("the embeddings are stored in float16, which the error holds")
    step, whole = result.ours["median"], result.reference["median"]
    result.extra["epochs_100_with_cache"] = (whole + 99 * step) / (100 * whole)
    per_second(result)
    return result


def late_blocks(settings: Settings, name: str = "vit_b", *, n_late: int = 3, stock: bool = True) -> Result:
    """P8: a step of LoRA on the last 3 blocks from their cached input, and of LoRA on all blocks: stock's, or our own."""
    backbone = SamBackbone(f"random_{name}", trainable=["mask_decoder"])
    inputs = make_inputs(backbone, 1, settings.device)
    theirs = lora_sides(name, settings.device, batch=1)[1] if stock else _whole_step(name, inputs)
    last = len(backbone.anatomy().encoder.blocks) - 1
    SamedTuner(4, blocks=(max(1, last - n_late + 1), last)).attach(backbone)
    before = first_tuned(backbone)
    with torch.no_grad():
        prefix = encode_prefix(backbone, inputs.encoder, before).half()

    def ours() -> Tensor:
        return logits_of(backbone, inputs, encode_rest(backbone, inputs.encoder, prefix.float(), before).main)

    with torch.no_grad():
        error = relative_error(ours(), logits_of(backbone, inputs))
    step = training_step(ours, backbone.parameters(), inputs.masks)
    result = alternate(lambda: step, theirs, settings, metric="LoRA step, an image", warm_up=0)
    result.error = error
    result.notes.append("another model than the reference's, which tunes all blocks; the error is that of float16 entries")
    return result


def _whole_step(name: str, inputs: Inputs) -> Callable[[], Step]:
    backbone = SamBackbone(f"random_{name}", trainable=["mask_decoder"])
    SamedTuner(4).attach(backbone)
    return lambda: training_step(lambda: logits_of(backbone, inputs), backbone.parameters(), inputs.masks)


def autosam_cached(
    settings: Settings,
    name: str = "vit_b",
    *,
    arch: Literal["39ds", "68ds", "68", "85"] = "85",
    batch: int = 1,
    reference_batch: int = 1,
    dtype: torch.dtype | None = None,
    warm_up: int = 0,
) -> Result:
    """Compare a step of AutoSAM on embeddings at hand with the same behind the stock encoder, which runs in float32."""
    from medsam_tune.prompt_encoders import HarDNetPromptGenerator
    from medsam_tune.segmenters.base import SamParts
    from medsam_tune.segmenters.sam import SamSegmenter

    device = settings.device
    backbone = SamBackbone(f"random_{name}")
    stock = stock_sam(name, backbone.state_dict(), device).requires_grad_(False)
    segmenter = SamSegmenter(SamParts(backbone, prompt_encoder=HarDNetPromptGenerator(arch))).train()
    # Only the stock encoder is run; ours gives its decoder.
    backbone.image_encoder = nn.Identity()
    segmenter.to(device)
    inputs, fewer = make_inputs(backbone, batch, device), make_inputs(backbone, reference_batch, device)
    embeddings = torch.randn(batch, backbone.embed_dim, *2 * (backbone.embedding_size,), device=device).half()
    cached, plain = make_batch(inputs), make_batch(fewer)

    def ours() -> Tensor:
        return segmenter(replace(cached, image_embeddings=embeddings.float())).low_res_masks

    def theirs() -> Tensor:
        with torch.no_grad():
            encoded = stock.image_encoder(fewer.normalised)
        return segmenter(replace(plain, image_embeddings=encoded)).low_res_masks

    def step(logits: Callable[[], Tensor], masks: Tensor, precision: torch.dtype | None) -> Step:
        return training_step(logits, segmenter.parameters(), masks, dtype=precision)

    result = alternate(
        lambda: step(ours, inputs.masks, dtype),
        lambda: step(theirs, fewer.masks, None),
        settings,
        metric=f"AutoSAM step, {name} and HarDNet-{arch}, an image",
        units=(batch, reference_batch),
        warm_up=warm_up,
    )
    per_second(result)
    result.notes.append("generator and decoder are ours on both sides, so no outputs are compared; the reference is float32")
    if device == "cuda":
        more = result.extra["variants"] = {}
        more["uncached, bf16"] = variant(lambda: step(theirs, fewer.masks, torch.bfloat16), settings, units=reference_batch)
        more["cached, float32"] = variant(lambda: step(ours, inputs.masks, None), settings, units=batch)
    return result
