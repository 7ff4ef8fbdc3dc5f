"""Segment one image with a tuned model, in the spirit of segment-anything's ``SamPredictor``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medsam_tune.fusion.samaug import priors_to_input, render_priors
from medsam_tune.geometry import Frame, boxes_to_input, image_to_input, to_original
from medsam_tune.prompts.base import PromptSource
from medsam_tune.segmenters.base import Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter, class_rows
from medsam_tune.types import AutomaticMasks, MaskPrediction, PromptEmbeddings, SegmentationBatch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from medsam_tune.backbone.base import Backbone


class Predictor:
    """Hold a segmenter in eval mode and one current image.

    The image must be on the grey scale the model was trained on: 0..255 after the data source's window or percentile
    rule. ``uint8`` is taken as it is; any other type needs ``intensity``, the (low, high) that become 0 and 255.

    Args:
        segmenter: A trained segmenter; it runs on the device its parameters lie on.

    Example:
        >>> from medsam_tune import Predictor, SamBackbone, SamSegmenter, NoPrompt
        >>> predictor = Predictor(SamSegmenter(SamBackbone("random_tiny"), NoPrompt()))
        >>> predictor.segment(np.zeros((40, 30), dtype=np.uint8)).shape
        (40, 30)
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter.eval()
        self._batch: SegmentationBatch | None = None

    def set_image(
        self,
        image: NDArray[np.generic],
        *,
        intensity: tuple[float, float] | None = None,
        priors: AutomaticMasks | None = None,
    ) -> None:
        """Make ``image`` the current one and encode it, so that several prompts cost one encoder pass.

        Args:
            image: (H, W) grey or (H, W, 3) RGB.
            intensity: The (low, high) that become 0 and 255, for any type but uint8.
            priors: The automatic masks of this image, where the model fuses them into it (SAMAug).

        Raises:
            ValueError: If the shape, type or values do not fit, or the automatic masks have another size than the image.
        """
        batch = self._batch_of([image_tensor(image, intensity=intensity)])
        self._batch = self._encoded(batch if priors is None else _with_priors(batch, priors))

    def reset_image(self) -> None:
        """Forget the current image, as after the network's weights have changed."""
        self._batch = None

    def predict(
        self, *, box: ArrayLike | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None, NDArray[np.float32]]:
        """Segment the current image.

        Args:
            box: XYXY pixels of the original image, in place of the model's own prompt; needed where the model was trained
                with boxes drawn by a user.

        Returns:
            Masks (M, H, W) bool at the original size, predicted IoU (M,) or None where the network has no such head, and
            logits (M, h, w) of the padded input frame. A network that labels pixels returns its classes in their order, M = K,
            and each pixel belongs to one of them at most.

        Raises:
            RuntimeError: If no image is set.
            ValueError: If the model needs a box and none is given, or takes none.
        """
        if self._batch is None:
            raise RuntimeError("no image is set. Call set_image(image) first.")
        prediction = self._forward(self._batch, box)
        frame, side = self._batch.frames[0], self.segmenter.input_rule.side
        if prediction.class_logits is not None:
            rows = class_rows(prediction.class_logits[0], frame, side)
            return rows.cpu().numpy(), None, prediction.low_res_masks[:, 0].float().cpu().numpy()
        logits = to_original(prediction.low_res_masks.float(), frame, side)[0]
        ious = prediction.iou_predictions
        scores = None if ious is None else ious[0].float().cpu().numpy()
        return (logits > 0).cpu().numpy(), scores, prediction.low_res_masks[0].float().cpu().numpy()

    def segment(
        self,
        image: NDArray[np.generic],
        *,
        box: ArrayLike | None = None,
        intensity: tuple[float, float] | None = None,
        priors: AutomaticMasks | None = None,
    ) -> NDArray[np.bool_]:
        """Return the mask (H, W) bool of one image; arguments as in ``set_image`` and ``predict``.

        Raises:
            ValueError: As there, or if the model has several classes: then call ``segment_classes``.
        """
        self._refuse_classes("segment")
        self.set_image(image, intensity=intensity, priors=priors)
        masks: NDArray[np.bool_] = self.predict(box=box)[0][0]
        return masks

    def segment_classes(
        self, image: NDArray[np.generic], *, box: ArrayLike | None = None, intensity: tuple[float, float] | None = None
    ) -> dict[str, NDArray[np.bool_]]:
        """Return the mask (H, W) bool of each class by its name; arguments as in ``set_image`` and ``predict``.

        Each pixel belongs to one class at most; the masks of classes that the image does not show are all False.

        Raises:
            ValueError: As there, or if the model has no classes: then call ``segment``.
        """
        if not isinstance(self.segmenter, SemanticSegmenter):
            raise ValueError(f"{type(self.segmenter).__name__} predicts one object, no classes. Call segment(image).")
        self.set_image(image, intensity=intensity)
        return dict(zip(self.segmenter.classes, self.predict(box=box)[0], strict=True))

    def segment_many(
        self, images: Sequence[NDArray[np.generic]], *, batch_size: int = 4, intensity: tuple[float, float] | None = None
    ) -> list[NDArray[np.bool_]]:
        """Return one mask (H, W) bool per image, ``batch_size`` images at a time; sizes may differ.

        Raises:
            ValueError: If an image does not fit, or the model has several classes: then call ``segment_classes``.
        """
        self._refuse_classes("segment_many")
        masks: list[NDArray[np.bool_]] = []
        for start in range(0, len(images), batch_size):
            tensors = [image_tensor(image, intensity=intensity) for image in images[start : start + batch_size]]
            masks += self._masks(self._batch_of(tensors))
        return masks

    def _masks(self, batch: SegmentationBatch) -> list[NDArray[np.bool_]]:
        low_res_masks = self._forward(batch, None).low_res_masks[:, :1].float()
        side = self.segmenter.input_rule.side
        return [
            (to_original(low_res_masks[row : row + 1], frame, side)[0, 0] > 0).cpu().numpy()
            for row, frame in enumerate(batch.frames)
        ]

    def _forward(self, batch: SegmentationBatch, box: ArrayLike | None) -> MaskPrediction:
        with torch.no_grad():
            if box is None:
                self._refuse_missing_box()
                return self.segmenter.predict_unlabelled(batch)
            if not isinstance(self.segmenter, SamSegmenter):
                raise ValueError(f"box: {type(self.segmenter).__name__} takes no prompt. Call predict() without a box.")
            return self.segmenter.prompted(batch, _GivenBox(_box_tensor(box, batch.frames[0])))

    def _refuse_classes(self, method: str) -> None:
        if isinstance(self.segmenter, SemanticSegmenter) and len(self.segmenter.classes) > 1:
            raise ValueError(
                f"{method} returns one mask an image, but this model has the classes {', '.join(self.segmenter.classes)}. "
                "Call segment_classes(image)."
            )

    def _refuse_missing_box(self) -> None:
        source = getattr(self.segmenter, "prompt_source", None)
        if isinstance(source, PromptSource) and source.reads_ground_truth():
            raise ValueError("box: this model was trained with a box around the object, got none. Pass box=(x1, y1, x2, y2).")

    def _encoded(self, batch: SegmentationBatch) -> SegmentationBatch:
        if not isinstance(self.segmenter, SamSegmenter) or self.segmenter.fusion is not None:
            return batch
        with torch.no_grad():
            return replace(batch, image_embeddings=self.segmenter.encode(batch.images, batch.frames))

    def _batch_of(self, images: Sequence[Tensor]) -> SegmentationBatch:
        device = next(self.segmenter.parameters()).device
        return unlabelled_batch(images, self.segmenter).to(device)


