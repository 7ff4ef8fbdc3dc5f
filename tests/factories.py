"""Small batches with known content, for every room's tests."""

from __future__ import annotations

import torch

from medsam_tune.geometry import InputRule, image_to_input, masks_to_input
from medsam_tune.types import SegmentationBatch


def make_batch(
    *,
    side: int = 64,
    sizes: tuple[tuple[int, int], ...] = ((40, 64), (64, 48)),
    objects: tuple[int, ...] | None = None,
    seed: int = 0,
    rule: InputRule | None = None,
) -> SegmentationBatch:
    """One image per size (H, W), with rectangles as objects (one an image unless ``objects`` says how many)."""
    rule = rule or InputRule(side=side)
    generator = torch.Generator().manual_seed(seed)
    objects = objects or (1,) * len(sizes)
    images, frames, masks, original, index = [], [], [], [], []
    for row, ((height, width), count) in enumerate(zip(sizes, objects, strict=True)):
        image = torch.rand(3, height, width, generator=generator) * 255
        objs = torch.zeros(count, height, width, dtype=torch.bool)
        for k in range(count):
            top, left = height // 8 * (k + 1), width // 8 * (k + 1)
            objs[k, top : top + height // 3, left : left + width // 3] = True
        image_in, frame = image_to_input(image, rule)
        images.append(image_in)
        frames.append(frame)
        masks.append(masks_to_input(objs, frame, rule.side)[:, None])
        original.append(objs)
        index += [row] * count
    n = len(sizes)
    return SegmentationBatch(
        images=torch.stack(images),
        masks=torch.cat(masks),
        image_index=torch.tensor(index, dtype=torch.int64),
        labels=torch.ones(len(index), dtype=torch.int64),
        frames=tuple(frames),
        original_masks=tuple(original),
        sample_index=torch.arange(n),
        case_index=torch.arange(n),
        image_ids=tuple(f"image_{i}" for i in range(n)),
        case_ids=tuple(f"case_{i}" for i in range(n)),
        spacing_mm=((1.0, 1.0),) * n,
    )
