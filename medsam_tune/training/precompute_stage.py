"""Compute once what frozen networks say about each image, before the first step, and hand the lookups to the data.

Priors come first: the masks that are fused into an image are part of what its encoder would see.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from medsam_tune.data.datamodule import Stage
from medsam_tune.data.shared_memory import check_workers
from medsam_tune.errors import RecipeError
from medsam_tune.inference.automatic import AutomaticMaskGenerator
from medsam_tune.inference.prior_network import build_prior_network, prior_origin
from medsam_tune.precompute import EmbeddingPrecompute, Filled, PriorCounts, PriorPrecompute, Store, count_masks, open_store
from medsam_tune.precompute.base import Item, Precompute
from medsam_tune.precompute.fill import fill, lookup
from medsam_tune.training.console import labelled, say, span
from medsam_tune.training.module import tuned

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.geometry import Frame
    from medsam_tune.precompute.priors import Generate
    from medsam_tune.segmenters.base import Segmenter
    from medsam_tune.training.callbacks import StageClock

STAGES: dict[str, tuple[Stage, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
# On a GPU a batch of 8 ViT-B images at 1024 px fits 24 GB; on CPU batching does not help.
GPU_BATCH_SIZE = 8

Image = TypeVar("Image")
Value = TypeVar("Value")


class PrecomputeStage(Callback):
    """Fill the stores that a recipe asks for before a stage starts; ranks share the work.

    Args:
        clock: Measures the stages ``priors`` and ``cache``.
    """

    def __init__(self, clock: StageClock) -> None:
        self.clock = clock
        self._checked = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data: SegmentationDataModule = trainer.datamodule  # type: ignore[attr-defined]
        device, stages = trainer.strategy.root_device, STAGES[stage]
        # Hours of encoding would come before the first worker otherwise.
        # A later stage of the same run reads the same images in batches of the same size, and its stores are not filled yet.
        for name in () if self._checked else stages:
            check_workers(data, name, processes=trainer.num_devices)
        self._checked = True
        if data.priors is not None:
            self.clock.start("priors")
            priors = prior_precompute(data, device=device)
            store, filled = self._fill(trainer, data, priors, prior_items(data, stages))
            data.use_priors(lookup(store, priors, filled.keys))
            if trainer.is_global_zero:
                say(labelled("Priors", str(count_masks(store, filled.keys.values()))))
            self.clock.stop("priors")
        if data.cache_embeddings:
            segmenter = tuned(pl_module).segmenter
            check_cacheable(segmenter, data)
            self.clock.start("cache")
            embeddings = embedding_precompute(segmenter, data, device=device)
            store, filled = self._fill(trainer, data, embeddings, data.cache_items(stages))
            data.use_embeddings(lookup(store, embeddings, filled.keys))
            if trainer.is_global_zero:
                by = "" if trainer.world_size == 1 else f", by process 0 of {trainer.world_size}"
                made = f"{filled.made} of them now{by} ({span(filled.seconds)})"
                say(labelled("Embeddings", f"{len(filled.keys)} cached, {made}"))
            self.clock.stop("cache")

    @staticmethod
    def _fill(
        trainer: pl.Trainer, data: SegmentationDataModule, precompute: Precompute[Image, Value], items: Sequence[Item]
    ) -> tuple[Store, Filled]:
        store = open_store(precompute, _root(data))
        filled = fill(store, precompute, items, rank=trainer.global_rank, world=trainer.world_size)
        trainer.strategy.barrier(precompute.kind)
        store.refresh()
        return store, filled


def check_cacheable(segmenter: Segmenter, data: SegmentationDataModule) -> None:
    """Refuse a cache under an encoder, or an encoder input, that changes.

    Raises:
        RecipeError: Naming the key that makes the embedding dynamic.
    """
    reason = segmenter.not_precomputable() if data.cache_embeddings else None
    if reason is not None:
        raise RecipeError(f"data.cache_embeddings: true cannot be combined with {reason}. Set data.cache_embeddings: false.")


def fill_embeddings(segmenter: Segmenter, data: SegmentationDataModule, *, stages: Sequence[Stage]) -> Filled:
    """Fill the embedding store outside of a trainer.

    Raises:
        RecipeError: If the recipe's embedding is dynamic, or the recipe asks for no cache.
    """
    if not data.cache_embeddings:
        raise RecipeError("data.cache_embeddings: is false in this recipe, so there is nothing to build. Set it to true.")
    check_cacheable(segmenter, data)
    precompute = embedding_precompute(segmenter, data, device=_device())
    return fill(open_store(precompute, _root(data)), precompute, data.cache_items(stages))


def fill_priors(data: SegmentationDataModule, *, stages: Sequence[Stage]) -> tuple[Filled, PriorCounts, Path]:
    """Fill the prior store outside of a trainer; return what was done, what is there now, and where.

    Raises:
        RecipeError: If the recipe asks for no priors.
    """
    precompute = prior_precompute(data, device=_device())
    store = open_store(precompute, _root(data))
    filled = fill(store, precompute, prior_items(data, stages))
    return filled, count_masks(store, filled.keys.values()), store.folder


def embedding_precompute(segmenter: Segmenter, data: SegmentationDataModule, *, device: torch.device) -> EmbeddingPrecompute:
    """Say how the data's views are encoded by the frozen encoder, which moves to ``device``.

    Raises:
        RecipeError: If the segmenter has no base weights.
    """
    weights = segmenter.base_weights()
    if weights is None:
        raise RecipeError("data.cache_embeddings: this segmenter has no base weights to key a cache by. Set it to false.")
    segmenter.to(device).eval()

    def encode(images: Tensor, frames: Sequence[Frame]) -> Tensor:
        return segmenter.encode(images.to(device), frames)

    return EmbeddingPrecompute(
        weights_name=weights.name,
        weights_sha256=weights.sha256,
        rule=segmenter.input_rule,
        load=lambda item: data.input_image(*item),
        encode=encode,
        batch_size=GPU_BATCH_SIZE if device.type == "cuda" else 1,
        engine=segmenter.encoder_engine() if device.type == "cpu" else None,
    )


def prior_precompute(data: SegmentationDataModule, *, device: torch.device) -> PriorPrecompute:
    """Say how the masks of the data's images are found; the network is built only where some are missing.

    Raises:
        RecipeError: If the recipe asks for no priors, or their weights are unknown.
    """
    settings = data.priors
    if settings is None:
        raise RecipeError("data.priors: is null in this recipe, so there is nothing to make. Set data.priors.weights, say.")

    def build() -> Generate:
        return AutomaticMaskGenerator(build_prior_network(settings).to(device), settings).generate

    return PriorPrecompute(prior_origin(settings), lambda item: data.images[item[0]].image, build)


def prior_items(data: SegmentationDataModule, stages: Sequence[Stage]) -> list[Item]:
    """Return the source indices of the stages' images, each once."""
    return [(index,) for index in sorted({index for stage in stages for index in data.dataset(stage).indices})]


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _root(data: SegmentationDataModule) -> Path | None:
    return None if data.cache_folder is None else Path(data.cache_folder)
