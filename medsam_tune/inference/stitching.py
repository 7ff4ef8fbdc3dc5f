"""Tiles back into images: which image a batch shows, its objects, and their logits at the image's own size.

Where tiles overlap, the logits of all that were asked for an object are averaged, at the original resolution, and thresholded
once. A pixel on none of an object's tiles is not the object.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medsam_tune.geometry import Frame, to_original
from medsam_tune.inference.flipped_views import seen_in_views
from medsam_tune.inference.small_parts import thresholded
from medsam_tune.inference.windows import answer_windows, joined, slice_parts
from medsam_tune.masks import ObjectMasks
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.semantic import class_rows, class_winners
from medsam_tune.types import MaskPrediction, SegmentationBatch

_PIXELS_AT_ONCE = 2**24  # 64 MB of float32
# Far below the threshold, and finite, so that averages stay numbers.
_NOT_ASKED = -30.0


@dataclass(frozen=True)
class AskedImage:
    """Hold what a batch says of one image, whether it stands there whole or in tiles.

    Attributes:
        rows: The batch's rows that show it, one of an image that is whole.
        sample_index: Position in the source of whole images.
        case_index: Position of its case in the sorted case list.
        image_id: Its name.
        case_id: Its case.
        size: (H, W).
        spacing_mm: Row and column spacing.
        labels: (n,) int64, the label of each object.
        objects: For each object, (object of the batch, row of the batch) wherever it was asked for.
    """

    rows: tuple[int, ...]
    sample_index: int
    case_index: int
    image_id: str
    case_id: str
    size: tuple[int, int]
    spacing_mm: tuple[float, float]
    labels: Tensor
    objects: tuple[tuple[tuple[int, int], ...], ...]


def answer(segmenter: Segmenter, batch: SegmentationBatch) -> MaskPrediction:
    """Return what a segmenter predicts for a batch, over all its ``views_at_test``.

    Of an image's tiles it sees ``at_once`` at a time, of a volume ``chunk_length`` slices (``windows.answer_windows``).
    """
    if batch.window_stride:
        said = answer_windows(segmenter, batch)
    elif not batch.at_once or batch.n_images <= batch.at_once:
        said = seen_in_views(segmenter, batch)
    else:
        said = joined([seen_in_views(segmenter, part) for part in _parts(batch)])
    return replace(said, smallest_part=segmenter.smallest_part)


def embedded(segmenter: Segmenter, batch: SegmentationBatch) -> SegmentationBatch:
    """Return the batch with the embeddings of its images, made as ``answer`` asks.

    Of a volume whose slices the network mixes there is not one embedding a slice: the batch stays as it is.
    """
    if batch.window_stride and segmenter.mixes_slices():
        return batch
    if not batch.window_stride and (not batch.at_once or batch.n_images <= batch.at_once):
        return segmenter.embedded(batch)
    made = [segmenter.embedded(part).image_embeddings for part in _parts(batch)]
    embeddings = [part for part in made if part is not None]
    return replace(batch, image_embeddings=torch.cat(embeddings)) if embeddings else batch


def asked_images(batch: SegmentationBatch) -> list[AskedImage]:
    """Return the images of a batch: one a row, or one for all tiles of it."""
    groups: dict[int, list[int]] = {}
    for row in range(batch.n_images):
        groups.setdefault(batch.tiles[row].image_index if batch.tiles else row, []).append(row)
    of_row: list[list[int]] = [[] for _ in range(batch.n_images)]
    for number, row in enumerate(batch.image_index.tolist()):
        of_row[row].append(number)
    return [_asked_image(batch, tuple(rows), of_row) for rows in groups.values()]


def true_masks(batch: SegmentationBatch, image: AskedImage) -> ObjectMasks:
    """Return the true masks (H, W) of an image's n objects, joined over its tiles."""
    if not batch.tiles:
        return batch.original_masks[image.rows[0]]
    first = _first_objects(batch)

    def plane(places: tuple[tuple[int, int], ...]) -> Tensor:
        mask = torch.zeros(image.size, dtype=torch.bool)
        for position, row in places:
            mask[batch.tiles[row].area] |= batch.original_masks[row][position - first[row]]
        return mask

    return ObjectMasks.of_planes((plane(places) for places in image.objects), image.size)


def known_pixels(batch: SegmentationBatch, image: AskedImage) -> Tensor | None:
    """Return (H, W) bool of what somebody annotated, or None where all of it is known."""
    if not batch.original_ignored:
        return None
    if not batch.tiles:
        return ~batch.original_ignored[image.rows[0]]
    known = torch.ones(image.size, dtype=torch.bool)
    for row in image.rows:
        known[batch.tiles[row].area] &= ~batch.original_ignored[row]
    return known


def mask_chunks(prediction: MaskPrediction, batch: SegmentationBatch, image: AskedImage, side: int) -> Iterator[Tensor]:
    """Yield an image's predicted masks at its own size, a few objects at a time: (c, H, W) bool, at least one tensor.

    Specks below the prediction's ``smallest_part`` are not in them.
    Where the network labels pixels, the scores of the classes are brought there and compared there.

    Args:
        prediction: Logits (N, M, h, w); mask 0 of the M candidates is taken.
        batch: What was asked.
        image: One of ``asked_images(batch)``.
        side: S, the side of the input frame in pixels.
    """
    if prediction.class_logits is not None:
        yield _class_masks(prediction.class_logits, batch, image, side)
        return
    for logits in logit_chunks(prediction, batch, image, side):
        yield thresholded(logits, prediction.smallest_part)


