"""The data that travels between the rooms: frozen dataclasses, shapes stated.

Letters: B images, N objects (flattened over the batch), M candidate masks per object, T prompt tokens,
S input side, g side of the embedding grid, C embedding channels (256 for every released SAM).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from medsam_tune.masks import ObjectMasks, cut_to_boxes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from medsam_tune.geometry import Frame
    from medsam_tune.samples import Tile


PromptKind = Literal["points", "boxes", "mask_inputs"]


@dataclass(frozen=True)
class Queries:
    """Hold what a network is asked: N objects, each with its image and whatever prompts it has.

    A user, a file or a draw from the truth makes them; a network cannot tell which. Coordinates are pixels of the input frame.

    Attributes:
        image_index: (N,) int64, the image of each object.
        labels: (N,) int64.
        names: N names of the labels, for a prompt encoder that reads text; empty where nobody named them.
        boxes: (N, 4) float32 XYXY, the last column and row included, or None.
        point_coords: (N, P, 2) float32 (x, y), or None.
        point_labels: (N, P): 1 foreground, 0 background, -1 padding; None without ``point_coords``.
        mask_inputs: (N, 1, 4g, 4g) logits, or None.
        forms: Which prompts objects have, where they differ; empty: each object has every prompt that is set.
        form_index: (N,) int64, the form of each object; None without ``forms``.
    """

    image_index: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()
    boxes: Tensor | None = None
    point_coords: Tensor | None = None
    point_labels: Tensor | None = None
    mask_inputs: Tensor | None = None
    forms: tuple[tuple[PromptKind, ...], ...] = ()
    form_index: Tensor | None = None

    @property
    def n_objects(self) -> int:
        """Return N."""
        return int(self.image_index.shape[0])

    def kinds(self) -> tuple[PromptKind, ...]:
        """Return which prompts are set."""
        given = {"points": self.point_coords, "boxes": self.boxes, "mask_inputs": self.mask_inputs}
        return tuple(cast(PromptKind, kind) for kind, value in given.items() if value is not None)

    def without_prompts(self) -> Queries:
        """Return the same objects, asked for without any prompt."""
        return Queries(self.image_index, self.labels, self.names)

    def rows(self, rows: Tensor) -> Queries:
        """Return the objects at ``rows``: (n,) int64 positions or (N,) bool."""
        import torch

        chosen = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        names = tuple(self.names[row] for row in chosen.tolist()) if self.names else ()
        return replace(self, **{name: value[rows] for name, value in _tensors(self).items()}, names=names)

    def to(self, device: torch.device | str) -> Queries:
        """Return the queries on ``device``."""
        moved: dict[str, Any] = {name: _moved(value, device) for name, value in _tensors(self).items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class Truth:
    """Hold the true masks of the objects that are asked for; no prompt encoder and no backbone ever sees them.

    Attributes:
        masks: N masks (S, S) in the input frame. A tensor (N, 1, S, S) bool is taken too.
        original_masks: For each of B images n_b masks (H, W): the same objects at the original size, in the same order. Tensors
            (n_b, H, W) bool are taken too.
    """

    masks: ObjectMasks
    original_masks: tuple[ObjectMasks, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "masks", cut_to_boxes(self.masks))
        object.__setattr__(self, "original_masks", tuple(cut_to_boxes(masks) for masks in self.original_masks))

    def to(self, device: torch.device | str) -> Truth:
        """Return the truth with the masks of the input frame on ``device``; those of the original size stay, for scoring."""
        return Truth(self.masks.to(device), self.original_masks)


@dataclass(frozen=True)
class EncoderInput:
    """Hold what a network may see of B images: all but objects and truth.

    Attributes:
        images: (B, 3, S, S) float32 in 0..255, not normalised, zeros in the padding.
        frames: B frames, original and input size of each image.
        volume_index: (B,) int64, equal for slices of one volume; None where images stand alone.
        slice_index: (B,) int64, position of a slice in its volume.
        fuse: Maps the normalised images to what the encoder sees, of the same shape; None leaves them.
        chunk_index: (B,) int64, equal for the slices that always travel together; None where images stand alone. What looks at
            neighbours looks at these alone, or an answer would depend on the batch.
        chunk_length: D, the slices that a chunk has where its volume has as many; 1 where images stand alone.
    """

    images: Tensor
    frames: tuple[Frame, ...]
    volume_index: Tensor | None = None
    slice_index: Tensor | None = None
    fuse: Callable[[Tensor], Tensor] | None = None
    chunk_index: Tensor | None = None
    chunk_length: int = 1


@dataclass(frozen=True)
class ImageEmbeddings:
    """Hold what an encoder made of B images; opaque above the backbone but for ``main``.

    Attributes:
        main: (B, C, g, g), what prompts are added to.
        fine: Finer maps (B, C_i, g_i, g_i) that the decoder also reads; empty for SAM 1.
    """

    main: Tensor
    fine: tuple[Tensor, ...] = ()

    def rows(self, rows: Tensor) -> ImageEmbeddings:
        """Return the embeddings of the images at ``rows``, (n,) int64."""
        return ImageEmbeddings(self.main[rows], tuple(level[rows] for level in self.fine))

    def detach(self) -> ImageEmbeddings:
        """Return the embeddings cut off from the graph that made them."""
        return ImageEmbeddings(self.main.detach(), tuple(level.detach() for level in self.fine))


@dataclass(frozen=True)
class SegmentationBatch:
    """Hold B images of the input frame, what is asked about them, and the answer where it is known.

    Attributes:
        images: (B, 3, S, S) float32 in 0..255, not normalised, zeros in the padding.
        queries: The N objects.
        truth: Their true masks; None on new images.
        frames: B frames, original and input size of each image.
        sample_index: (B,) int64, position in the source.
        case_index: (B,) int64, position of the case in the source's sorted case list.
        image_ids: B names.
        case_ids: B names.
        patient_ids: B names, the units of a split; empty where nobody knows them.
        volume_index: (B,) int64, equal for slices of one volume; None where images stand alone.
        slice_index: (B,) int64, position of a slice in its volume.
        spacing_mm: B pairs (row, column).
        epoch: Training epoch; with the seed it makes random prompts reproducible.
        seed: The run's seed, for whatever is drawn for this batch.
        training: Whether the batch is trained on; prompts may move in training and stay in evaluation.
        image_embeddings: (B, ...) float32 precomputed embeddings as ``Backbone.pack`` lays them out, or None.
        priors: (B, P, S, S) float32 prior maps (SAMAug), or None.
        ignored: (B, 1, S, S) bool, pixels that nobody annotated, or None: they count as padding does.
        original_ignored: B masks (H, W) bool of the same at the original size; empty without ``ignored``.
        chunk_index: (B,) int64, equal for slices of one volume that always travel together; None where images stand alone.
        object_ids: (N,) int64, the number of each instance in its image, 0 where a row is a label; None where no row is one.
        tiles: Where each of the B images was cut out of a larger one; empty where they are whole.
        at_once: Tiles that a network sees at once in evaluation, where a batch holds all of an image; 0 takes all.
        one_view: Whether each image is seen once, also by a network that averages views in a test: in a validation.
        chunk_length: D, the slices that a chunk has where its volume has as many; 1 where images stand alone.
        window_stride: Where a batch holds one volume to be answered in windows of D slices: slices from one window to the next.
            0 where its chunks are answered as they stand.
        encoder_prefix: (B, ...) float32 precomputed input of the encoder's first tuned block, or None.
    """

    images: Tensor
    queries: Queries
    frames: tuple[Frame, ...]
    sample_index: Tensor
    case_index: Tensor
    image_ids: tuple[str, ...]
    case_ids: tuple[str, ...]
    spacing_mm: tuple[tuple[float, float], ...]
    patient_ids: tuple[str, ...] = ()
    volume_index: Tensor | None = None
    slice_index: Tensor | None = None
    truth: Truth | None = None
    epoch: int = 0
    seed: int = 0
    training: bool = False
    image_embeddings: Tensor | None = None
    priors: Tensor | None = None
    ignored: Tensor | None = None
    original_ignored: tuple[Tensor, ...] = ()
    chunk_index: Tensor | None = None
    object_ids: Tensor | None = None
    tiles: tuple[Tile, ...] = ()
    at_once: int = 0
    one_view: bool = False
    chunk_length: int = 1
    window_stride: int = 0
    encoder_prefix: Tensor | None = None

    def part(self, start: int, stop: int) -> SegmentationBatch:
        """Return the batch of the images from ``start`` on, before ``stop``, with what is asked about them."""
        objects = (self.image_index >= start) & (self.image_index < stop)
        per_object = {"queries", "object_ids", "truth"}
        tensors = {n: v[start:stop] for n, v in _tensors(self).items() if n not in per_object}
        lists: dict[str, Any] = {f.name: v[start:stop] for f in fields(self) if isinstance(v := getattr(self, f.name), tuple)}
        queries = self.queries.rows(objects)
        truth = self.truth and Truth(self.truth.masks.rows(objects), self.truth.original_masks[start:stop])
        return replace(
            self,
            **tensors,
            **lists,
            queries=replace(queries, image_index=queries.image_index - start),
            object_ids=None if self.object_ids is None else self.object_ids[objects],
            truth=truth,
        )

    def to(self, device: torch.device | str) -> SegmentationBatch:
        """Return the batch with its tensors on ``device``; the original-size masks stay where they are."""
        moved: dict[str, Any] = {name: _moved(value, device) for name, value in _tensors(self).items()}
        truth = None if self.truth is None else self.truth.to(device)
        return replace(self, **moved, queries=self.queries.to(device), truth=truth)

    def pin_memory(self) -> SegmentationBatch:
        """Return the batch in page-locked memory, from which copies to a GPU need not wait; called by torch's loader."""
        pinned = {name: value.pin_memory() for name, value in _tensors(self).items()}
        queries = replace(self.queries, **{name: value.pin_memory() for name, value in _tensors(self.queries).items()})
        truth = self.truth and replace(self.truth, masks=self.truth.masks.pin_memory())
        return replace(self, **pinned, queries=queries, truth=truth)

    def encoder_input(self) -> EncoderInput:
        """Return what a network may see of the images."""
        places = (self.volume_index, self.slice_index)
        return EncoderInput(self.images, self.frames, *places, chunk_index=self.chunk_index, chunk_length=self.chunk_length)

    @property
    def known_truth(self) -> Truth:
        """Return the truth.

        Raises:
            ValueError: If the images are new and nobody knows it.
        """
        if self.truth is None:
            raise ValueError("this batch has no true masks. Give boxes, points or a mask of your own, or labelled images.")
        return self.truth

    @property
    def masks(self) -> Tensor:
        """Return the true masks (N, 1, S, S) bool in the input frame, as planes; a ValueError where nobody knows them."""
        return self.known_truth.masks.dense()[:, None]

    @property
    def original_masks(self) -> tuple[ObjectMasks, ...]:
        """Return the true masks of each image at its own size; a ValueError where nobody knows them."""
        return self.known_truth.original_masks

    @property
    def image_index(self) -> Tensor:
        """Return the image (N,) int64 of each object."""
        return self.queries.image_index

    @property
    def labels(self) -> Tensor:
        """Return the label (N,) int64 of each object."""
        return self.queries.labels

    @property
    def n_images(self) -> int:
        """Return B."""
        return len(self.image_ids)

    @property
    def n_objects(self) -> int:
        """Return N."""
        return self.queries.n_objects