def image_tensor(image: NDArray[np.generic], *, intensity: tuple[float, float] | None = None) -> Tensor:
    """Turn (H, W) grey or (H, W, 3) RGB into (3, H, W) float32 in 0..255.

    Args:
        image: uint8, or any real type together with ``intensity``.
        intensity: The (low, high) that become 0 and 255; values beyond are clipped.

    Raises:
        ValueError: If the shape or type does not fit, or a value is NaN or infinite.
    """
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(
            f"image must have shape (H, W) or (H, W, 3), got {image.shape}. Drop an alpha channel; move channels last."
        )
    if intensity is None and image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 in 0..255, got {image.dtype}. "
            "Scale it as the training data was, or pass intensity=(low, high), the values that become 0 and 255."
        )
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    if intensity is not None:
        pixels = _rescale(pixels, *intensity)
    return pixels.expand(3, -1, -1).clone() if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def unlabelled_batch(images: Sequence[Tensor], segmenter: Segmenter) -> SegmentationBatch:
    """Collate images (3, H, W) in 0..255 without ground truth: one object or K classes an image, their masks all False."""
    rule, n_masks = segmenter.input_rule, segmenter.masks_per_image()
    inputs = [image_to_input(image, rule) for image in images]
    rows = torch.arange(len(images))
    frames = tuple(frame for _, frame in inputs)
    return SegmentationBatch(
        images=torch.stack([image for image, _ in inputs]),
        masks=torch.zeros(len(images) * n_masks, 1, rule.side, rule.side, dtype=torch.bool),
        image_index=rows.repeat_interleave(n_masks),
        labels=torch.arange(1, n_masks + 1).repeat(len(images)),
        frames=frames,
        original_masks=tuple(torch.zeros(n_masks, *frame.original_size, dtype=torch.bool) for frame in frames),
        sample_index=rows,
        case_index=rows,
        image_ids=tuple(f"image_{row}" for row in range(len(images))),
        case_ids=tuple(f"image_{row}" for row in range(len(images))),
        spacing_mm=((1.0, 1.0),) * len(images),
    )


