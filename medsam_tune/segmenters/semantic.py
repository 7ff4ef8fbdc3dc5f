"""One decoder pass an image that gives every pixel to one class: SAMed's decoder.

Paper: Zhang and Liu 2023, Customized Segment Anything Model for Medical Image Segmentation (arXiv 2304.13785).
Authors' code: https://github.com/hitachinsk/SAMed @ e351840 (MIT).

SAM's decoder has one mask token for the single mask and three for its candidates. The authors build it with K candidates for K
classes and return all 1 + K masks (``segment_anything/modeling/mask_decoder.py``): mask 0 is the background, mask i class i,
and a softmax over them labels every pixel.

Differs from the authors' code:
- Tokens and hypernetworks start as copies of SAM's (``architectures.give_class_masks``). The authors leave SAM's out, so theirs
  start at random, but for three classes at 1024 px, where every shape fits (``build_sam.py``, ``load_from``).
- The IoU head is not run and stays SAM's; theirs has 1 + K random outputs that no loss reaches.
- A prompt is possible, one an image; the default is theirs, none.

``upscale_stages: 4`` is the decoder of MA-SAM (Chen et al. 2024, arXiv 2309.08842; cchen-cc/MA-SAM @ 0c3cd90), with two more
stages of up-scaling. Its first two start as SAM's, and the IoU head, which no loss reaches, stays SAM's and frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame, to_original
from medsam_tune.losses.base import MaskLoss
from medsam_tune.masks import ObjectMasks
from medsam_tune.segmenters.base import SamParts, Segmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import MaskPrediction, SegmentationBatch, Truth

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule


class SemanticSegmenter(SamSegmenter):
    """Give every pixel to the background or to one of K classes; ``data.target`` must be ``per_class``.

    The mask tokens and their hypernetworks always learn, because SAM's own mean something else; whether the rest of the decoder
    does is said by the backbone's ``trainable``.

    Args:
        parts: As in ``SamSegmenter``; the backbone's decoder is turned into one that emits classes, and ``parts.prompts`` asks
            each image once, for all its classes together.
        classes: Names of the K classes in the order of the data's label map.
        upscale_stages: How many times the decoder doubles the embedding's grid: 2 as in SAM, 4 as in MA-SAM, whose masks have
            the side of the input. Two more stages start at random.

    Raises:
        RecipeError: If no class or one class twice is named, or the parts do not fit each other.

    Examples:
        >>> from medsam_tune.backbone import SamBackbone
        >>> segmenter = SemanticSegmenter(SamParts(SamBackbone("random_tiny")), ["wall", "lumen"])
        >>> segmenter.backbone.mask_decoder.num_mask_tokens
        3
    """

    def __init__(self, parts: SamParts, classes: Sequence[str], *, upscale_stages: int = 2) -> None:
        if len(set(classes)) != len(classes):
            raise RecipeError(f"model.segmenter.classes: a name stands twice in {list(classes)}. Name each class once.")
        if parts.backbone is not None:
            parts.backbone.emit_classes(len(classes), upscale_stages=upscale_stages)
        super().__init__(parts)
        self._classes = tuple(classes)

    def classes(self) -> tuple[str, ...]:
        """Return the names of the K classes."""
        return self._classes

    def predicts_iou(self) -> bool:
        """Return False: a class is decoded by its mask alone."""
        return False

    def untuned(self) -> Segmenter | None:
        """Return None: the released network labels no pixel with a class."""
        return None

    def not_mergeable(self) -> str | None:
        """Return why: a plain SAM checkpoint would be read with another meaning of its mask tokens."""
        return (
            f"model.segmenter: mask 0 of this decoder is the background and the other {len(self._classes)} are classes; a "
            "plain SAM checkpoint is read as SAM's single mask and its three candidates"
        )

    def forward(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return the label map as one row for each class of each image.

        Returns:
            Logits (B K, 1, h, w), above 0 where the class has the largest score, and the scores themselves in
            ``class_logits`` (B, 1 + K, h, w); h = w = 4g, or 16g with four stages of up-scaling.

        Raises:
            RecipeError: If the batch has not one row for each class on each image.
        """
        self._check_rows(batch)
        embeddings = self.image_embeddings(batch)
        queries = self.ask(_joined(batch, self.masks_per_image()))
        prompts = self.prompt_encoder(queries, batch.encoder_input(), embeddings, self.backbone)
        class_logits = self.backbone.decode_classes(embeddings, prompts)
        rows = class_margins(class_logits)[:, 1:].flatten(0, 1)[:, None]
        return MaskPrediction(rows, class_logits=class_logits)

    def drawn(self, batch: SegmentationBatch) -> SegmentationBatch:
        """Return the batch as it is: an image is asked once for all its classes, not once a row.

        Raises:
            RecipeError: If the batch has not one row for each class on each image.
        """
        self._check_rows(batch)
        return batch

    def candidates(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return the label map: there is nothing to choose from."""
        return self.forward(batch)

    def every_mask(self, batch: SegmentationBatch) -> MaskPrediction:
        """Return the label map, as ``candidates`` does."""
        return self.forward(batch)

    def training_losses(self, batch: SegmentationBatch, loss: MaskLoss) -> dict[str, Tensor]:
        """Return the terms of the loss on the label map."""
        terms: dict[str, Tensor] = loss(self(batch), batch)
        return terms

    def check_data(self, data: SegmentationDataModule) -> None:
        """Refuse data whose label map is not what the network emits.

        Raises:
            RecipeError: Naming the key.
        """
        if data.target != "per_class":
            raise RecipeError(
                f"data.target: SemanticSegmenter gives every pixel to one class, so each image needs a row for each class; got "
                f"{data.target}. Set data.target: per_class."
            )
        named = list(data.label_names.values())
        if named != list(self._classes):
            raise RecipeError(
                f"model.segmenter.classes: {list(self._classes)} must be the data's labels in their order, which are {named}. "
                "Make them and data.source.labels agree."
            )

    def _check_rows(self, batch: SegmentationBatch) -> None:
        n_classes = self.masks_per_image()
        expected = torch.arange(batch.n_images, device=batch.image_index.device).repeat_interleave(n_classes)
        # The order was checked before the batch moved, for a GPU would have to be waited for; an exported graph has no values.
        moved = torch.compiler.is_compiling() or (batch.training and batch.image_index.device.type != "cpu")
        if len(expected) != batch.n_objects or not (moved or torch.equal(batch.image_index, expected)):
            raise RecipeError(
                f"data.target: SemanticSegmenter emits {n_classes} classes an image ({', '.join(self._classes)}), but this "
                f"batch has {batch.n_objects} objects on {batch.n_images} images. Set data.target: per_class, these labels."
            )


def class_margins(class_logits: Tensor) -> Tensor:
    """Return how far each score lies above the largest of the others: above 0 for the class that wins, below for the rest.

    Args:
        class_logits: (B, 1 + K, h, w) scores before the softmax; any number of classes from 1 on.

    Returns:
        (B, 1 + K, h, w); where two classes share the largest score both have 0, so neither wins.

    Examples:
        >>> class_margins(torch.tensor([1.0, 4.0, 2.0]).view(1, 3, 1, 1)).flatten().tolist()
        [-3.0, 2.0, -2.0]
    """
    best = class_logits.topk(2, dim=1).values
    largest, second = best[:, :1], best[:, 1:]
    return class_logits - torch.where(class_logits == largest, second, largest)


def class_log_odds(class_logits: Tensor) -> Tensor:
    """Return the logit of each class against all others together: its sigmoid is the softmax probability.

    Args:
        class_logits: (B, 1 + K, h, w) scores before the softmax.

    Returns:
        (B, 1 + K, h, w).

    Examples:
        >>> class_log_odds(torch.tensor([0.0, 0.0, 0.0]).view(1, 3, 1, 1)).sigmoid().flatten().tolist()
        [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]
    """
    n_scores = class_logits.shape[1]
    own = torch.eye(n_scores, dtype=torch.bool, device=class_logits.device)[:, :, None, None]
    others = class_logits[:, None].masked_fill(own, -torch.inf).logsumexp(dim=2)
    return class_logits - others


def class_rows(class_logits: Tensor, frame: Frame, side: int) -> Tensor:
    """Bring the scores of one image to its original frame, class by class, and compare them there.

    Args:
        class_logits: (1 + K, h, w) scores over the padded input frame, background first.
        frame: Original and input size.
        side: S, the side of the input frame in pixels.

    Returns:
        (K, H, W) bool: True where the class has the largest score. Each pixel belongs to one class at most; where two share
        the largest score it belongs to none.
    """
    return class_winners(_upsampled(class_logits[number : number + 1], frame, side) for number in range(len(class_logits)))


def class_winners(class_scores: Iterable[Tensor]) -> Tensor:
    """Return where each class has the largest score, as ``class_rows`` does.

    Args:
        class_scores: 1 + K scores (H, W), background first; one is looked at at a time.
    """
    remaining = iter(class_scores)
    best, count = next(remaining), 1
    second = torch.full_like(best, -torch.inf)
    winner = torch.zeros_like(best, dtype=torch.int16)
    for scores in remaining:
        second = torch.maximum(second, torch.minimum(best, scores))
        winner[scores > best] = count
        best, count = torch.maximum(best, scores), count + 1
    winner[best == second] = 0
    return torch.stack([winner == number for number in range(1, count)])


def _upsampled(class_logits: Tensor, frame: Frame, side: int) -> Tensor:
    """Return scores (H, W) of one class (1, h, w)."""
    return to_original(class_logits[None].float(), frame, side)[0, 0]


def _joined(batch: SegmentationBatch, n_classes: int) -> SegmentationBatch:
    """Return the batch as it is asked: one object an image, the union of its classes, with the prompts of its first row."""
    first = torch.arange(batch.n_images, device=batch.image_index.device) * n_classes
    queries = batch.queries.rows(first)
    truth = batch.truth
    if truth is not None:
        rows = torch.arange(len(truth.masks)).view(-1, n_classes)
        masks = [ObjectMasks.of(truth.masks.rows(row).union()[None]) for row in rows]
        originals = tuple(ObjectMasks.of(original.union()[None]) for original in truth.original_masks)
        truth = Truth(ObjectMasks.join(masks), originals)
    return replace(batch, queries=replace(queries, labels=torch.ones_like(queries.labels)), truth=truth)
