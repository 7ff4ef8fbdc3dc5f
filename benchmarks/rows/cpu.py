"""What is measured on a CPU against stock segment_anything, in CPU seconds of one thread. Random weights of true shape."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from inputs import make_inputs
from measure import Result, Settings, Step, alternate, relative_error, resident_mb
from reference.stock import decode, medsam_loss, stock_sam
from segment_anything.modeling.image_encoder import Block
from sides import encoder_step, logits_of, lora_sides
from torch import Tensor, nn

from medsam_tune.backbone import SamBackbone, sam, token_upscaling
from medsam_tune.backbone.engines import Engine
from medsam_tune.backbone.vit import VitBlock
from medsam_tune.segmenters.sam import objects_at_once
from medsam_tune.types import ImageEmbeddings

RUN = Path(__file__).resolve().parents[1] / "run.py"


def encoder_forward(settings: Settings, name: str = "vit_b") -> Result:
    """P5: encoder of ViT-B at 1024 px."""
    backbone = SamBackbone(f"random_{name}")
    stock = stock_sam(name, backbone.state_dict(), "cpu")
    image = make_inputs(backbone, 1, "cpu").normalised
    ours, theirs = encoder_step(backbone.image_encoder, image, None), encoder_step(stock.image_encoder, image, None)
    error = relative_error(ours(), theirs())
    result = alternate(lambda: ours, lambda: theirs, settings, metric=f"encoder forward, {name}", warm_up=0)
    result.error = error
    return result


def window_blocks(settings: Settings) -> Result:
    """P6: forward and backward of a windowed block of ViT-B with frozen weights at 256 px, and at 512 px beside it."""
    results = {size: _window_block(settings, size) for size in (256, 512)}
    result = results[256]
    result.extra["512"] = {"ratio": results[512].ratio, "target": 0.88, "error": results[512].error}
    return result


def _window_block(settings: Settings, size: int) -> Result:
    grid = size // 16
    stock = Block(
        768, 12, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=14, input_size=(grid, grid)
    )
    for table in (stock.attn.rel_pos_h, stock.attn.rel_pos_w):
        nn.init.normal_(table, std=0.02)
    stock.requires_grad_(False)
    ours = VitBlock(copy.deepcopy(stock))
    tokens = torch.randn(1, grid, grid, 768)

    def step(block: nn.Module) -> Tensor:
        leaf = tokens.clone().requires_grad_()
        block(leaf).square().sum().backward()
        return leaf.grad

    error = relative_error(step(ours), step(stock))
    result = alternate(
        lambda: partial(step, ours), lambda: partial(step, stock), settings, metric=f"window block at {size} px, with backward"
    )
    result.error = error
    return result


def lora_memory(settings: Settings, name: str = "vit_b") -> Result:
    """P7: peak resident memory of a LoRA step on all blocks of ViT-B at 1024 px beyond what was there before it."""
    ours, theirs = (_alone(name, side, settings) for side in ("ours", "reference"))
    result = Result("peak RSS of a LoRA step beyond the loaded network, MB", ours, theirs, ours["median"] / theirs["median"])
    result.extra["cpu_s_ratio"] = ours["cpu_s"] / theirs["cpu_s"]
    result.notes.append("each side in a fresh process; one step after no warm-up, so time holds first-touch page faults")
    return result


def lora_alone(side: str, name: str) -> dict[str, Any]:
    """Return memory and CPU seconds of one side's step, the only one of this process."""
    sides = lora_sides(name, "cpu", batch=1, checkpointing=True)
    step: Step = sides[0 if side == "ours" else 1]()
    del sides
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu = resident_mb("VmRSS"), time.process_time()
    step()
    return {"median": resident_mb("VmHWM") - before, "cpu_s": time.process_time() - cpu, "n": 1}


def _alone(name: str, side: str, settings: Settings) -> dict[str, Any]:
    command = [sys.executable, str(RUN), "P7", "--alone", side, *(["--tiny"] if name == "tiny" else [])]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=max(1.0, settings.left))
    return json.loads(found.stdout.splitlines()[-1])


def fast_encoder(settings: Settings, *, engine: Engine) -> Result:
    """P14: the frozen encoder of LiteMedSAM, and the same network with each batch norm run after its convolution."""
    backbone = SamBackbone("random_lite_medsam", engine=engine)
    encoder = backbone.image_encoder
    inputs = make_inputs(backbone, 1, "cpu")
    plain = copy.deepcopy(encoder)
    for module in plain.modules():
        if isinstance(module, nn.Conv2d):
            # A hook keeps the norm from being folded into the convolution.
            module.register_forward_hook(lambda *_: None)
    theirs = encoder_step(plain, inputs.normalised, None)

    def ours() -> Tensor:
        with torch.no_grad():
            return backbone.encode(inputs.encoder).main

    started = time.monotonic()
    ours()  # packs or compiles
    built = time.monotonic() - started
    error = relative_error(ours(), theirs())
    result = alternate(lambda: ours, lambda: theirs, settings, metric="encoder forward, LiteMedSAM")
    result.error = error
    result.extra["first_image_s"] = built
    return result


