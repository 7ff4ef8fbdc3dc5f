"""Drawn images with questions and the tuned network's own answers: what every export is checked against.

The images are drawn by formula, so that no patient's pixel leaves with a model, and lie in the input frame already, their
longest side S, so that a foreign tool resamples nothing: what is compared are weights and graphs, not ways of resizing. Each
names an original size beside, to which its masks are brought.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medsam_tune.geometry import Frame, InputRule, make_frame, to_original
from medsam_tune.inference.new_images import image_tensor, new_batch
from medsam_tune.inference.stitching import embedded
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.types import SegmentationBatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFERENCE_FILE = "reference.npz"
# Points as (y, x) fractions of the image, 1 foreground, 0 background; the first lies on the larger ellipse.
_POINTS = (
    (0.40, 0.40, 1), (0.90, 0.90, 0), (0.45, 0.35, 1), (0.30, 0.45, 1), (0.10, 0.95, 0),
    (0.50, 0.50, 1), (0.95, 0.05, 0), (0.35, 0.30, 1), (0.05, 0.60, 0),
)  # fmt: skip
_BOX = (0.15, 0.15, 0.65, 0.70)


@dataclass(frozen=True)
class Question:
    """Hold what is asked about one image; coordinates are pixels of the input frame.

    Attributes:
        image: Position of the image.
        points: (P, 2) float32 (x, y); P may be 0.
        labels: (P,) int64, 1 foreground, 0 background.
        box: (4,) float32 XYXY, or (0,) where none is given.
    """

    image: int
    points: NDArray[np.float32]
    labels: NDArray[np.int64]
    box: NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """Hold what the network said.

    Attributes:
        low_res_masks: (M, h, w) float32 logits over the padded input frame; of classes (1 + K, h, w) scores, background first.
        iou_predictions: (M,) float32; (0,) where there is no such head.
        masks: (M, H, W) bool of the original size; of classes (K, H, W).
    """

    low_res_masks: NDArray[np.float32]
    iou_predictions: NDArray[np.float32]
    masks: NDArray[np.bool_]


@dataclass(frozen=True)
class Reference:
    """Hold images, questions and answers.

    Attributes:
        images: (h, w, 3) uint8 each, the longest side S.
        original_sizes: (H, W) of each, to which masks are brought.
        questions: What is asked.
        answers: One a question.
    """

    images: tuple[NDArray[np.uint8], ...]
    original_sizes: tuple[tuple[int, int], ...]
    questions: tuple[Question, ...]
    answers: tuple[Answer, ...]

    def packed(self) -> bytes:
        """Return the content of ``reference.npz``."""
        arrays: dict[str, NDArray[np.generic]] = {"original_sizes": np.array(self.original_sizes, dtype=np.int64)}
        arrays |= {f"image_{number}": image for number, image in enumerate(self.images)}
        for number, (asked, said) in enumerate(zip(self.questions, self.answers, strict=True)):
            named = {"image": np.int64(asked.image), "points": asked.points, "labels": asked.labels, "box": asked.box}
            said_too = {name: getattr(said, name) for name in ("low_res_masks", "iou_predictions", "masks")}
            arrays |= {f"question_{number}_{name}": value for name, value in {**named, **said_too}.items()}
        content = io.BytesIO()
        save: Any = np.savez_compressed  # whose stub takes a flag among the arrays
        save(content, **arrays)
        return content.getvalue()


def make_reference(segmenter: Segmenter) -> Reference:
    """Ask the network about the drawn images: three aspect ratios; a box, and 1, 2 and 9 points, where it takes prompts.

    Args:
        segmenter: In eval mode, on the CPU.
    """
    rule = segmenter.input_rule
    sizes = _original_sizes(rule)
    images = tuple(drawn_image(make_frame(size, rule).input_size) for size in sizes)
    questions = tuple(_questions(images, prompted=segmenter.takes_prompts() and not segmenter.classes()))
    answers: list[Answer] = []
    for number, image in enumerate(images):
        with torch.no_grad():
            batch = embedded(segmenter, _batch(segmenter, image, sizes[number]))
            answers += [_answer(segmenter, batch, asked) for asked in questions if asked.image == number]
    return Reference(images, sizes, questions, tuple(answers))


def drawn_image(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8: two textured ellipses on a slope; its grey levels span 0..255."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y / max(height - 1, 1), x / max(width - 1, 1)
    grey = 40 + 60 * x
    for middle_y, middle_x, radius_y, radius_x, level in ((0.40, 0.42, 0.22, 0.24, 200), (0.75, 0.70, 0.12, 0.15, 140)):
        inside = ((y - middle_y) / radius_y) ** 2 + ((x - middle_x) / radius_x) ** 2 < 1
        grey = np.where(inside, level + 20 * np.sin(9 * (x + y)), grey)
    grey[0, 0], grey[-1, -1] = 0, 255
    return np.repeat(grey.round().astype(np.uint8)[..., None], 3, axis=2)


def _original_sizes(rule: InputRule) -> tuple[tuple[int, int], ...]:
    """Return as large as the input, half as large and 3 : 4, upright and 2 : 1."""
    side = rule.side
    return (side, side), (side * 3 // 8, side // 2), (side, side // 2)


def _questions(images: Sequence[NDArray[np.uint8]], *, prompted: bool) -> Iterator[Question]:
    for number, image in enumerate(images):
        extent = np.array(image.shape[1::-1], dtype=np.float32)
        none, no_labels = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
        box = np.concatenate([np.floor(extent * _BOX[:2]), np.floor(extent * _BOX[2:])]).astype(np.float32)
        if not prompted:
            yield Question(number, none, no_labels, np.zeros(0, np.float32))
            continue
        yield Question(number, none, no_labels, box)
        for count in (1, 2, 9):
            points = np.array([(x, y) for y, x, _ in _POINTS[:count]], dtype=np.float32)
            labels = np.array([label for *_, label in _POINTS[:count]], dtype=np.int64)
            yield Question(number, np.floor(extent * points), labels, np.zeros(0, np.float32))


def _batch(segmenter: Segmenter, image: NDArray[np.uint8], original_size: tuple[int, int]) -> SegmentationBatch:
    batch = new_batch([image_tensor(image)], segmenter)
    height, width = image.shape[:2]
    return replace(batch, frames=(Frame(original_size, (height, width)),))


def _answer(segmenter: Segmenter, batch: SegmentationBatch, asked: Question) -> Answer:
    queries = batch.queries
    if len(asked.box):
        queries = replace(queries, boxes=torch.from_numpy(asked.box)[None])
    if len(asked.points):
        coords, labels = torch.from_numpy(asked.points)[None], torch.from_numpy(asked.labels)[None]
        queries = replace(queries, point_coords=coords, point_labels=labels)
    said = segmenter(replace(batch, queries=queries))
    frame, side = batch.frames[0], segmenter.input_rule.side
    if said.class_logits is not None:
        upscaled = to_original(said.class_logits.float(), frame, side)[0]
        masks = torch.stack([upscaled.argmax(dim=0) == number for number in range(1, len(upscaled))])
        return Answer(said.class_logits[0].float().numpy(), np.zeros(0, np.float32), masks.numpy())
    masks = to_original(said.low_res_masks.float(), frame, side)[0] > 0
    ious = np.zeros(0, np.float32) if said.iou_predictions is None else said.iou_predictions[0].float().numpy()
    return Answer(said.low_res_masks[0].float().numpy(), ious, masks.numpy())