def _with_priors(batch: SegmentationBatch, found: AutomaticMasks) -> SegmentationBatch:
    frame = batch.frames[0]
    if tuple(found.masks.shape[-2:]) != frame.original_size:
        raise ValueError(
            f"priors must be masks of the image's size {frame.original_size}, got {tuple(found.masks.shape[-2:])}. "
            "Find them in this very image."
        )
    priors = priors_to_input(render_priors(found), frame, batch.images.shape[-1])
    return replace(batch, priors=priors[None].to(batch.images.device))


class _GivenBox(PromptSource):
    """Prompt every object with boxes (N, 4) of the input frame that a user gave."""

    def __init__(self, boxes: Tensor) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, batch: SegmentationBatch, image_embeddings: Tensor, backbone: Backbone) -> PromptEmbeddings:
        return backbone.embed_prompts(batch.n_objects, boxes=self.boxes.to(image_embeddings.device))


def _box_tensor(box: ArrayLike, frame: Frame) -> Tensor:
    corners = torch.as_tensor(np.asarray(box, dtype=np.float32))
    if corners.shape != (4,):
        raise ValueError(f"box must hold 4 numbers (x1, y1, x2, y2) in pixels, got shape {tuple(corners.shape)}.")
    x1, y1, x2, y2 = corners.tolist()
    # Corners are the first and the last pixel, so the box of a one-pixel object has x1 = x2.
    if not (x1 <= x2 and y1 <= y2):
        raise ValueError(f"box must have x1 <= x2 and y1 <= y2, got {corners.tolist()}.")
    height, width = frame.original_size
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        raise ValueError(
            f"box must lie in the image of {width} x {height} pixels (x, y), got {corners.tolist()}. Cut it off there."
        )
    return boxes_to_input(corners, frame)[None]


def _rescale(pixels: Tensor, low: float, high: float) -> Tensor:
    if not low < high:
        raise ValueError(f"intensity must be (low, high) with low < high, got ({low}, {high}).")
    if not torch.isfinite(pixels).all():
        raise ValueError(
            f"image holds {int((~torch.isfinite(pixels)).sum())} values that are NaN or infinite. Replace them first."
        )
    return (pixels - low).div(high - low).clamp(0, 1) * 255
