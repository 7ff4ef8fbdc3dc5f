"""The data as training sees it: one source, split by case, as loaders of batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from medsam_tune.data.base import SegmentationSource, VoxelSize
from medsam_tune.data.checks import open_checked
from medsam_tune.data.chunks import ChunkDataset, check_chunk, collate_chunks, slices_at_most
from medsam_tune.data.dataset import (
    EmbeddingLookup,
    PreparedItem,
    PriorLookup,
    SegmentationDataset,
)
from medsam_tune.data.loader import ResumableLoader
from medsam_tune.data.neighbours import Channels, NeighbourSource
from medsam_tune.data.parts import DatasetMaker, named_classes
from medsam_tune.data.patients import patient_rule, patients_of, stated_rule
from medsam_tune.data.sample import data_folder
from medsam_tune.data.sampler import EpochSampler
from medsam_tune.data.setting_checks import check_counts, check_refresh, check_stride, check_tiles, check_views
from medsam_tune.data.shared_memory import WORKER_TIMEOUT_SECONDS
from medsam_tune.data.split_choice import choose_splits
from medsam_tune.data.splits import PARTS, Splits, SplitSettings
from medsam_tune.data.targets import Target, apply_target
from medsam_tune.data.tiles import TiledSource, Tiles
from medsam_tune.data.transforms import Augmentation
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame, InputRule, image_to_input
from medsam_tune.precompute.prior_settings import PriorSettings
from medsam_tune.samples import Sample
from medsam_tune.types import SegmentationBatch

Stage = Literal["train", "val", "test", "predict"]
DEFAULT_SPLIT = SplitSettings()


class SegmentationDataModule(LightningDataModule):
    """Open a source, split its cases, and serve batches in the input frame of the weights.

    Args:
        source: Where images and masks come from.
        root: The data folder, or ``sample:<name>`` for a bundled data set.
        target: What one object is: all labels together, each label, each label of the list, or each instance.
        batch_size: Images a training batch, on each process.
        global_batch: Images an optimizer step, over all processes: batches are accumulated until they are as many, so that
            another number of processes makes the same step. By default ``trainer.accumulate_grad_batches`` says it.
        eval_batch_size: Images a batch in evaluation; as in training by default.
        num_workers: Processes that read; 0 reads in the training process.
        split: How cases are split.
        augmentation: Random changes of training images; none by default.
        views: Fixed augmented views of each training image, view 0 unaugmented; 1 without a cache means a new view each epoch.
        views_refresh: Part of the images whose view is drawn anew in each epoch, once it was shown; a cache holds all of them
            before the training. 0 keeps every view for the whole training.
        cache_embeddings: Encode each view once, where the encoder is frozen; where only late blocks are tuned, ``prefix`` keeps
            what reaches the first of them, for training and validation.
        cache_folder: Where cached embeddings live; the user's cache folder by default.
        max_objects: Objects drawn from each training image; all by default.
        priors: Which automatic masks become prior maps (SAMAug); none by default.
        seed: Seed of order, augmentation and object choice.
        patient: Which patient a case belongs to: a pattern whose first group is the patient, a ``.csv`` file, or ``header``.
            Every case is a patient of its own by default.
        ignore_label: The mask value of pixels that nobody annotated; loss and metrics leave them out.
        chunk: Neighbouring slices of a volume that travel together and are augmented as one; batch sizes count chunks. In
            evaluation a batch is a volume, answered in windows of as many slices.
        chunk_stride: Slices from one window of ``chunk`` slices to the next in evaluation; where windows overlap, the
            probabilities of a slice are averaged. For networks that mix slices; others see each slice once.
        channels: What the three channels of a slice show: what is ``stored``, or the slices below and above as red and blue
            (``neighbours``), for any method.
        colours: Name to [red, green, blue] of masks drawn in colours; ``background`` and ``ignored`` are no labels.
        tiles: How large images are cut; training batches count tiles, and evaluation takes all tiles of an image together,
            ``eval_batch_size`` of them at a time through the network. Images stay whole by default.
        read_first: Read every case once before the first step, so that a faulty file stops nothing later. False opens headers
            only: for data that were read a moment ago.
        inverted_masks: Whether what is 0 in a mask is the object.
    """

    def __init__(
        self,
        source: SegmentationSource,
        root: str,
        target: Target = "binary",
        batch_size: int = 4,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        split: SplitSettings = DEFAULT_SPLIT,
        augmentation: Augmentation | None = None,
        views: int = 1,
        cache_embeddings: bool | Literal["prefix"] = True,
        cache_folder: str | None = None,
        max_objects: int | None = None,
        priors: PriorSettings | None = None,
        seed: int = 0,
        patient: str | None = None,
        ignore_label: int | None = None,
        chunk: int = 1,
        colours: dict[str, list[int]] | None = None,
        tiles: Tiles | Literal["auto"] | None = None,
        read_first: bool = True,
        inverted_masks: bool = False,
        chunk_stride: int = 1,
        channels: Channels = "stored",
        global_batch: int | None = None,
        views_refresh: float = 0.0,
    ) -> None:
        super().__init__()
        check_views(views, augmented=augmentation is not None, cached=cache_embeddings is not False)
        check_refresh(views_refresh, views)
        check_counts(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            max_objects=max_objects,
            chunk=chunk,
            global_batch=global_batch,
        )
        check_stride(chunk_stride, chunk)
        if target == "per_class" and max_objects is not None:
            raise RecipeError("data.max_objects: target per_class has one row for each class. Leave max_objects out.")
        self.source, self.root, self.target = source, root, target
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size or batch_size, num_workers
        self.split, self.augmentation, self.views, self.seed = split, augmentation, views, seed
        self.cache_embeddings, self.cache_prefix = cache_embeddings is True, cache_embeddings == "prefix"
        self.cache_folder, self.max_objects = cache_folder, max_objects
        self.priors, self.patient, self.chunk, self.read_first = priors, patient, chunk, read_first
        self.chunk_stride, self.channels, self.global_batch = chunk_stride, channels, global_batch
        check_tiles(tiles is not None, chunk)
        self.tiles = Tiles() if tiles == "auto" else tiles
        source.ignore_label, source.target = ignore_label, target
        if colours is not None:
            source.use_colours(colours)
        if inverted_masks:
            source.invert_masks()
        self.views_refresh = views_refresh
        self.epochs: int | None = None  # of the training, once it is planned: which views are drawn anew
        self._images = source
        self.fixed_order = False  # of training images, for a check that a network can learn a few by heart
        self._opened_for: tuple[InputRule, bool, bool] | None = None
        self._splits: Splits | None = None
        self._patients: dict[str, str] = {}
        self._checksums: dict[str, str] = {}
        self._datasets: dict[str, SegmentationDataset] = {}
        self._maker: DatasetMaker
        self._case_names: tuple[str, ...] = ()
        self._classes: dict[int, str] = {}

    def open(
        self,
        input_rule: InputRule,
        *,
        run_folder: Path | None = None,
        require_masks: bool = True,
        split: bool | None = None,
        cohort: bool = False,
    ) -> None:
        """Scan and check the data, make or load the splits, build the datasets; a second call with the same rule does nothing.

        Every case of every part is read once before anything else happens; what was sound is remembered by size and date.

        The splits come from a splits.json that stands in the run folder already, else from ``data.split.file``, else they are
        drawn from the seed. They are written to the run folder.

        Args:
            input_rule: What the weights expect of an image.
            run_folder: Where splits.json is kept; None keeps it nowhere.
            require_masks: False opens images without masks too.
            split: Whether there are splits, and patients that must be known; by default where masks are required, since new
                images are only predicted.
            cohort: Whether data that share no case with the training and validation of the run are tested as a whole.

        Raises:
            DataError: If the data breaks the source's rules, with all cases that do, patients are too few, or no training image
                shows an object.
            RecipeError: If the split's settings contradict each other.
        """
        split = require_masks if split is None else split
        if self._opened_for in ((input_rule, require_masks, split), (input_rule, True, True)):
            return
        cache = None if self.cache_folder is None else Path(self.cache_folder)
        if self.read_first:
            self._checksums = open_checked(self.source, data_folder(self.root), require_masks=require_masks, cache=cache)
        else:
            self.source.open(data_folder(self.root), require_masks=require_masks)
        check_chunk(self.chunk, self.source.places())
        self._case_names = tuple(sorted(set(self.source.case_ids())))
        named = dict(zip(self.source.case_ids(), self.source.patient_ids(), strict=True))
        # New images are not split, so their patients need not be known.
        rule = patient_rule(named, self.patient) if split else None
        self._patients = patients_of(named, rule)
        self._classes = named_classes(self.source, self.target)
        shown = NeighbourSource(self.source) if self.channels == "neighbours" else self.source
        self._images = shown if self.tiles is None else TiledSource(shown, *self.tiles.in_pixels(input_rule.side))
        self._maker = self._make_maker(input_rule)
        self._datasets = {"predict": self._maker.of_everything()}
        if split:
            self._splits = choose_splits(
                self.split,
                self._case_names,
                patients=None if rule is None else self._patients,
                files=self._checksums,
                run_folder=run_folder,
                cohort=cohort,
            )
            self._datasets.update(self._maker.of_parts(self._splits, require_masks=require_masks, root=self.root))
        self._opened_for = (input_rule, require_masks, split)

    @property
    def splits(self) -> Splits:
        """Return the cases of each part.

        Raises:
            RuntimeError: If ``open`` has not run, or ran without masks.
        """
        if self._splits is None:
            raise RuntimeError("The data has no splits yet. Call open(input_rule) first, with masks.")
        return self._splits

    @property
    def images(self) -> SegmentationSource:
        """Return what an index of a dataset points into: the source's images, or their tiles."""
        return self._images

    @property
    def case_names(self) -> tuple[str, ...]:
        """Return the sorted case ids that ``case_index`` points into."""
        return self._case_names

    @property
    def patients(self) -> dict[str, str]:
        """Return the patient of each case, by ``data.patient``."""
        return dict(self._patients)

    @property
    def case_patients(self) -> tuple[str, ...]:
        """Return the patient of each of ``case_names``."""
        return tuple(self._patients.get(case, case) for case in self._case_names)

    @property
    def checksums(self) -> dict[str, str]:
        """Return the checksum of each case's files, as ``splits.json`` keeps them."""
        return dict(self._checksums)

    @property
    def label_names(self) -> dict[int, str]:
        """Return the name of each label that a batch may hold; a binary target has the one label ``object``."""
        if self.target == "per_class":
            return dict(self._classes)
        return {1: "object"} if self.target == "binary" else self.source.label_names()

    def voxel_sizes(self, stage: Stage) -> dict[int, VoxelSize]:
        """Return the size of a voxel by case index; a case is left out where an item states none, or another one."""
        sizes: dict[int, set[VoxelSize | None]] = {}
        numbers, cases = {name: number for number, name in enumerate(self._case_names)}, self._images.case_ids()
        for index in self.dataset(stage).indices:
            sizes.setdefault(numbers[cases[index]], set()).add(self._images.voxel_size(index))
        return {case: voxel for case, found in sizes.items() if len(found) == 1 and (voxel := found.pop()) is not None}

    def describe(self) -> dict[str, object]:
        """Return what a report says about the data, as JSON values."""
        parts = {part: self._maker.counts(getattr(self.splits, part), self._datasets[part]) for part in PARTS}
        return {
            **self._images.describe(),
            # A folder's name may name a patient, and a report travels.
            "root": self.root if self.root.startswith("sample:") else "a folder, see local.yaml of the run",
            "patients": "as cases" if self.patient is None else f"by data.patient: {stated_rule(self.patient)}",
            "target": self.target,
            "splits": {**parts, "how": dict(self.splits.how)},
            "augmentation": asdict(self.augmentation) if self.augmentation else None,
            "views": self.views,
            **({"views_refresh": self.views_refresh} if self.views_refresh else {}),
            "max_objects": self.max_objects,
            **({"chunk": self.chunk, "chunk_stride": self.chunk_stride} if self.chunk > 1 else {}),
            **({"slice_spacing_mm": spacing} if (spacing := self._slice_spacing()) else {}),
            "priors": asdict(self.priors) if self.priors else None,
            "seed": self.seed,
        }

    def dataset(self, stage: Stage) -> SegmentationDataset:
        """Return the dataset of a stage; ``predict`` holds every item of the source.

        Raises:
            RuntimeError: If ``open`` has not run, or ran without masks and another stage than ``predict`` is asked for.
        """
        if stage not in self._datasets:
            raise RuntimeError(f"The data is not open for {stage!r}. Call open(input_rule) first.")
        return self._datasets[stage]

    def chunks(self, stage: Stage) -> list[tuple[int, ...]]:
        """Return the positions in a stage's dataset that travel together, in reading order.

        Slices do so by ``data.chunk``, and are scored and predicted with all of their volume, or as much of it as memory takes;
        tiles train alone, and are scored and predicted with all of their image.
        """
        indices = self.dataset(stage).indices
        if isinstance(self._images, TiledSource) and stage != "train":
            return self._images.groups(indices)
        whole = self.chunk > 1 and stage != "train"
        rule = self.dataset(stage).settings.input_rule
        return self._maker.chunks(indices, slices_at_most(rule.side, self.chunk) if whole else self.chunk)

    def chunks_per_batch(self, stage: Stage) -> int:
        """Return how many chunks make a batch: of what is scored or predicted whole, an image's tiles or a volume, one."""
        if stage == "train":
            return self.batch_size
        return self.eval_batch_size if self.tiles is None and self.chunk == 1 else 1

    def positions(self, stage: Stage, image: int) -> tuple[int, ...]:
        """Return the positions in a stage's dataset that show an image of the source: itself, or its tiles."""
        indices = self.dataset(stage).indices
        if isinstance(self._images, TiledSource):
            return next(group for group in self._images.groups(indices) if self._images.images([indices[group[0]]]) == [image])
        return (indices.index(image),)

    def source_images(self, stage: Stage) -> list[int]:
        """Return the images of the source that a stage shows, whole or in tiles, in reading order."""
        indices = self.dataset(stage).indices
        return self._images.images(indices) if isinstance(self._images, TiledSource) else list(indices)

    def stored(self, image: int) -> Sample:
        """Return an image of the source as its file holds it, whole, one row an object."""
        return apply_target(self.source[image], self.target, classes=tuple(self._classes))

    def cache_items(self, stages: Sequence[Stage] = ("train", "val", "test")) -> list[tuple[int, int]]:
        """Return the (source index, view) pairs whose embeddings the cache must hold, each once, in reading order."""
        items = {
            (index, view)
            for stage in stages
            for index in self.dataset(stage).indices
            for view in self.dataset(stage).views_until(self.epochs, index)
        }
        return sorted(items)

    def check_refreshed(self) -> None:
        """Refuse views that are drawn anew in a training whose number of epochs nobody knows, if they are to be cached.

        Raises:
            RecipeError: Saying which keys tell it.
        """
        train = self.dataset("train")
        if (self.cache_embeddings or self.cache_prefix) and self.views_refresh:
            next(train.views_until(self.epochs, train.indices[0]))

    def input_image(self, index: int, view: int) -> tuple[Tensor, Frame]:
        """Return image (3, S, S) in 0..255 and frame of a source index and view: exactly what a batch holds."""
        dataset = self.dataset("predict")
        views = self._datasets.get("train", dataset).views if view else dataset.views
        return image_to_input(views.read(index, view).image, dataset.settings.input_rule)

    def use_embeddings(self, lookup: EmbeddingLookup | None) -> None:
        """Let every dataset add the cached embedding (C, g, g) of (source index, view) to its items; None stops it."""
        for dataset in self._datasets.values():
            dataset.embeddings = lookup

    def use_prefixes(self, lookup: EmbeddingLookup | None) -> None:
        """Let every dataset add the cached input of the encoder's first tuned block to its items; None stops it."""
        for dataset in self._datasets.values():
            dataset.prefixes = lookup

    def use_priors(self, lookup: PriorLookup | None) -> None:
        """Let every dataset draw prior maps from the automatic masks of a source index, view 0; None stops it."""
        for dataset in self._datasets.values():
            dataset.views = replace(dataset.views, priors=lookup)

    def setup(self, stage: str) -> None:
        """Open the data for the input rule of the model that the trainer holds, unless it is open already."""
        if self.trainer is None:
            raise RuntimeError("setup needs a trainer. Without one, call open(input_rule).")
        if self._opened_for is None:
            module = cast(Any, self.trainer.lightning_module)
            self.open(module.segmenter.input_rule, require_masks=stage != "predict")

    def on_before_batch_transfer(self, batch: SegmentationBatch, dataloader_idx: int) -> SegmentationBatch:
        """Let the network draw a training batch's prompts on the CPU: masks read one by one would make a GPU wait for each."""
        trainer = self.trainer
        return cast(Any, trainer.lightning_module).segmenter.drawn(batch) if trainer and trainer.training else batch

    def train_dataloader(self) -> DataLoader[tuple[PreparedItem, ...]]:
        """Return the shuffled training loader of this process; it can be resumed in the middle of an epoch."""
        return self._loader("train", shuffle=not self.fixed_order)

    def val_dataloader(self) -> DataLoader[tuple[PreparedItem, ...]]:
        """Return the validation loader of this process, in the source's order."""
        return self._loader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader[tuple[PreparedItem, ...]]:
        """Return the test loader of this process, in the source's order."""
        return self._loader("test", shuffle=False)

    def predict_dataloader(self) -> DataLoader[tuple[PreparedItem, ...]]:
        """Return the loader of every item of this process, in the source's order."""
        return self._loader("predict", shuffle=False)

    def _make_maker(self, input_rule: InputRule) -> DatasetMaker:
        return DatasetMaker(
            self._images,
            input_rule,
            self.target,
            self._case_names,
            patients=self._patients,
            classes=self._classes,
            label_names=self._stated_names(),
            augmentation=self.augmentation,
            views=self.views,
            views_refresh=self.views_refresh,
            max_objects=self.max_objects,
            chunk=self.chunk,
            window_stride=self.chunk_stride,
            at_once=0 if self.tiles is None else self.eval_batch_size,
            seed=self.seed,
        )

    def _slice_spacing(self) -> dict[str, float]:
        """Return the distances of slices, and how many times a pixel's side the largest is; nothing where none is stated."""
        first = {case: index for index, case in reversed(list(enumerate(self.source.case_ids())))}
        sizes = [size for index in first.values() if (size := self.source.voxel_size(index)) and size.slice_mm]
        if not sizes:
            return {}
        between = [size.slice_mm or 0.0 for size in sizes]
        ratios = [(size.slice_mm or 0.0) / min(size.row_mm, size.column_mm) for size in sizes]
        return {"least": round(min(between), 4), "most": round(max(between), 4), "most_in_pixels": round(max(ratios), 2)}

    def _stated_names(self) -> dict[int, str]:
        if self.target == "per_class":
            return dict(self._classes)
        return {1: "object"} if self.target == "binary" else self.source.named_labels()

    def _loader(self, stage: Stage, *, shuffle: bool) -> DataLoader[tuple[PreparedItem, ...]]:
        dataset = ChunkDataset(self.dataset(stage), self.chunks(stage))
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(len(dataset), seed=self.seed, shuffle=shuffle, rank=rank, world=world)
        # Evaluation starts over after an interruption, and Lightning builds its own loader from a plain one for prediction.
        kind = ResumableLoader if stage == "train" else DataLoader
        return kind(
            dataset,
            batch_size=self.chunks_per_batch(stage),
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate_chunks,
            persistent_workers=self.num_workers > 0,
            timeout=WORKER_TIMEOUT_SECONDS if self.num_workers else 0,
            pin_memory=torch.cuda.is_available(),
            # Of its own, so that reading data leaves the global random state alone.
            generator=torch.Generator().manual_seed(self.seed),
        )