def boxes_of_an_image(settings: Settings, name: str = "vit_b", *, n_boxes: int = 8) -> Result:
    """P4: a step of the mask decoder on 8 boxes of one image, and 8 steps of one box as MedSAM's loop takes them; no cache."""
    backbone = SamBackbone(f"random_{name}", trainable=["mask_decoder"])
    stock = stock_sam(name, backbone.state_dict(), "cpu")
    stock.image_encoder.requires_grad_(False)
    stock.prompt_encoder.requires_grad_(False)
    one = make_inputs(backbone, 1, "cpu")

    def ours() -> Tensor:
        with torch.no_grad():
            embedding = backbone.encode(one.encoder).main
        losses = [medsam_loss(logits_of(backbone, one, embedding), one.masks) / n_boxes for _ in range(n_boxes)]
        for loss in losses:
            loss.backward()
        return torch.stack(losses).sum().detach()

    def theirs() -> Tensor:
        total = torch.zeros(())
        for _ in range(n_boxes):
            with torch.no_grad():
                embedding = stock.image_encoder(one.normalised)
            loss = medsam_loss(decode(stock, embedding, one.boxes), one.masks) / n_boxes
            loss.backward()
            total += loss.detach()
        return total

    return alternate(lambda: ours, lambda: theirs, settings, metric=f"{n_boxes} boxes of an image", warm_up=0)


def micro_batches(settings: Settings, name: str = "lite_medsam", *, n_boxes: int = 8) -> Result:
    """P15: a decoder step on 8 boxes of one cached image, four decoded at a time as a CPU does, and all together."""
    few, step = objects_at_once(torch.device("cpu"), n_boxes), _boxes_step(name, n_boxes)
    error = relative_error(step(few), step(n_boxes))
    result = alternate(
        lambda: partial(step, few), lambda: partial(step, n_boxes), settings, metric=f"decoder step, {n_boxes} boxes", warm_up=0
    )
    result.error = error
    return result


def shared_layer(settings: Settings, name: str = "lite_medsam", *, n_boxes: int = 8) -> Result:
    """P16: a decoder step on 8 boxes of one cached image, its tokens projected once for the boxes, and once for each box."""
    few, step = objects_at_once(torch.device("cpu"), n_boxes), _boxes_step(name, n_boxes)

    def unshared() -> Tensor:
        with patch.object(sam, "shared_images", lambda *_: None):
            return step(few)

    error = relative_error(step(few), unshared())
    result = alternate(
        lambda: partial(step, few), lambda: unshared, settings, metric=f"decoder step, {n_boxes} boxes", warm_up=0
    )
    result.error = error
    return result


def token_upscaling_step(settings: Settings, name: str = "lite_medsam") -> Result:
    """P17: a decoder step on one box of a cached image, its tokens up-scaled by matrix products, and by the convolutions."""
    step = partial(_boxes_step(name, 1), 1)

    def convolved() -> Tensor:
        with patch.object(token_upscaling, "is_stock_upscaling", lambda _: False):
            return step()

    error = relative_error(step(), convolved())
    result = alternate(lambda: step, lambda: convolved, settings, metric="decoder step, 1 box", warm_up=1)
    result.error = error
    return result


def _boxes_step(name: str, n_boxes: int) -> Callable[[int], Tensor]:
    """Return a step of the mask decoder on boxes of one cached image, given how many are decoded at once."""
    backbone = SamBackbone(f"random_{name}", trainable=["mask_decoder"])
    side = backbone.embedding_size
    embeddings = ImageEmbeddings(torch.randn(1, backbone.embed_dim, side, side))
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]]).expand(n_boxes, 4) + torch.arange(n_boxes)[:, None]
    index, prompts = torch.zeros(n_boxes).long(), backbone.embed_prompts(n_boxes, boxes=boxes)

    def step(at_once: int) -> Tensor:
        parts = [slice(first, first + at_once) for first in range(0, n_boxes, at_once)]
        masks = torch.cat([backbone.decode(embeddings, index[part], prompts.rows(part)).low_res_masks for part in parts])
        masks.square().mean().backward()
        return masks.detach()

    return step
