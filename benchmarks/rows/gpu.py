"""What is measured on one CUDA device: G1 to G6, and each way to compute attention. Random weights of true shape."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from inputs import make_inputs
from measure import Result, Settings, Step, Times, alternate, clocked, free, per_second, relative_error, synchronise, variant
from reference.stock import decode, stock_sam
from segment_anything.modeling.image_encoder import Block
from sides import encoder_step, half, logits_of, lora_sides, training_step
from torch import Tensor, nn

from medsam_tune.backbone import SamBackbone
from medsam_tune.backbone.architectures import ARCHITECTURES
from medsam_tune.backbone.attention import FoldedAttention, TiledAttention
from medsam_tune.backbone.vit import VitBlock

BF16 = torch.bfloat16


def encoder_forward(settings: Settings, name: str = "vit_b", *, batch: int = 8) -> Result:
    """G1: encoder of ViT-B at 1024 px, ours in bf16 and batches of 8, stock in float32 one by one."""
    device = settings.device
    backbone = SamBackbone(f"random_{name}").to(device)
    stock = stock_sam(name, backbone.state_dict(), device)
    images = make_inputs(backbone, batch, device).normalised
    ours, theirs = backbone.image_encoder, stock.image_encoder
    exact = encoder_step(theirs, images[:1], None)()
    error = relative_error(encoder_step(ours, images[:1], None)(), exact)
    result = alternate(
        lambda: encoder_step(ours, images, BF16),
        lambda: encoder_step(theirs, images[:1], None),
        settings,
        metric="encoder forward of an image",
        units=(batch, 1),
    )
    per_second(result)
    result.error = error
    result.extra["error_bf16_ours"] = relative_error(encoder_step(ours, images[:1], BF16)(), exact)
    result.extra["error_bf16_stock"] = relative_error(encoder_step(theirs, images[:1], BF16)(), exact)
    more = result.extra["variants"] = {}
    more["stock, bf16, batch 8"] = variant(lambda: encoder_step(theirs, images, BF16), settings, units=batch)
    more["ours, float32, batch 1"] = variant(lambda: encoder_step(ours, images[:1], None), settings, units=1)
    more["ours, bf16, batch 1"] = variant(lambda: encoder_step(ours, images[:1], BF16), settings, units=1)
    for block in ours.blocks:
        block.compile()
    more["ours, bf16, batch 8, blocks compiled"] = variant(lambda: encoder_step(ours, images, BF16), settings, units=batch)
    return result


def medsam_full(settings: Settings, name: str = "vit_b", *, batch: int = 8, reference_batch: int = 2) -> Result:
    """G2: a step of MedSAM, encoder and decoder of ViT-B learn; ours in bf16, theirs in float32 and batches of 2."""
    device = settings.device
    backbone = SamBackbone(f"random_{name}", trainable=["image_encoder", "mask_decoder"]).to(device)
    stock = stock_sam(name, backbone.state_dict(), device)
    inputs, fewer = make_inputs(backbone, batch, device), make_inputs(backbone, reference_batch, device)
    stock.prompt_encoder.requires_grad_(False)

    def theirs() -> Tensor:
        return decode(stock, stock.image_encoder(fewer.normalised), fewer.boxes)

    with torch.no_grad():
        error = relative_error(logits_of(backbone, fewer), theirs())

    def ours(which: Any, dtype: torch.dtype | None) -> Step:  # noqa: ANN401 - Inputs
        return training_step(partial(logits_of, backbone, which), backbone.parameters(), which.masks, dtype=dtype)

    def reference(dtype: torch.dtype | None = None, *, scaled: bool = False) -> Step:
        scaler = torch.amp.GradScaler(device) if scaled else None
        return training_step(theirs, stock.parameters(), fewer.masks, dtype=dtype, scaler=scaler)

    result = alternate(
        lambda: ours(inputs, BF16), reference, settings, metric="full step, an image", units=(batch, reference_batch)
    )
    result.error = error
    per_second(result)
    more = result.extra["variants"] = {}
    more["stock, -use_amp (fp16), batch 2"] = variant(
        lambda: reference(torch.float16, scaled=True), settings, units=reference_batch
    )
    more["ours, bf16, batch 2"] = variant(lambda: ours(fewer, BF16), settings, units=reference_batch)
    more["ours, float32, batch 2"] = variant(lambda: ours(fewer, None), settings, units=reference_batch)
    return result


def lora(settings: Settings, name: str, *, batch: int) -> Result:
    """G3: a step with LoRA of rank 4 on q and v of all blocks and the decoder, both sides in bf16 and equal batches."""
    ours, theirs, error = lora_sides(name, settings.device, batch=batch, check=True, dtype=BF16)
    result = alternate(ours, theirs, settings, metric=f"LoRA step, {name}, an image", units=(batch, batch))
    result.error = error
    per_second(result)
    return result


def lora_memory(settings: Settings, name: str = "vit_h", *, batch: int = 4) -> Result:
    """G6: peak memory of a LoRA step on ViT-H, batch 4 (less where the reference does not fit), both in bf16."""
    while True:
        try:
            ours, theirs = (_peak_of(i, settings, name, batch) for i in range(2))
            break
        except torch.OutOfMemoryError:
            free()
            if batch == 1:
                raise
            batch //= 2
    ratio = ours["peak_mb"] / theirs["peak_mb"]
    result = Result(f"peak MiB of a LoRA step, {name}, batch {batch}", ours, theirs, ratio)
    result.extra["beyond_held"] = (ours["peak_mb"] - ours["held_mb"]) / (theirs["peak_mb"] - theirs["held_mb"])
    result.notes.append("reference: stock ViT-H with SAMed's LoRA, the same trained parameters, no adapters")
    return result


def _peak_of(which: int, settings: Settings, name: str, batch: int) -> dict[str, Any]:
    """Return the memory of one side alone: 0 is ours, 1 is the reference."""
    free()
    before = torch.cuda.memory_allocated()
    sides = lora_sides(name, settings.device, batch=batch, dtype=BF16)
    step = sides[which]()
    del sides
    step()
    synchronise(settings.device)
    free()
    held = torch.cuda.memory_allocated() - before
    torch.cuda.reset_peak_memory_stats()
    times = Times()
    clocked(step, times, device=settings.device, units=batch)
    peak = torch.cuda.max_memory_allocated() - before
    del step
    free()
    return {"median": times.wall[0], "peak_mb": peak / 2**20, "held_mb": held / 2**20, "n": 1}


def attention_kernels(settings: Settings, names: Sequence[str] = ("vit_b", "vit_h")) -> Result:
    """A: a block of ViT-B and of ViT-H at 1024 px in bf16, batch 4: stock, and each way that we know, and backward."""
    found: dict[str, Any] = {}
    for name in names:
        for label, block in _one_of_each(name):
            found |= _block_variants(f"{name} {label}", block, ARCHITECTURES[name].side // ARCHITECTURES[name].patch, settings)
    base, best = found.get(f"{names[0]} global stock, forward"), found.get(f"{names[0]} global folded, forward")
    ratio = base["per_s"] / best["per_s"] if base and best and "per_s" in base and "per_s" in best else None
    return Result("attention block, bf16, batch 4", {}, {}, ratio, extra={"variants": found})


def _one_of_each(name: str) -> list[tuple[str, nn.Module]]:
    shape: Any = ARCHITECTURES[name].encoder
    grid = ARCHITECTURES[name].side // ARCHITECTURES[name].patch
    make = partial(Block, shape.embed_dim, shape.num_heads, use_rel_pos=True, input_size=(grid, grid))
    blocks = [("global", make()), ("window", make(window_size=shape.window))]
    for _, block in blocks:
        nn.init.normal_(block.attn.rel_pos_h, std=0.02)
        nn.init.normal_(block.attn.rel_pos_w, std=0.02)
    return blocks


def _block_variants(label: str, stock: nn.Module, grid: int, settings: Settings) -> dict[str, Any]:
    stock = stock.to(settings.device).requires_grad_(False)
    tokens = torch.randn(4, grid, grid, stock.norm1.weight.numel(), device=settings.device)
    ours = VitBlock(copy.deepcopy(stock))
    sides: dict[str, tuple[nn.Module, Any]] = {
        "stock": (stock, None),
        "tiled": (ours, TiledAttention()),
        "folded": (ours, FoldedAttention()),
    }
    found: dict[str, Any] = {}
    for name, (block, kernel) in sides.items():
        if block is ours:
            ours.attn.kernel = kernel
        forward = variant(lambda block=block: encoder_step(block, tokens, BF16), settings, units=4)
        found[f"{label} {name}, forward"] = forward
        found[f"{label} {name}, with backward"] = variant(lambda block=block: _with_backward(block, tokens), settings, units=4)
    free()
    return found


def _with_backward(block: nn.Module, tokens: Tensor) -> Step:
    leaf = tokens.clone().requires_grad_()

    def step() -> Tensor:
        with half(tokens.device.type, BF16):
            mixed = block(leaf)
        mixed.float().square().mean().backward()
        leaf.grad = None
        return mixed.detach()

    return step


def several_gpus(settings: Settings) -> Result:
    """G7: needs two GPUs or more; where there is one, nothing is measured and the row says so."""
    raise RuntimeError(f"needs several GPUs, found {torch.cuda.device_count()}; not measured")