def _moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    # A copy to the CPU that nobody waits for would be read before it is there.
    return tensor.to(device, non_blocking=not str(device).startswith("cpu"))


def _tensors(holder: SegmentationBatch | Queries | MaskPrediction) -> dict[str, Any]:
    import torch

    return {f.name: value for f in fields(holder) if isinstance(value := getattr(holder, f.name), torch.Tensor)}


@dataclass(frozen=True)
class PromptEmbeddings:
    """Hold what SAM's decoder takes as the prompt of N objects.

    Attributes:
        sparse_embeddings: (N, T, C); T may be 0.
        dense_embeddings: (N, C, g, g).
    """

    sparse_embeddings: Tensor
    dense_embeddings: Tensor

    def rows(self, rows: Tensor | slice) -> PromptEmbeddings:
        """Return the prompts of the objects at ``rows``."""
        return PromptEmbeddings(self.sparse_embeddings[rows], self.dense_embeddings[rows])


@dataclass(frozen=True)
class MaskPrediction:
    """Hold the decoder's output for N objects.

    Attributes:
        low_res_masks: (N, M, h, w) logits over the padded input frame; h = w = 4g for SAM.
        iou_predictions: (N, M) predicted IoU, or None where the network has no such head.
        class_logits: (B, 1 + K, h, w) scores before the softmax, background first, where the network labels every pixel with
            one of K classes; the N = B K rows above then follow from them. None elsewhere.
        smallest_part: Share of a mask's largest island below which its islands and holes are specks when masks are made; 0 for
            none.
    """

    low_res_masks: Tensor
    iou_predictions: Tensor | None = None
    class_logits: Tensor | None = None
    smallest_part: float = 0.0

    def to(self, device: torch.device | str) -> MaskPrediction:
        """Return the prediction on ``device``."""
        moved: dict[str, Any] = {name: _moved(value, device) for name, value in _tensors(self).items()}
        return replace(self, **moved)


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
