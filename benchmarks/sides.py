"""Our side of the comparisons: the backbone driven as the package drives it, and a training step around either side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from inputs import Inputs, make_inputs
from measure import Step, relative_error
from reference.stock import add_lora, decode, medsam_loss, stock_sam
from torch import Tensor, nn

from medsam_tune.backbone import SamBackbone
from medsam_tune.types import ImageEmbeddings


def half(device: str, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return autocast to ``dtype``, or nothing for None."""
    return nullcontext() if dtype is None else torch.autocast(device, dtype)


def logits_of(backbone: SamBackbone, inputs: Inputs, embeddings: Tensor | None = None) -> Tensor:
    """Return low-resolution logits of each image's box, from the images or from their embeddings."""
    encoded = backbone.encode(inputs.encoder) if embeddings is None else ImageEmbeddings(embeddings)
    prompts = backbone.embed_prompts(len(inputs.boxes), boxes=inputs.boxes)
    return backbone.decode(encoded, inputs.index, prompts).low_res_masks


def training_step(
    logits: Callable[[], Tensor],
    parameters: Iterable[nn.Parameter],
    masks: Tensor,
    *,
    dtype: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Step:
    """Return forward, loss, backward and AdamW as one repetition.

    Args:
        logits: The forward pass.
        parameters: What learns; others are left out.
        masks: The truth.
        dtype: Of autocast; None stays in float32.
        scaler: Of the loss, for float16.
    """
    learning = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6)
    scaler = scaler or torch.amp.GradScaler(masks.device.type, enabled=False)

    def step() -> Tensor:
        with half(masks.device.type, dtype):
            low_res_masks = logits()
        loss = medsam_loss(low_res_masks, masks)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    return step


def encoder_step(encoder: nn.Module, images: Tensor, dtype: torch.dtype | None) -> Step:
    """Return one forward pass without gradients."""

    def step() -> Tensor:
        with torch.no_grad(), half(images.device.type, dtype):
            return encoder(images)

    return step


def lora_sides(
    name: str, device: str, *, batch: int, check: bool = False, dtype: torch.dtype | None = None, checkpointing: bool = False
) -> tuple[Callable[[], Step], Callable[[], Step], float | None]:
    """Return makers of a LoRA step, ours and SAMed's on stock, and the distance of their logits in float32 if asked."""
    from medsam_tune.tuners.samed import SamedTuner

    backbone = SamBackbone(f"random_{name}", trainable=["mask_decoder"], checkpointing=checkpointing)
    stock = stock_sam(name, backbone.state_dict(), device)
    add_lora(stock)
    SamedTuner(4).attach(backbone)
    backbone.to(device)
    inputs = make_inputs(backbone, batch, device)

    def theirs(which: Inputs = inputs) -> Tensor:
        return decode(stock, stock.image_encoder(which.normalised), which.boxes)

    error = None
    if check:
        single = make_inputs(backbone, 1, device)
        with torch.no_grad():
            error = relative_error(logits_of(backbone, single), theirs(single))
    return (
        lambda: training_step(partial(logits_of, backbone, inputs), backbone.parameters(), inputs.masks, dtype=dtype),
        lambda: training_step(theirs, stock.parameters(), inputs.masks, dtype=dtype),
        error,
    )
