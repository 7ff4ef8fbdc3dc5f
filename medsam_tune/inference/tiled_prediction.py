"""New images in tiles, as they were trained on: cut, asked tile by tile, and answered whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medsam_tune.data.tiles import tile_grid
from medsam_tune.inference.new_images import new_batch
from medsam_tune.inference.stitching import answer, asked_images, stitched
from medsam_tune.inference.user_prompts import user_queries
from medsam_tune.samples import Tile
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.semantic import class_margins
from medsam_tune.types import MaskPrediction, SegmentationBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TILES_AT_ONCE = 4
_NAME = "image"


def tiled_batch(image: Tensor, segmenter: Segmenter, size: int, overlap: int) -> SegmentationBatch:
    """Return the batch of an image's (3, H, W) tiles, each asked as a new image is.

    Args:
        image: In 0..255.
        segmenter: Says what a new image is asked for.
        size: Side of a tile in pixels of the image.
        overlap: Pixels that neighbours share at least.
    """
    whole = (int(image.shape[-2]), int(image.shape[-1]))
    tiles = tuple(Tile(top, left, shape, 0, _NAME, whole) for top, left, shape in tile_grid(whole, size, overlap))
    batch = new_batch([image[:, rows, columns] for rows, columns in (tile.area for tile in tiles)], segmenter)
    return replace(batch, tiles=tiles, at_once=_TILES_AT_ONCE)


def with_prompts(batch: SegmentationBatch, n_objects: int, prompts: Mapping[str, Any]) -> SegmentationBatch:
    """Return the batch of tiles, asked for N objects on each tile that their prompt touches.

    A box is cut at the tile's border; a point counts where it lies, and a tile with no foreground point is not asked.

    Args:
        batch: Of ``tiled_batch``.
        n_objects: N.
        prompts: ``boxes`` (N, 4), ``point_coords`` (N, P, 2) and ``point_labels`` (N, P) in pixels of the whole image, or None.

    Raises:
        ValueError: If a prompt is of another kind or shape, or touches no pixel of the image.
    """
    if prompts.get("mask_inputs") is not None:
        raise ValueError("mask_input belongs to one input frame, but this image is cut into tiles. Give a box or points.")
    given = {name: np.asarray(value, np.float32) for name, value in prompts.items() if value is not None}
    pairs = [
        (number, row, drawn)
        for number in range(n_objects)
        for row, tile in enumerate(batch.tiles)
        if (drawn := _on_tile({name: values[number] for name, values in given.items()}, tile)) is not None
    ]
    missed = set(range(n_objects)) - {number for number, *_ in pairs}
    if missed:
        raise ValueError(f"the prompts of objects {sorted(missed)} touch no pixel of the image {batch.tiles[0].image_size}.")
    rows = torch.tensor([row for _, row, _ in pairs], device=batch.image_index.device)
    queries = replace(batch.queries.rows(rows), names=())
    drawn = {name: np.stack([each[name] for *_, each in pairs]) for name in given}
    queries = user_queries(queries, batch.frames[0], **drawn)
    numbers = torch.tensor([number + 1 for number, *_ in pairs], device=rows.device)
    return replace(batch, queries=replace(queries, labels=torch.ones_like(numbers)), object_ids=numbers)


def answer_tiles(segmenter: Segmenter, batch: SegmentationBatch) -> tuple[Tensor, Tensor | None]:
    """Return logits (N, 1, H, W) of the whole image, and the predicted IoU (N, 1), averaged over an object's tiles.

    Of classes the logits (K, 1, H, W) are above 0 where a class has the largest score.
    """
    (image,) = asked_images(batch)
    with torch.no_grad():
        prediction = answer(segmenter, batch)
    side = segmenter.input_rule.side

    def whole(maps: Tensor, rows: list[int]) -> Tensor:
        frames, areas = [batch.frames[row] for row in rows], [batch.tiles[row].area for row in rows]
        return stitched(maps, frames, areas, image.size, side)

    if prediction.class_logits is not None:
        every = list(image.rows)
        scores = torch.stack([whole(prediction.class_logits[:, k], every) for k in range(prediction.class_logits.shape[1])])
        return class_margins(scores[None])[0, 1:, None], None
    logits = [
        whole(prediction.low_res_masks[[n for n, _ in places], 0], [row for _, row in places]) for places in image.objects
    ]
    return torch.stack(logits)[:, None], _mean_ious(prediction, image.objects)


def _mean_ious(prediction: MaskPrediction, objects: tuple[tuple[tuple[int, int], ...], ...]) -> Tensor | None:
    ious = prediction.iou_predictions
    if ious is None:
        return None
    return torch.stack([ious[[number for number, _ in places], :1].mean(dim=0) for places in objects])


def _on_tile(prompts: Mapping[str, NDArray[np.float32]], tile: Tile) -> dict[str, NDArray[np.float32]] | None:
    """Return an object's prompts in pixels of a tile, or None where they do not touch it."""
    drawn = {}
    height, width = tile.size
    corner = np.array([tile.left, tile.top], np.float32)
    if "boxes" in prompts:
        low, high = prompts["boxes"][:2] - corner, prompts["boxes"][2:] - corner
        last = np.array([width - 1, height - 1], np.float32)
        if (high < 0).any() or (low > last).any():
            return None
        drawn["boxes"] = np.concatenate([np.clip(low, 0, last), np.clip(high, 0, last)])
    if "point_coords" in prompts:
        coords, labels = prompts["point_coords"] - corner, prompts["point_labels"]
        inside = ((coords >= 0) & (coords < [width, height])).all(axis=-1) & (labels >= 0)
        if not (inside & (labels == 1)).any() and "boxes" not in drawn:
            return None
        drawn |= {"point_coords": np.where(inside[:, None], coords, 0), "point_labels": np.where(inside, labels, -1)}
    return drawn
