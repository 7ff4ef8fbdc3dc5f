"""The datasets of an opened source: one for each part of a split, and one of everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medsam_tune.data.base import SegmentationSource
from medsam_tune.data.checks import items_with_objects
from medsam_tune.data.chunks import make_chunks, numbered_places
from medsam_tune.data.dataset import DatasetSettings, SegmentationDataset, Views
from medsam_tune.data.inverted import warn_of_inverted
from medsam_tune.data.splits import PARTS, Splits
from medsam_tune.data.targets import Target
from medsam_tune.data.tiles import TiledSource
from medsam_tune.data.transforms import Augmentation
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import InputRule


@dataclass(frozen=True)
class DatasetMaker:
    """Make datasets of one opened source.

    Attributes:
        images: The source's images, or their tiles.
        input_rule: What the weights expect.
        target: What one object is.
        case_names: The sorted case ids.
        patients: The patient of each case.
        classes: Every label of the source by number, where the target is ``per_class``.
        label_names: Names of the labels, as far as somebody stated any.
        augmentation: Random changes of training images.
        views: Fixed augmented views of each training image; 1 makes a fresh one each epoch.
        views_refresh: Part of these views that is drawn anew in an epoch.
        max_objects: Objects drawn from each training image.
        chunk: Neighbouring slices that travel together.
        window_stride: Slices from one window of ``chunk`` slices to the next in evaluation.
        at_once: Tiles that the network sees at once in evaluation; 0 takes all.
        seed: Of every draw.
    """

    images: SegmentationSource
    input_rule: InputRule
    target: Target
    case_names: tuple[str, ...]
    patients: Mapping[str, str]
    classes: Mapping[int, str]
    label_names: Mapping[int, str]
    augmentation: Augmentation | None
    views: int
    views_refresh: float
    max_objects: int | None
    chunk: int
    window_stride: int
    at_once: int
    seed: int

    def of_everything(self) -> SegmentationDataset:
        """Return the dataset of every item that is predicted."""
        return self._make(self.images.select(list(range(len(self.images))), "predict"), training=False)

    def of_parts(self, splits: Splits, *, require_masks: bool, root: str) -> dict[str, SegmentationDataset]:
        """Return the dataset of each part; with masks, training images without an object are left out.

        Args:
            splits: The cases of each part.
            require_masks: Whether masks are there.
            root: The data folder, for messages.

        Raises:
            DataError: If no training image shows an object.
        """
        cases = self.images.case_ids()
        indices = {part: [i for i, case in enumerate(cases) if case in set(getattr(splits, part))] for part in PARTS}
        training = self.images.select(indices["train"], "train")
        # Another cohort than the run's has no part to train on.
        if require_masks and splits.train:
            training = items_with_objects(self.images, training, self.target, root)
            warn_of_inverted(self.images, training)
        datasets = {"train": self._make(training, training=True)}
        for part in ("val", "test"):
            datasets[part] = self._make(self.images.select(indices[part], "evaluate"), training=False)
        return datasets

    def chunks(self, indices: Sequence[int], length: int | None = None) -> list[tuple[int, ...]]:
        """Return the positions in ``indices`` that travel together: neighbouring slices; tiles travel alone.

        Args:
            indices: Items of the source.
            length: How many at most; those of a chunk by default.
        """
        tiled = isinstance(self.images, TiledSource)
        places = [(str(index), 0) for index in range(len(self.images))] if tiled else self.images.places()
        return make_chunks([places[index] for index in indices], length or self.chunk)

    def counts(self, cases: Sequence[str], dataset: SegmentationDataset) -> dict[str, int]:
        """Return how many patients, cases, images and tiles a part holds."""
        counts = {"patients": len({self.patients[case] for case in cases}), "cases": len(cases), "images": len(dataset)}
        if isinstance(self.images, TiledSource):
            counts |= {"images": len(self.images.images(dataset.indices)), "tiles": len(dataset)}
        return counts

    def _make(self, indices: list[int], *, training: bool) -> SegmentationDataset:
        settings = DatasetSettings(
            self.input_rule,
            self.target,
            {name: i for i, name in enumerate(self.case_names)},
            classes=tuple(self.classes),
            patients=self.patients,
            places=numbered_places(self.images.places()),
            label_names=self.label_names,
            at_once=self.at_once,
            chunk_length=self.chunk,
            window_stride=self.window_stride if self.chunk > 1 and not training else 0,
        )
        if training:
            # One view without a cache: a fresh draw each epoch.
            n_views = self.views if self.views > 1 else 0
            settings = replace(settings, training=True, n_views=n_views, max_objects=self.max_objects)
            settings = replace(settings, views_refresh=self.views_refresh if n_views else 0.0)
        views = Views(self.images, self.augmentation if training else None, self.seed)
        if training and self.chunk > 1:
            names = self.images.image_ids()
            first = {indices[place]: names[indices[chunk[0]]] for chunk in self.chunks(indices) for place in chunk}
            views = replace(views, moving_with=first)
        return SegmentationDataset(views, indices, settings)


def named_classes(source: SegmentationSource, target: Target) -> dict[int, str]:
    """Return every label of a source by number where each image has a row for each; no mask is read for it.

    Raises:
        RecipeError: If the target wants every label and the recipe names none.
    """
    classes = source.named_labels() if target == "per_class" else {}
    if target == "per_class" and not classes:
        raise RecipeError(
            "data.source.labels: target per_class needs every label by name, because test masks must not decide which "
            "classes there are. Name them there: {a: [1], b: [2]}."
        )
    return classes