def logit_chunks(prediction: MaskPrediction, batch: SegmentationBatch, image: AskedImage, side: int) -> Iterator[Tensor]:
    """Yield the logits of an image's objects at its own size, a few objects at a time: (c, H, W), at least one tensor.

    Args:
        prediction: Logits (N, M, h, w); mask 0 of the M candidates is taken. What labels pixels has no logits of objects.
        batch: What was asked.
        image: One of ``asked_images(batch)``.
        side: S, the side of the input frame in pixels.
    """
    step = max(1, _PIXELS_AT_ONCE // max(image.size[0] * image.size[1], side * side))
    for start in range(0, max(1, len(image.objects)), step):
        yield _logits(prediction.low_res_masks[:, :1], batch, image, slice(start, start + step), side)


def stitched(maps: Tensor, frames: list[Frame], areas: list[tuple[slice, slice]], size: tuple[int, int], side: int) -> Tensor:
    """Average what T tiles say of one image: (H, W) logits, far below 0 where no tile lies.

    Args:
        maps: (T, h, w) logits over the padded input frame.
        frames: T frames of the tiles.
        areas: T places, rows and columns of the image.
        size: (H, W) of the image.
        side: S, the side of the input frame in pixels.
    """
    total, count = maps.new_zeros(size, dtype=torch.float32), maps.new_zeros(size, dtype=torch.float32)
    for logits, frame, area in zip(maps, frames, areas, strict=True):
        total[area] += to_original(logits.float()[None, None], frame, side)[0, 0]
        count[area] += 1
    return torch.where(count > 0, total / count.clamp(min=1), _NOT_ASKED)


def _parts(batch: SegmentationBatch) -> Iterator[SegmentationBatch]:
    if batch.window_stride:
        yield from slice_parts(batch)
        return
    for start in range(0, batch.n_images, batch.at_once):
        yield batch.part(start, start + batch.at_once)


def _asked_image(batch: SegmentationBatch, rows: tuple[int, ...], of_row: list[list[int]]) -> AskedImage:
    first, tiled = rows[0], bool(batch.tiles)
    places: dict[object, list[tuple[int, int]]] = {}
    for row in rows:
        for number in of_row[row]:
            # Objects of a whole image are what they are; on tiles, label and number say which are the same.
            places.setdefault(_identity(batch, number) if tiled else number, []).append((number, row))
    objects = tuple(tuple(found) for found in places.values())
    tile = batch.tiles[first] if tiled else None
    return AskedImage(
        rows=rows,
        sample_index=int(batch.sample_index[first]) if tile is None else tile.image_index,
        case_index=int(batch.case_index[first]),
        image_id=batch.image_ids[first] if tile is None else tile.image_id,
        case_id=batch.case_ids[first],
        size=batch.frames[first].original_size if tile is None else tile.image_size,
        spacing_mm=batch.spacing_mm[first],
        labels=batch.labels[[found[0][0] for found in objects]] if objects else batch.labels[:0],
        objects=objects,
    )


def _identity(batch: SegmentationBatch, number: int) -> tuple[int, int]:
    return int(batch.labels[number]), 0 if batch.object_ids is None else int(batch.object_ids[number])


def _first_objects(batch: SegmentationBatch) -> list[int]:
    """Return the position of each row's first object among the batch's."""
    counts = [len(masks) for masks in batch.original_masks]
    return [sum(counts[:row]) for row in range(len(counts))]


def _logits(low_res: Tensor, batch: SegmentationBatch, image: AskedImage, chosen: slice, side: int) -> Tensor:
    objects = image.objects[chosen]
    if not objects:
        return low_res.new_zeros((0, *image.size))
    if not batch.tiles:
        numbers = [found[0][0] for found in objects]
        return to_original(low_res[numbers].float(), batch.frames[image.rows[0]], side)[:, 0]
    rows = [[row for _, row in found] for found in objects]
    return torch.stack(
        [
            stitched(low_res[[n for n, _ in found], 0], *_places(batch, where), image.size, side)
            for found, where in zip(objects, rows, strict=True)
        ]
    )


def _places(batch: SegmentationBatch, rows: list[int] | tuple[int, ...]) -> tuple[list[Frame], list[tuple[slice, slice]]]:
    return [batch.frames[row] for row in rows], [batch.tiles[row].area for row in rows]


def _class_masks(class_logits: Tensor, batch: SegmentationBatch, image: AskedImage, side: int) -> Tensor:
    if not batch.tiles:
        return class_rows(class_logits[image.rows[0]], batch.frames[image.rows[0]], side)
    places = _places(batch, image.rows)
    rows = list(image.rows)
    return class_winners(stitched(class_logits[rows, k], *places, image.size, side) for k in range(class_logits.shape[1]))
