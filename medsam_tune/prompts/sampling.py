"""One sampler for every prompt that is drawn from a mask: boxes, jittered boxes, points inside, points outside.

Coordinates are (x, y) pixels of the input frame. A draw depends on the seed, the epoch, the image's name and the object's row
within its image, never on the other images of the batch or on what was drawn before; evaluation repeats the draw of epoch 0.

Sources: MedSAM (bowang-lab/MedSAM @ d71e8a1, train_one_gpu.py) for the box that grows; SAM (arXiv 2304.02643, section A) for
noise as a fraction of the side with a limit in pixels; Huang et al. 2304.14660 for the centre of mass with a fallback and for
background points from the box enlarged twice; Mazurowski et al. 2304.10517 for the pixel farthest from the background.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame, pixel_to_input
from medsam_tune.masks import ObjectMasks
from medsam_tune.types import SegmentationBatch

PointRule = Literal["random", "distance", "mass"]
Mask = NDArray[np.bool_]
# Huang et al. take background points from the true box at twice its side.
NEGATIVE_BOX_SCALE = 2.0


@dataclass(frozen=True)
class BoxJitter:
    """State how far each side of a box moves, each by its own draw.

    Attributes:
        high: Largest move; MedSAM's 20 px belong to its input side of 1024.
        low: Smallest move; equal to ``high`` it moves every side by exactly that.
        unit: ``px``: whole pixels of the input frame; ``fraction``: of the box's own width or height.
        signed: Also move inward, with probability one half; a side never passes the middle of the box. Without it the box
            only grows, so it contains its object.
        max_px: Limit of a move in pixels, for ``fraction``.
    """

    high: float
    low: float = 0.0
    unit: Literal["px", "fraction"] = "px"
    signed: bool = False
    max_px: float | None = None

    def __post_init__(self) -> None:
        key = "model.prompts.init_args.jitter"
        if not 0 <= self.low <= self.high:
            raise RecipeError(f"{key}: expected 0 <= low <= high, got low {self.low} and high {self.high}.")
        if self.unit == "px" and (self.low % 1 or self.high % 1):
            raise RecipeError(
                f"{key}: px are whole, got low {self.low} and high {self.high}. Round them, or set unit: fraction."
            )
        if self.max_px is not None and (self.unit == "px" or self.max_px <= 0):
            raise RecipeError(f"{key}.max_px: limits unit fraction and is above 0, got {self.max_px} with unit {self.unit}.")

    def draw(self, sides: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw four moves in pixels, positive outward, for a box whose sides (x1, y1, x2, y2) measure ``sides`` pixels."""
        if self.unit == "px":
            moves = rng.integers(int(self.low), int(self.high), size=4, endpoint=True).astype(np.float64)
        else:
            moves = np.minimum(rng.uniform(self.low, self.high, size=4) * sides, self.max_px or np.inf)
        return moves * rng.choice((-1.0, 1.0), size=4) if self.signed else moves


