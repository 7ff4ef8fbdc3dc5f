"""How much faster is a training step when the frozen encoder's embedding comes from the cache?

Usage: python benchmarks/cache.py [--weights lite_medsam] [--steps 5] [--images 2] [--threads 2]

Measures two recipes in one process, on the CPU, one image and one object a step, with and without cache in turn so that a busy
machine slows both alike: (a) the mask decoder alone learns, prompted by a tight box; (b) AutoSAM's light generator learns. A
step is forward, loss, backward and AdamW; with cache it includes reading the embedding from disk. Before that, both ways must
give the same loss. The encoder runs as PyTorch's modules, which `model.backbone.engine` makes faster. On a busy machine read
the CPU seconds, best with --threads 1. The images are synthetic: their content does not change the time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from medsam_tune.backbone import SamBackbone
from medsam_tune.geometry import Frame, InputRule, image_to_input, masks_to_input
from medsam_tune.losses import BceDiceLoss
from medsam_tune.masks import ObjectMasks
from medsam_tune.precompute import EmbeddingPrecompute, open_store
from medsam_tune.precompute.fill import fill, lookup
from medsam_tune.prompt_encoders import HarDNetPromptGenerator
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import EncoderInput, Queries, SegmentationBatch, Truth

IMAGE_SIZE = (320, 400)
# fp16 rounds the embedding to three digits.
LOSS_TOLERANCE = 1e-2

Find = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class Measurement:
    """Hold (wall, CPU) seconds of each step without and with cache."""

    name: str
    plain: list[tuple[float, float]]
    cached: list[tuple[float, float]]

    def rows(self) -> list[str]:
        """Return one line for wall and one for CPU seconds: medians and their ratio."""
        lines = []
        for column, clock in enumerate(("wall", "CPU")):
            plain, cached = (statistics.median(pair[column] for pair in pairs) for pairs in (self.plain, self.cached))
            lines.append(f"{self.name + ', ' + clock:<32} {plain:>14.3f} {cached:>14.3f} {plain / cached:>9.1f}")
        return lines


def synthetic_image(index: int, rule: InputRule) -> tuple[Tensor, ObjectMasks, Frame]:
    """Return a smooth random image (3, S, S), an ellipse in it at its original size, and their frame."""
    generator = torch.Generator().manual_seed(index)
    coarse = torch.rand(1, 3, 12, 15, generator=generator) * 255
    image = torch.nn.functional.interpolate(coarse, IMAGE_SIZE, mode="bicubic")[0].clamp(0, 255)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, length) for length in IMAGE_SIZE), indexing="ij")
    mask = (x / 0.4) ** 2 + (y / 0.5) ** 2 < 1
    image_in, frame = image_to_input(torch.where(mask, 0.5 * image + 120, image), rule)
    return image_in, ObjectMasks.of(mask[None]), frame


def synthetic_batch(index: int, rule: InputRule) -> SegmentationBatch:
    """Return a batch of one synthetic image with one object."""
    image, mask, frame = synthetic_image(index, rule)
    zero = torch.zeros(1, dtype=torch.int64)
    return SegmentationBatch(
        images=image[None],
        queries=Queries(zero, zero + 1),
        truth=Truth(masks_to_input(mask, frame, rule.side), (mask,)),
        frames=(frame,),
        sample_index=zero + index,
        case_index=zero + index,
        image_ids=(str(index),),
        case_ids=(str(index),),
        spacing_mm=((1.0, 1.0),),
    )


def fill_store(backbone: SamBackbone, n_images: int, root: Path) -> Find:
    """Encode the synthetic images into a store and return its lookup."""
    rule = backbone.input_rule
    identity = backbone.weights

    def encode(images: Tensor, frames: Sequence[Frame]) -> Tensor:
        return backbone.encode(EncoderInput(images, tuple(frames))).main

    def load(item: tuple[int, ...]) -> tuple[Tensor, Frame]:
        image, _, frame = synthetic_image(item[0], rule)
        return image, frame

    precompute = EmbeddingPrecompute(
        weights_name=identity.name, weights_sha256=identity.sha256, rule=rule, load=load, encode=encode
    )
    store = open_store(precompute, root)
    return lookup(store, precompute, fill(store, precompute, [(index, 0) for index in range(n_images)]).keys)


def loss_of(segmenter: SamSegmenter, batch: SegmentationBatch) -> Tensor:
    """Return the summed loss of one batch."""
    return torch.stack(list(BceDiceLoss()(segmenter(batch), batch).values())).sum()


def with_embedding(batch: SegmentationBatch, find: Find) -> SegmentationBatch:
    """Read the batch's embedding from the store."""
    return replace(batch, image_embeddings=find(int(batch.sample_index[0]), 0)[None])


def measure(name: str, segmenter: SamSegmenter, batches: list[SegmentationBatch], find: Find, steps: int) -> Measurement:
    """Check that both ways agree, then time them in turn; the first step of each is not counted."""
    check_equal_losses(name, segmenter, batches[0], find)
    optimizer = torch.optim.AdamW([p for p in segmenter.parameters() if p.requires_grad], lr=1e-4)

    def seconds(batch: SegmentationBatch, *, cached: bool) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = loss_of(segmenter, with_embedding(batch, find) if cached else batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - wall, time.process_time() - cpu

    plain, cached = [], []
    for step in range(steps + 1):
        batch = batches[step % len(batches)]
        plain.append(seconds(batch, cached=False))
        cached.append(seconds(batch, cached=True))
    return Measurement(name, plain[1:], cached[1:])


def check_equal_losses(name: str, segmenter: SamSegmenter, batch: SegmentationBatch, find: Find) -> None:
    """Stop when the cached embedding gives another loss than the encoder."""
    with torch.no_grad():
        plain = loss_of(segmenter, batch).item()
        cached = loss_of(segmenter, with_embedding(batch, find)).item()
    if abs(plain - cached) > LOSS_TOLERANCE * abs(plain):
        sys.exit(f"{name}: the loss is {plain:.6f} without cache and {cached:.6f} with it; nothing was timed.")
    print(f"{name}: loss {plain:.6f} without cache, {cached:.6f} with it")


def segmenters(weights: str) -> dict[str, SamSegmenter]:
    """Return the two recipes that are compared; their encoder runs as PyTorch's modules, as it does in everybody's loop."""
    generator = HarDNetPromptGenerator(arch="39ds", gen_size=256, width=64, init="neutral")
    return {
        "decoder only, tight box": SamSegmenter(
            SamParts(SamBackbone(weights, trainable=["mask_decoder"], engine="torch"), BoxPrompt("tight"))
        ),
        "AutoSAM, HarDNet-39ds": SamSegmenter(SamParts(SamBackbone(weights, engine="torch"), prompt_encoder=generator)),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="lite_medsam", help="a name of `medsam-tune weights list`, or random_vit_b")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each kind")
    parser.add_argument("--images", type=int, default=2, help="different images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    return parser.parse_args()


def main() -> None:
    """Measure both recipes and print the table."""
    arguments = parse_arguments()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, segmenter in segmenters(arguments.weights).items():
            segmenter.train()
            batches = [synthetic_batch(index, segmenter.input_rule) for index in range(arguments.images)]
            find = fill_store(segmenter.backbone, arguments.images, Path(folder))
            rows += measure(name, segmenter, batches, find, arguments.steps).rows()
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{arguments.weights}, batch 1, {arguments.steps} steps each, {torch.get_num_threads()} threads, load {load}")
    print(f"{'median seconds a step':<32} {'without cache':>14} {'with cache':>14} {'ratio':>9}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
