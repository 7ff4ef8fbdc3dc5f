"""How much faster is training on k objects of an image with one encoder pass than with one box per image?

Usage: python benchmarks/objects.py [--weights lite_medsam] [--objects 1 2 4 8] [--steps 3] [--threads 2]

MedSAM's training script takes one random label of each image: k objects cost k encoder passes. Here all objects of an image
share one pass. Both ways are timed in one process, on the CPU, in turn so that a busy machine slows both alike: (a) one batch
of one image with k boxes, one step; (b) k batches of the same image with one box each, their gradients accumulated, one step. A
step is forward, loss, backward and AdamW on encoder and decoder (or what --trainable names), without an embedding cache. Before
that, both ways must give the same loss. On a busy machine read the CPU seconds, best with --threads 1. The image is synthetic:
its content does not change the time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from medsam_tune.backbone import SamBackbone
from medsam_tune.geometry import InputRule, image_to_input, masks_to_input
from medsam_tune.losses import BceDiceLoss
from medsam_tune.masks import ObjectMasks
from medsam_tune.prompts import BoxPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import Queries, SegmentationBatch, Truth

IMAGE_SIZE = (320, 400)
LOSS_TOLERANCE = 1e-4


def synthetic_batch(n_objects: int, rule: InputRule) -> SegmentationBatch:
    """Return a batch of one smooth random image with ``n_objects`` discs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 12, 15, generator=generator) * 255
    image = torch.nn.functional.interpolate(coarse, IMAGE_SIZE, mode="bicubic")[0].clamp(0, 255)
    y, x = torch.meshgrid(*(torch.arange(length) for length in IMAGE_SIZE), indexing="ij")
    centres = torch.rand(n_objects, 2, generator=generator) * 240 + 40
    discs = torch.stack([(y - row) ** 2 + (x - column) ** 2 < 30**2 for row, column in centres.tolist()])
    masks = ObjectMasks.of(discs)
    image_in, frame = image_to_input(image, rule)
    zero = torch.zeros(1, dtype=torch.int64)
    return SegmentationBatch(
        images=image_in[None],
        queries=Queries(zero.expand(n_objects), zero.expand(n_objects) + 1),
        truth=Truth(masks_to_input(masks, frame, rule.side), (masks,)),
        frames=(frame,),
        sample_index=zero,
        case_index=zero,
        image_ids=("synthetic",),
        case_ids=("synthetic",),
        spacing_mm=((1.0, 1.0),),
        training=True,
    )


def one_object(batch: SegmentationBatch, row: int) -> SegmentationBatch:
    """Return the same image with one of its objects."""
    rows = torch.tensor([row])
    truth = Truth(batch.known_truth.masks.rows(rows), (batch.original_masks[0].rows(rows),))
    return replace(batch, queries=batch.queries.rows(rows), truth=truth)


def loss_of(segmenter: SamSegmenter, batch: SegmentationBatch) -> Tensor:
    """Return the summed loss of one batch, averaged over its objects."""
    return torch.stack(list(BceDiceLoss(squared=True, resolution="input")(segmenter(batch), batch).values())).sum()


def accumulate(segmenter: SamSegmenter, batches: Sequence[SegmentationBatch]) -> float:
    """Run forward and backward over the batches; return their mean loss."""
    total = 0.0
    for batch in batches:
        loss = loss_of(segmenter, batch) / len(batches)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def seconds(step: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(segmenter: SamSegmenter, n_objects: int, steps: int) -> list[str]:
    """Check that both ways agree, then time them in turn; the first step of each is not counted."""
    together = synthetic_batch(n_objects, segmenter.input_rule)
    ways = {"shared": [together], "apart": [one_object(together, row) for row in range(n_objects)]}
    optimizer = torch.optim.AdamW([p for p in segmenter.parameters() if p.requires_grad], lr=1e-6)
    losses = {name: accumulate(segmenter, batches) for name, batches in ways.items()}
    optimizer.zero_grad()
    if abs(losses["shared"] - losses["apart"]) > LOSS_TOLERANCE * losses["apart"]:
        sys.exit(f"{n_objects} objects: the losses differ, {losses}; nothing was timed.")

    def step(batches: Sequence[SegmentationBatch]) -> None:
        accumulate(segmenter, batches)
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(steps + 1):
        for name, batches in ways.items():
            times[name].append(seconds(partial(step, batches)))
    return [row(n_objects, clock, times, column) for column, clock in enumerate(("wall", "CPU"))]


def row(n_objects: int, clock: str, times: dict[str, list[tuple[float, float]]], column: int) -> str:
    """Return one line: median seconds an object, both ways, and their ratio."""
    shared, apart = (statistics.median(pair[column] for pair in times[name][1:]) / n_objects for name in ("shared", "apart"))
    return f"{n_objects:>7} {clock:>6} {apart:>18.3f} {shared:>18.3f} {apart / shared:>7.2f}"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="lite_medsam", help="a name of `medsam-tune weights list`, or random_vit_b")
    parser.add_argument("--trainable", nargs="+", default=["image_encoder", "mask_decoder"], help="parts that learn")
    parser.add_argument("--objects", nargs="+", type=int, default=[1, 2, 4, 8], help="objects of the image")
    parser.add_argument("--objects-per-decode", type=int, default=2, help="objects decoded at once; 0: all")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each kind")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    return parser.parse_args()


def main() -> None:
    """Measure each number of objects and print the table."""
    arguments = parse_arguments()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    backbone = SamBackbone(arguments.weights, trainable=arguments.trainable)
    segmenter = SamSegmenter(SamParts(backbone, BoxPrompt(), objects_per_decode=arguments.objects_per_decode))
    # Eval mode: DropPath would make the two losses differ; it costs nothing.
    segmenter.eval()
    rows = [line for n_objects in arguments.objects for line in measure(segmenter, n_objects, arguments.steps)]
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{arguments.weights}, {' + '.join(arguments.trainable)} learn, {arguments.steps} steps each, ", end="")
    print(f"{torch.get_num_threads()} threads, load {load}")
    print(f"{'objects':>7} {'clock':>6} {'s/object, 1 a pass':>18} {'s/object, shared':>18} {'ratio':>7}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
