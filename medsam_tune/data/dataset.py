"""From a source's items to batches in the input frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.sampler import Draw
from medsam_tune.data.targets import Target, apply_target
from medsam_tune.data.transforms import Augmentation, augment, view_seed
from medsam_tune.data.view_refresh import shown_view, shown_views
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.fusion.samaug import priors_to_input, render_priors
from medsam_tune.geometry import Frame, InputRule, image_to_input, masks_to_input
from medsam_tune.masks import ObjectMasks
from medsam_tune.samples import Sample
from medsam_tune.types import AutomaticMasks, Queries, SegmentationBatch, Truth

EmbeddingLookup = Callable[[int, int], Tensor]
PriorLookup = Callable[[int], AutomaticMasks]


@dataclass(frozen=True)
class Views:
    """Read an item as stored (view 0) or as an augmented view (1, 2, ...); each view is always the same.

    Attributes:
        source: An opened source.
        augmentation: What changes; None allows view 0 only.
        seed: With the image's id and the view's number it makes the view.
        priors: Given a source index, returns the automatic masks of the image as stored; None adds no prior maps.
        moving_with: Where slices of a chunk move as one: the name that makes the view of a source index, its first slice's.
    """

    source: SegmentationSource
    augmentation: Augmentation | None = None
    seed: int = 0
    priors: PriorLookup | None = None
    moving_with: Mapping[int, str] = field(default_factory=dict)

    def read(self, index: int, view: int) -> Sample:
        """Return item ``index`` of the source under ``view``.

        Prior maps are drawn before the view is, so they move with the image.

        Raises:
            DataError: If the file cannot be read, or its automatic masks are of another size.
            RecipeError: If an augmented view is asked for and there is no augmentation.
        """
        sample = self.source[index]
        if self.priors is not None:
            sample = _with_priors(sample, self.priors(index))
        if view == 0:
            return sample
        if self.augmentation is None:
            raise RecipeError(f"data.views: view {view} is asked for, but data.augmentation is not set.")
        name = self.moving_with.get(index)
        seed = view_seed(self.seed, sample.image_id if name is None else name, view)
        # Drawn again for one slice, a chunk would fall apart.
        changed = augment(sample, self.augmentation, seed=seed, keep_objects=name is None)
        return replace(changed, view=view)


@dataclass(frozen=True)
class PreparedItem:
    """Hold one image of a batch before it is collated.

    Attributes:
        sample: At the original size, one row an object.
        image: (3, S, S) in 0..255.
        masks: The sample's n masks in the input frame.
        frame: Original and input size.
        case_index: Position of the case in the sorted case list.
        epoch: Epoch of the draw.
        seed: The run's seed.
        names: The name of each object's label.
        training: Whether the item is trained on.
        image_embeddings: (C, g, g) from the cache, or None.
        priors: (P, S, S) prior maps in the input frame, or None.
        ignored: (1, S, S) bool, pixels that nobody annotated, or None.
        volume_index: Number of the volume that the image is a slice of.
        slice_index: Position of the slice in its volume.
        chunk_index: Number of the chunk that it travels in; None where it travels alone.
        at_once: Tiles that the network sees at once in evaluation; 0 takes all of a batch.
        chunk_length: Slices of a chunk.
        window_stride: As in ``SegmentationBatch``.
        encoder_prefix: Input of the encoder's first tuned block from the cache, or None.
    """

    sample: Sample
    image: Tensor
    masks: ObjectMasks
    frame: Frame
    case_index: int
    epoch: int
    training: bool
    image_embeddings: Tensor | None
    priors: Tensor | None = None
    ignored: Tensor | None = None
    volume_index: int = 0
    slice_index: int = 0
    seed: int = 0
    names: tuple[str, ...] = ()
    chunk_index: int | None = None
    at_once: int = 0
    chunk_length: int = 1
    window_stride: int = 0
    encoder_prefix: Tensor | None = None


@dataclass(frozen=True)
class DatasetSettings:
    """State how items become objects in the input frame.

    Attributes:
        input_rule: What the weights expect.
        target: What one object is.
        case_index: Position of each case in the sorted case list.
        training: Augmented views and the object limit apply in training only.
        n_views: Number of fixed views that the epochs go through, view 0 unaugmented; 0 makes a new view each epoch.
        views_refresh: Part of the views that are drawn anew in an epoch, as ``data.view_refresh`` chooses.
        max_objects: Objects drawn from each training image; None takes all.
        classes: Every label of the source, where the target is ``per_class``.
        patients: The patient of each case; without it every case is one.
        places: Number of the volume and position in it, for each item of the source; without it each item is a volume.
        label_names: Names of the labels, as far as the source has any.
        at_once: Tiles that the network sees at once in evaluation; 0 takes all of a batch.
        chunk_length: Slices of a chunk.
        window_stride: As in ``SegmentationBatch``; 0 in training.
    """

    input_rule: InputRule
    target: Target
    case_index: Mapping[str, int]
    training: bool = False
    n_views: int = 1
    views_refresh: float = 0.0
    max_objects: int | None = None
    classes: tuple[int, ...] = ()
    patients: Mapping[str, str] = field(default_factory=dict)
    places: Sequence[tuple[int, int]] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
    at_once: int = 0
    chunk_length: int = 1
    window_stride: int = 0


class SegmentationDataset(Dataset[PreparedItem]):
    """Serve chosen items of a source; what an item looks like depends on (seed, epoch, item) and on nothing else.

    Args:
        views: Reads the source.
        indices: Positions in the source.
        settings: How items become objects.

    Attributes:
        embeddings: Given a source index and a view, returns the cached (C, g, g) float32; None while there is no cache.
        prefixes: The same for the input of the encoder's first tuned block.
    """

    def __init__(self, views: Views, indices: Sequence[int], settings: DatasetSettings) -> None:
        self.views, self.indices, self.settings = views, list(indices), settings
        self.embeddings: EmbeddingLookup | None = None
        self.prefixes: EmbeddingLookup | None = None
        self._names = views.source.image_ids() if settings.training and settings.views_refresh else ()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, draw: Draw | int) -> PreparedItem:
        epoch, position = (draw.epoch, draw.item) if isinstance(draw, Draw) else (0, draw)
        index = self.indices[position]
        view = self.view_of(epoch, index)
        settings = self.settings
        sample = self._limited(apply_target(self.views.read(index, view), settings.target, classes=settings.classes), epoch)
        sample = replace(sample, patient_id=settings.patients.get(sample.case_id, sample.case_id))
        volume_index, slice_index = settings.places[index] if settings.places else (index, 0)
        rule = settings.input_rule
        image, frame = image_to_input(sample.image, rule)
        return PreparedItem(
            sample=sample,
            image=image,
            masks=masks_to_input(sample.masks, frame, rule.side),
            frame=frame,
            case_index=settings.case_index[sample.case_id],
            epoch=epoch,
            training=settings.training,
            image_embeddings=None if self.embeddings is None else self.embeddings(index, view),
            priors=None if sample.priors is None else priors_to_input(sample.priors, frame, rule.side),
            ignored=_ignored_in_input(sample, frame, rule.side),
            volume_index=volume_index,
            slice_index=slice_index,
            seed=self.views.seed,
            names=tuple(settings.label_names.get(label, str(label)) for label in sample.labels.tolist()),
            at_once=settings.at_once,
            chunk_length=settings.chunk_length,
            window_stride=settings.window_stride,
            encoder_prefix=None if self.prefixes is None else self.prefixes(index, view),
        )

    def view_of(self, epoch: int, index: int) -> int:
        """Return the view of a source index that an epoch shows: 0 outside training and without augmentation."""
        settings = self.settings
        if not settings.training or self.views.augmentation is None:
            return 0
        if not settings.n_views:
            return epoch + 1
        if not settings.views_refresh:
            return epoch % settings.n_views
        share = settings.views_refresh
        return shown_view(self.views.seed, self._moving_name(index), epoch, n_views=settings.n_views, share=share)

    def views_until(self, epochs: int | None, index: int) -> Iterator[int]:
        """Yield every fixed view of a source index that a training of so many epochs shows, each once.

        Args:
            epochs: Of the whole training; None where views are not drawn anew, so that each is shown.
            index: In the source.

        Raises:
            RecipeError: If views are drawn anew and nobody knows how often.
        """
        settings = self.settings
        if not settings.training or self.views.augmentation is None:
            yield 0
        elif not settings.views_refresh:
            yield from range(settings.n_views or 1)
        elif epochs is None:
            raise RecipeError(
                "data.views_refresh: the views of all epochs are encoded before the first, so their number must be known. Set "
                "trainer.max_epochs or trainer.max_steps."
            )
        else:
            seed, name, share = self.views.seed, self._moving_name(index), settings.views_refresh
            yield from shown_views(seed, name, epochs, n_views=settings.n_views, share=share)

    def _moving_name(self, index: int) -> str:
        return self.views.moving_with.get(index, self._names[index])

    def _limited(self, sample: Sample, epoch: int) -> Sample:
        limit = self.settings.max_objects
        if not self.settings.training or limit is None or len(sample.labels) <= limit:
            return sample
        generator = torch.Generator().manual_seed(view_seed(self.views.seed, f"objects/{sample.image_id}", epoch))
        rows = torch.randperm(len(sample.labels), generator=generator)[:limit].sort().values
        return sample.rows(rows)


def collate(items: Sequence[PreparedItem]) -> SegmentationBatch:
    """Join B items; their objects are flattened over the batch, with ``queries.image_index`` telling the image of each."""
    samples = [item.sample for item in items]
    chunks = [item.chunk_index for item in items if item.chunk_index is not None]
    counts = torch.tensor([len(sample.labels) for sample in samples])
    embeddings = [item.image_embeddings for item in items if item.image_embeddings is not None]
    prefixes = [item.encoder_prefix for item in items if item.encoder_prefix is not None]
    priors = [item.priors for item in items if item.priors is not None]
    return SegmentationBatch(
        images=torch.stack([item.image for item in items]),
        queries=Queries(
            image_index=torch.repeat_interleave(torch.arange(len(items)), counts),
            labels=torch.cat([sample.labels for sample in samples]),
            names=tuple(name for item in items for name in item.names),
        ),
        truth=Truth(ObjectMasks.join([item.masks for item in items]), tuple(sample.masks for sample in samples)),
        frames=tuple(item.frame for item in items),
        sample_index=torch.tensor([sample.index for sample in samples]),
        case_index=torch.tensor([item.case_index for item in items]),
        image_ids=tuple(sample.image_id for sample in samples),
        case_ids=tuple(sample.case_id for sample in samples),
        patient_ids=tuple(sample.patient_id for sample in samples),
        spacing_mm=tuple(sample.spacing_mm for sample in samples),
        volume_index=torch.tensor([item.volume_index for item in items]),
        slice_index=torch.tensor([item.slice_index for item in items]),
        chunk_index=torch.tensor(chunks) if len(chunks) == len(items) else None,
        epoch=items[0].epoch,
        seed=items[0].seed,
        training=items[0].training,
        image_embeddings=torch.stack(embeddings) if embeddings else None,
        encoder_prefix=torch.stack(prefixes) if prefixes else None,
        priors=torch.stack(priors) if priors else None,
        object_ids=_object_ids(samples),
        tiles=tuple(sample.tile for sample in samples if sample.tile is not None),
        at_once=items[0].at_once,
        chunk_length=items[0].chunk_length,
        window_stride=items[0].window_stride,
        **_ignored(items),
    )


def _object_ids(samples: Sequence[Sample]) -> Tensor | None:
    """Return the numbers of a batch's instances, 0 where a row is a label."""
    if all(sample.object_ids is None for sample in samples):
        return None
    return torch.cat([torch.zeros_like(s.labels) if s.object_ids is None else s.object_ids for s in samples])