def object_generators(batch: SegmentationBatch, *, purpose: str) -> Iterator[np.random.Generator]:
    """Yield one random generator for each of the N objects.

    Args:
        batch: Tells seed, epoch, image and row of each object.
        purpose: Keeps the draws of a box and of a point of the same object apart.
    """
    epoch = batch.epoch if batch.training else 0
    for image, row in zip(batch.image_index.tolist(), object_rows(batch.image_index), strict=True):
        name = f"{purpose}/{batch.seed}/{epoch}/{batch.image_ids[image]}/{row}"
        yield np.random.default_rng(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big"))


def object_rows(image_index: Tensor) -> list[int]:
    """Return the position of each of N objects among the objects of its own image.

    Examples:
        >>> object_rows(torch.tensor([0, 0, 1, 0]))
        [0, 1, 0, 2]
    """
    seen: dict[int, int] = {}
    rows = []
    for image in image_index.tolist():
        rows.append(seen.get(image, 0))
        seen[image] = rows[-1] + 1
    return rows


def visible_masks(batch: SegmentationBatch) -> ObjectMasks:
    """Return the N masks (S, S) with every object shown by at least one pixel.

    An object of a few pixels can vanish when its mask is resized to the input frame; then the input pixel that holds the middle
    one of its original pixels stands for it. An object that is empty at its original size stays empty.
    """
    masks = batch.known_truth.masks
    gone = (~masks.shown()).nonzero()[:, 0].tolist()
    if not gone:
        return masks
    rows, planes = object_rows(batch.image_index), [masks.rows(torch.tensor([row])) for row in range(len(masks))]
    for position in gone:
        image = int(batch.image_index[position])
        pixels = batch.original_masks[image][rows[position]].nonzero()
        if len(pixels):
            corner = pixel_to_input(pixels[len(pixels) // 2], batch.frames[image])
            dot = masks.pixels.new_ones((1, 1))
            planes[position] = ObjectMasks.of_pieces([(dot, corner)], masks.size)
    return ObjectMasks.join(planes)


def whole_image_boxes(frames: Sequence[Frame], device: torch.device | None = None) -> Tensor:
    """Return (B, 4) float32 XYXY pixels of the input frame: the valid area of each image, padding excluded.

    Examples:
        >>> whole_image_boxes([Frame(original_size=(20, 40), input_size=(32, 64))])
        tensor([[ 0.,  0., 63., 31.]])
    """
    corners = [(0, 0, frame.input_size[1] - 1, frame.input_size[0] - 1) for frame in frames]
    return torch.tensor(corners, dtype=torch.float32, device=device).reshape(-1, 4)


def tight_boxes(masks: ObjectMasks, empty: Tensor) -> Tensor:
    """Return the smallest box round each mask; x2 and y2 are the last column and row, as ``torchvision.ops.masks_to_boxes``.

    Args:
        masks: N masks (S, S).
        empty: (N, 4) XYXY pixels, taken for masks without foreground.

    Returns:
        (N, 4) float32 XYXY pixels.
    """
    corners = [(left, top, right - 1, bottom - 1) for top, left, bottom, right in masks.boxes]
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4).to(empty.device)
    return torch.where(masks.shown().to(empty.device)[:, None], boxes, empty)


def jitter_boxes(boxes: Tensor, jitter: BoxJitter, *, limits: Tensor, generators: Iterator[np.random.Generator]) -> Tensor:
    """Move the sides of each box, then cut it to its image.

    Args:
        boxes: (N, 4) XYXY pixels.
        jitter: How far.
        limits: (N, 4) XYXY pixels: the valid area of each object's image.
        generators: One an object.

    Returns:
        (N, 4) float32 XYXY pixels with x1 <= x2 and y1 <= y2.
    """
    moved = [_jitter_box(box, jitter, rng) for box, rng in zip(boxes.double().cpu().numpy(), generators, strict=True)]
    result = torch.from_numpy(np.array(moved, np.float32).reshape(-1, 4)).to(boxes.device)
    low, high = limits[:, :2].repeat(1, 2), limits[:, 2:].repeat(1, 2)
    return result.clamp(min=low, max=high)


def point_inside(mask: Mask, rule: PointRule, rng: np.random.Generator) -> tuple[int, int]:
    """Return the (x, y) of a pixel that lies in ``mask`` (H, W).

    Args:
        mask: At least one pixel is True.
        rule: ``random``: uniform over the mask; ``distance``: farthest from the background, of several one at random;
            ``mass``: the centre of mass where it lies in the mask, else as ``random``.
        rng: Draws what is left to chance.

    Raises:
        ValueError: If the mask is empty.

    Examples:
        >>> point_inside(np.ones((3, 5), bool), "mass", np.random.default_rng(0))
        (2, 1)
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise ValueError("mask must show at least one pixel, got an empty one. Skip empty objects.")
    if rule == "distance":
        rows, columns = _farthest(mask, rows, columns)
    elif rule == "mass":
        y, x = int(np.rint(rows.mean())), int(np.rint(columns.mean()))
        if mask[y, x]:
            return x, y
    # One index for both coordinates: two would give pixels that no mask holds.
    chosen = rng.integers(len(rows))
    return int(columns[chosen]), int(rows[chosen])


def sample_points(
    mask: Mask, region: Mask, *, positives: int, negatives: int, rule: PointRule, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Draw foreground and background points of one object as (x, y, label), label 1 or 0; all are different pixels.

    The first foreground point follows ``rule``, the others are uniform over the mask. Background points are uniform over the
    background in the object's box at twice its side (the whole valid area for an empty object). Where there are too few
    pixels there are fewer points; an empty object has no foreground point.

    Args:
        mask: (S, S), the object.
        region: (S, S), the valid area of its image; no point lies outside.
        positives: Foreground points wanted.
        negatives: Background points wanted.
        rule: Where the first foreground point lies.
        rng: Of this object.
    """
    mask = mask & region
    points = []
    if positives and mask.any():
        x, y = point_inside(mask, rule, rng)
        rest = mask.copy()
        rest[y, x] = False
        points = [(x, y, 1), *((x, y, 1) for x, y in _distinct(rest, positives - 1, rng))]
    if negatives:
        points += [(x, y, 0) for x, y in _distinct(surroundings(mask) & region & ~mask, negatives, rng)]
    return points


def _distinct(mask: Mask, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return []
    chosen = rng.choice(len(rows), size=min(count, len(rows)), replace=False)
    return [(int(columns[i]), int(rows[i])) for i in chosen]


def surroundings(mask: Mask) -> Mask:
    """Return True in the box round a mask (H, W) at twice its side, a pixel wider at least; everywhere if the mask is empty."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return np.ones_like(mask)
    area = np.zeros_like(mask)
    spans = []
    for positions in (rows, columns):
        first, length = int(positions.min()), int(np.ptp(positions)) + 1
        # At least one pixel, so that a one-pixel object has a background round it.
        margin = max(1, round((NEGATIVE_BOX_SCALE - 1) / 2 * length))
        spans.append(slice(max(0, first - margin), first + length + margin))
    area[spans[0], spans[1]] = True
    return area


def _farthest(mask: Mask, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    from scipy import ndimage

    top, left = rows.min(), columns.min()
    # The image's border counts as background, and nothing beyond one pixel round the object can be nearer.
    piece = np.pad(mask[top : rows.max() + 1, left : columns.max() + 1], 1)
    distance = ndimage.distance_transform_edt(piece)
    best_rows, best_columns = np.nonzero(distance == distance.max())
    return best_rows + top - 1, best_columns + left - 1


def _jitter_box(box: NDArray[np.float64], jitter: BoxJitter, rng: np.random.Generator) -> NDArray[np.float64]:
    width, height = box[2] - box[0], box[3] - box[1]
    moves = jitter.draw(np.array([width + 1, height + 1] * 2), rng)
    inward_limit = np.array([width, height] * 2) / 2
    return np.asarray(box + np.array([-1.0, -1.0, 1.0, 1.0]) * np.maximum(moves, -inward_limit))
