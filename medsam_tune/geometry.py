"""Original frame, input frame and low-res frame: how pixels, boxes, points and masks move between them.

The input rule belongs to the weights (side, resize, normalisation), so a backbone carries one and everything here reads it.
Boxes are XYXY float32 pixels whose second corner is the last column and row, as ``torchvision.ops.masks_to_boxes`` returns;
points are (x, y) pixels and mean their centres. Training, prediction and automatic masks move both by the functions below.

Source: segment-anything @ dca509f, ``utils/transforms.py`` and ``modeling/sam.py`` (preprocess, postprocess_masks);
MedSAM @ d71e8a1 and its LiteMedSAM branch @ 0c044e9, ``CVPR24_LiteMedSAM_infer.py``, for the min-max rules.

Differs from the authors' code:
- Theirs multiply corners and points by the scale, so that they name other pixels than a mask resized along; equal without a
  resize. LiteMedSAM's also cut box corners to whole pixels.
- How images are resampled is said where the weights' rules stand, ``backbone/input_rules.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.masks import Box, ObjectMasks

SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Resampling:
    """State how the pixels of a resized image follow from those of the stored one.

    Attributes:
        filter: ``area``: the mean over the area that a pixel covers, as OpenCV's ``INTER_AREA`` shrinks; ``bilinear``: a
            triangle, widened where it shrinks, as Pillow's; ``bicubic``: Keys' cubic with a = -0.5, widened likewise.
        eight_bit: Round to whole grey levels, as libraries that work on 8 bits do: ``area`` its result, the others the
            result of each axis.
    """

    filter: Literal["bilinear", "bicubic", "area"] = "bilinear"
    eight_bit: bool = False


@dataclass(frozen=True)
class InputRule:
    """State what a set of weights expects of its input, in numbers; the defaults are SAM's but for its 8 bits.

    Attributes:
        side: S, the side of the square network input in pixels.
        resize: ``longest_side`` keeps the aspect ratio and pads right and bottom; ``square`` stretches.
        shrink: How an image is resampled that has more pixels than the input.
        enlarge: How one is resampled that has fewer.
        min_max: Whether each image's valid area is brought to 0..1 first.
        scale: Factor of the grey levels, 0..255 or 0..1, before the mean is taken off; 1 / 255 where it is meant for 0..1.
        mean: Taken off each channel.
        std: Divides each channel.
        grid: g, the side of the embedding grid, a number of its own; None where the network has no such grid.
    """

    side: int
    resize: Literal["longest_side", "square"] = "longest_side"
    shrink: Resampling = Resampling()
    enlarge: Resampling = Resampling()
    min_max: bool = False
    scale: float = 1.0
    mean: tuple[float, float, float] = SAM_MEAN
    std: tuple[float, float, float] = SAM_STD
    grid: int | None = None


@dataclass(frozen=True)
class Frame:
    """Hold the sizes (H, W) of one image: as stored, and its valid area within the S x S input."""

    original_size: tuple[int, int]
    input_size: tuple[int, int]


def make_frame(original_size: tuple[int, int], rule: InputRule) -> Frame:
    """Return the frame of an image of ``original_size`` (H, W) under ``rule``."""
    if rule.resize == "square":
        return Frame(original_size, (rule.side, rule.side))
    scale = rule.side / max(original_size)
    height, width = (max(1, int(length * scale + 0.5)) for length in original_size)
    return Frame(original_size, (height, width))


def pad_to_side(tensor: Tensor, side: int) -> Tensor:
    """Pad (..., h, w) with zeros at the right and bottom to (..., S, S)."""
    height, width = tensor.shape[-2:]
    return F.pad(tensor, (0, side - width, 0, side - height))


def image_to_input(image: Tensor, rule: InputRule) -> tuple[Tensor, Frame]:
    """Resize an image (3, H, W) in 0..255 and pad it to (3, S, S); the values stay in 0..255."""
    frame = make_frame((int(image.shape[-2]), int(image.shape[-1])), rule)
    resampling = rule.shrink if math.prod(frame.input_size) < math.prod(frame.original_size) else rule.enlarge
    return pad_to_side(resample(image, frame.input_size, resampling), rule.side), frame


def resample(image: Tensor, size: tuple[int, int], resampling: Resampling) -> Tensor:
    """Resize an image (C, H, W) in 0..255 to ``size`` (h, w); of its own size it stays as it is.

    Examples:
        >>> resample(torch.tensor([[[0.0, 3.0, 8.0]]]), (1, 2), Resampling("area"))
        tensor([[[1.0000, 6.3333]]])
    """
    if image.shape[-2:] == size:
        return image
    if resampling.filter == "area":
        return _mean_over_areas(image, size, eight_bit=resampling.eight_bit)
    if not resampling.eight_bit:
        return _interpolate(image, size, resampling.filter)
    for step in ((int(image.shape[-2]), size[1]), size):
        image = (_interpolate(image, step, resampling.filter) + 0.5).floor()
    return image


def areas_covered(n: int, to: int) -> Tensor:
    """Return (to, n) float64: how much of input pixel j output pixel i covers, when n pixels in a row become ``to``.

    Examples:
        >>> areas_covered(3, 2)
        tensor([[1.0000, 0.5000, 0.0000],
                [0.0000, 0.5000, 1.0000]], dtype=torch.float64)
    """
    edges = torch.arange(to + 1, dtype=torch.float64) * n / to
    pixels = torch.arange(n, dtype=torch.float64)
    covered = edges[1:, None].minimum(pixels + 1) - edges[:-1, None].maximum(pixels)
    return covered.clamp(min=0)


def _mean_over_areas(image: Tensor, size: tuple[int, int], *, eight_bit: bool) -> Tensor:
    rows, columns = (areas_covered(n, to).to(image) for n, to in zip(image.shape[-2:], size, strict=True))
    # Whole factors have weights of one, so their sums, and with them the halves that are rounded, are exact.
    area = math.prod(image.shape[-2:]) / math.prod(size)
    mean: Tensor = rows @ image @ columns.T / area
    if not eight_bit:
        return mean
    # OpenCV rounds halves up where it joins two by two pixels, and to even elsewhere.
    return (mean + 0.5).floor() if image.shape[-2:] == (2 * size[0], 2 * size[1]) else mean.round()


def masks_to_input(masks: ObjectMasks, frame: Frame, side: int) -> ObjectMasks:
    """Resize N masks (H, W) to the input frame by nearest neighbour: N masks (S, S).

    An object that no input pixel's centre hits keeps the input pixel that holds the middle one of its pixels, and one longer
    than an input pixel, such as a thin line, all that hold one of its pixels: training never takes it for absent or for a dot.
    """
    taken = [_nearest(length, to) for length, to in zip(masks.size, frame.input_size, strict=True)]
    pieces = zip(masks.pieces(), masks.boxes, strict=True)
    return ObjectMasks.of_pieces((_piece_to_input(piece, box, taken, frame) for piece, box in pieces), (side, side))


def _piece_to_input(piece: Tensor, box: Box, taken: Sequence[Tensor], frame: Frame) -> tuple[Tensor, tuple[int, int]]:
    """Resize what a box of the original shows; return it with the row and column of the input frame at which it begins."""
    # The pixels taken are in order, so a box takes a run of them.
    spans = [torch.searchsorted(pixels, torch.tensor([box[i], box[i + 2]])).tolist() for i, pixels in enumerate(taken)]
    rows, columns = (pixels[slice(*span)] - box[i] for i, (pixels, span) in enumerate(zip(taken, spans, strict=True)))
    resized = piece[rows[:, None], columns]
    if not piece.numel() or resized.any():
        return resized, (spans[0][0], spans[1][0])
    held = _held_by(piece.nonzero() + torch.tensor(box[:2]), frame)
    top, left = (int(places.min()) for places in held)
    shown = torch.zeros([int(places.max()) - int(places.min()) + 1 for places in held], dtype=torch.bool)
    shown[held[0] - top, held[1] - left] = True
    return shown, (top, left)


def _held_by(pixels: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Return rows and columns (k,) of the input pixels that stand for an object of pixels (n, 2) none of which is hit."""
    scale = torch.tensor(frame.input_size, dtype=torch.float64) / torch.tensor(frame.original_size)
    longest = ((pixels.amax(dim=0) - pixels.amin(dim=0) + 1) * scale).max()
    kept = pixels if longest > 1 else pixels[len(pixels) // 2][None]
    y, x = ((kept + 0.5) * scale).long().unbind(dim=1)
    return y, x


def _nearest(length: int, to: int) -> Tensor:
    """Return the pixel (``to``,) int64, of ``length``, that nearest-neighbour resampling takes for each new one."""
    return F.interpolate(torch.arange(length, dtype=torch.float32)[None, None], to, mode="nearest-exact")[0, 0].long()


def pixel_to_input(pixel: Tensor, frame: Frame) -> tuple[int, int]:
    """Return the (y, x) of the input pixel that holds the centre of an original pixel (y, x).

    Examples:
        >>> pixel_to_input(torch.tensor([50, 101]), Frame(original_size=(200, 200), input_size=(10, 10)))
        (2, 5)
    """
    y, x = ((float(value) + 0.5) * to / of for value, to, of in zip(pixel, frame.input_size, frame.original_size, strict=True))
    return int(y), int(x)


def valid_region(frames: Sequence[Frame], side: int, device: torch.device | None = None) -> Tensor:
    """Return (B, 1, S, S) bool: True where the input shows the image, False in the padding."""
    region = torch.zeros(len(frames), 1, side, side, dtype=torch.bool, device=device)
    for row, frame in enumerate(frames):
        region[row, :, : frame.input_size[0], : frame.input_size[1]] = True
    return region


def known_region(frames: Sequence[Frame], ignored: Tensor | None, side: int, device: torch.device | None = None) -> Tensor:
    """Return (B, 1, S, S) bool: True where the input shows the image and somebody annotated it.

    Args:
        frames: B frames.
        ignored: (B, 1, S, S) bool, pixels that nobody annotated, or None.
        side: S.
        device: Of the result.
    """
    region = valid_region(frames, side, device)
    return region if ignored is None else region & ~ignored.to(region.device)


def resize_region(region: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a bool map (N, 1, S, S) to (N, 1, h, w) by nearest neighbour; what is set somewhere never vanishes.

    A map that nearest neighbour misses whole (an image of one row, an object of one pixel) is set wherever it reaches.

    Examples:
        >>> resize_region(torch.eye(4, dtype=torch.bool)[None, None] & (torch.arange(4) == 1), (2, 2))[0, 0].int().tolist()
        [[1, 0], [0, 0]]
    """
    if region.shape[-2:] == size:
        return region
    stored = region.float()
    resized = F.interpolate(stored, size, mode="nearest-exact") > 0.5
    # Asking first whether any map vanished would make a GPU wait.
    return torch.where(resized.flatten(1).any(dim=1)[:, None, None, None], resized, F.adaptive_max_pool2d(stored, size) > 0.5)


def normalise(images: Tensor, frames: Sequence[Frame], rule: InputRule, *, limits: Tensor | None = None) -> Tensor:
    """Normalise (B, 3, S, S) in 0..255 over the valid area, then set the padding to zero, as SAM does.

    A constant image under ``min_max`` becomes the same everywhere, never NaN.

    Args:
        images: What is normalised.
        frames: One an image.
        rule: What the weights expect.
        limits: Images (B, 3, S, S) whose lowest and highest level become 0 and 1 under ``min_max``; ``images`` by default. For
            images into which something was fused these are the unfused ones, so that a few pixels set no contrast.
    """
    region = valid_region(frames, rule.side, images.device)
    levels = _unit_range(images, region, images if limits is None else limits) if rule.min_max else images
    mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in (rule.mean, rule.std))
    return torch.where(region, (levels * rule.scale - mean) / std, 0.0)


def _unit_range(images: Tensor, region: Tensor, limits: Tensor) -> Tensor:
    """Bring the levels that ``limits`` has in the region to 0..1, image by image."""
    low = torch.where(region, limits, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = torch.where(region, limits, -torch.inf).amax(dim=(1, 2, 3), keepdim=True)
    # 1e-8 as in LiteMedSAM's pre-processing; the span is 0 or at least one grey level in practice.
    return (images - low) / (high - low).clamp(min=1e-8)


def to_original(low_res_masks: Tensor, frame: Frame, side: int) -> Tensor:
    """Bring logits (N, M, h, w) over the padded input frame to the original frame: (N, M, H, W) logits.

    Upsample to S, cut the padding off, resample to the original size; threshold the result once.
    """
    masks = low_res_masks
    if masks.shape[-2:] != (side, side):
        masks = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
    masks = masks[..., : frame.input_size[0], : frame.input_size[1]]
    return F.interpolate(masks, frame.original_size, mode="bilinear", align_corners=False)


def points_to_input(points: Tensor, frame: Frame) -> Tensor:
    """Move points (..., 2) in (x, y) pixels from the original frame to the input frame.

    A point names a pixel and means its centre, as SAM's prompt encoder takes it: x' = (x + 0.5) s - 0.5 under a scale s. Stock
    SAM multiplies by s, which pulls a click to the upper left where an image is enlarged; without a resize the two agree.

    Examples:
        >>> points_to_input(torch.tensor([[0.0, 3.0]]), Frame(original_size=(4, 4), input_size=(16, 16)))
        tensor([[ 1.5000, 13.5000]])
    """
    return (points + 0.5) * _scale(frame, points) - 0.5


def points_to_original(points: Tensor, frame: Frame) -> Tensor:
    """Move points (..., 2) in (x, y) pixels from the input frame back to the original frame: x = (x' + 0.5) / s - 0.5."""
    return (points + 0.5) / _scale(frame, points) - 0.5


def boxes_to_input(boxes: Tensor, frame: Frame) -> Tensor:
    """Move boxes (..., 4) in XYXY pixels from the original frame to the input frame.

    Corners are the first and the last column and row, both inside: x1' = x1 s and x2' = (x2 + 1) s - 1 under a scale s. So the
    moved box of an object is, to half a pixel, the box of the moved object. A box that shrinks below one pixel becomes a point.

    Examples:
        >>> boxes_to_input(torch.tensor([12.0, 12.0, 22.0, 22.0]), Frame(original_size=(64, 64), input_size=(256, 256)))
        tensor([48., 48., 91., 91.])
    """
    return _move_boxes(boxes, _scale(frame, boxes))


def boxes_to_original(boxes: Tensor, frame: Frame) -> Tensor:
    """Move boxes (..., 4) in XYXY pixels from the input frame back to the original frame, as ``boxes_to_input`` there."""
    return _move_boxes(boxes, 1 / _scale(frame, boxes))


def _move_boxes(boxes: Tensor, scale: Tensor) -> Tensor:
    first, last = boxes[..., :2] * scale, (boxes[..., 2:] + 1) * scale - 1
    middle = (first + last) / 2
    return torch.cat([first.minimum(middle), last.maximum(middle)], dim=-1)


def _interpolate(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    return F.interpolate(image[None], size, mode=mode, antialias=True, align_corners=False)[0].clamp(0, 255)


def _scale(frame: Frame, like: Tensor) -> Tensor:
    (height, width), (input_height, input_width) = frame.original_size, frame.input_size
    return like.new_tensor((input_width / width, input_height / height))