def _ignored_in_input(sample: Sample, frame: Frame, side: int) -> Tensor | None:
    if sample.ignored is None:
        return None
    return masks_to_input(ObjectMasks.of(sample.ignored[None]), frame, side).dense()


def _ignored(items: Sequence[PreparedItem]) -> dict[str, Any]:
    """Return ``ignored`` and ``original_ignored`` of a batch; an image without a mask file has no such pixel."""
    if all(item.ignored is None for item in items):
        return {}
    none = torch.zeros((1, *items[0].image.shape[-2:]), dtype=torch.bool)
    inputs = [none if item.ignored is None else item.ignored for item in items]
    originals = [
        torch.zeros(item.frame.original_size, dtype=torch.bool) if item.sample.ignored is None else item.sample.ignored
        for item in items
    ]
    return {"ignored": torch.stack(inputs), "original_ignored": tuple(originals)}


def _with_priors(sample: Sample, found: AutomaticMasks) -> Sample:
    size, expected = tuple(found.masks.shape[-2:]), tuple(sample.image.shape[-2:])
    if size != expected:
        raise DataError(
            f"{sample.image_id}: its automatic masks have the size {size}, the image has {expected}. "
            "They were made from another image; make the priors again."
        )
    return replace(sample, priors=render_priors(found))
