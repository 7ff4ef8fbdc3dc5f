"""The data that travels between the rooms: frozen dataclasses, shapes stated.

Letters: B images, N objects (flattened over the batch), M candidate masks per object, T prompt tokens,
S input side, g side of the embedding grid, C embedding channels (256 for every released SAM).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from medsam_tune.geometry import Frame


@dataclass(frozen=True)
class Sample:
    """Hold one 2-D image with its objects, at its original size.

    Attributes:
        image: (3, H, W) float32 in 0..255, after the source's recorded window or percentile rule.
        masks: (N, H, W) bool, one object a row; N may be 0.
        labels: (N,) int64, the label of each row.
        image_id: Unique name of the image within its source.
        case_id: What a metric and an output file are for: an image, or the volume it is a slice of.
        spacing_mm: Row and column spacing in millimetres; (1, 1) where the file states none.
        index: Position of the image in its source.
        view: 0 is the image as stored; v > 0 names an augmented view.
        priors: (P, H, W) float32 prior maps (SAMAug) of the image as it is shown, or None.
        volume_id: The volume that the image is a slice of; its own name where it is none.
        slice_index: Position of the slice in its volume.
        patient_id: The unit of a split; empty until the data module knows it.
        ignored: (H, W) bool, pixels that nobody annotated, or None: loss and metrics leave them out.
    """

    image: Tensor
    masks: Tensor
    labels: Tensor
    image_id: str
    case_id: str
    spacing_mm: tuple[float, float] = (1.0, 1.0)
    index: int = 0
    view: int = 0
    priors: Tensor | None = None
    volume_id: str = ""
    slice_index: int = 0
    patient_id: str = ""
    ignored: Tensor | None = None


@dataclass(frozen=True)
class SegmentationBatch:
    """Hold B images of the input frame and their N objects.

    Attributes:
        images: (B, 3, S, S) float32 in 0..255, not normalised, zeros in the padding.
        masks: (N, 1, S, S) bool ground truth in the input frame.
        image_index: (N,) int64, the image of each object.
        labels: (N,) int64.
        frames: B frames, original and input size of each image.
        original_masks: B tensors (n_b, H, W) bool: the same objects at the original size, in the same order.
        sample_index: (B,) int64, position in the source.
        case_index: (B,) int64, position of the case in the source's sorted case list.
        image_ids: B names.
        case_ids: B names.
        patient_ids: B names, the units of a split; empty where nobody knows them.
        volume_index: (B,) int64, equal for slices of one volume; None where images stand alone.
        slice_index: (B,) int64, position of a slice in its volume.
        spacing_mm: B pairs (row, column).
        epoch: Training epoch; with the seed it makes random prompts reproducible.
        training: Whether the batch is trained on; prompts may move in training and stay in evaluation.
        image_embeddings: (B, C, g, g) float32 from the cache, or None.
        priors: (B, P, S, S) float32 prior maps (SAMAug), or None.
        ignored: (B, 1, S, S) bool, pixels that nobody annotated, or None: they count as padding does.
        original_ignored: B masks (H, W) bool of the same at the original size; empty without ``ignored``.
    """

    images: Tensor
    masks: Tensor
    image_index: Tensor
    labels: Tensor
    frames: tuple[Frame, ...]
    original_masks: tuple[Tensor, ...]
    sample_index: Tensor
    case_index: Tensor
    image_ids: tuple[str, ...]
    case_ids: tuple[str, ...]
    spacing_mm: tuple[tuple[float, float], ...]
    patient_ids: tuple[str, ...] = ()
    volume_index: Tensor | None = None
    slice_index: Tensor | None = None
    epoch: int = 0
    training: bool = False
    image_embeddings: Tensor | None = None
    priors: Tensor | None = None
    ignored: Tensor | None = None
    original_ignored: tuple[Tensor, ...] = ()

    def to(self, device: torch.device | str) -> SegmentationBatch:
        """Return the batch with its model inputs on ``device``; the original-size masks move too."""
        import torch

        moved: dict[str, Any] = {
            f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved, original_masks=tuple(m.to(device) for m in self.original_masks))

    @property
    def n_images(self) -> int:
        """Return B."""
        return len(self.image_ids)

    @property
    def n_objects(self) -> int:
        """Return N."""
        return int(self.image_index.shape[0])


@dataclass(frozen=True)
class PromptEmbeddings:
    """Hold what SAM's decoder takes as the prompt of N objects.

    Attributes:
        sparse_embeddings: (N, T, C); T may be 0.
        dense_embeddings: (N, C, g, g).
    """

    sparse_embeddings: Tensor
    dense_embeddings: Tensor


@dataclass(frozen=True)
class MaskPrediction:
    """Hold the decoder's output for N objects.

    Attributes:
        low_res_masks: (N, M, h, w) logits over the padded input frame; h = w = 4g for SAM.
        iou_predictions: (N, M) predicted IoU, or None where the network has no such head.
        class_logits: (B, 1 + K, h, w) scores before the softmax, background first, where the network labels every pixel with
            one of K classes; the N = B K rows above then follow from them. None elsewhere.
    """

    low_res_masks: Tensor
    iou_predictions: Tensor | None = None
    class_logits: Tensor | None = None

    def to(self, device: torch.device | str) -> MaskPrediction:
        """Return the prediction on ``device``."""
        optional = (self.iou_predictions, self.class_logits)
        return MaskPrediction(self.low_res_masks.to(device), *(None if t is None else t.to(device) for t in optional))


@dataclass(frozen=True)
class AutomaticMasks:
    """Hold the K masks that a promptable network found in one image without a prompt.

    Attributes:
        masks: (K, H, W) bool at the image's original size; K may be 0.
        predicted_iou: (K,) float32, the network's own estimate of each mask's IoU.
        stability_score: (K,) float32 in 0..1, IoU of the mask thresholded a little above and a little below.
    """

    masks: Tensor
    predicted_iou: Tensor
    stability_score: Tensor
