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

from medsam_tune.backbone.base import WeightsIdentity
from medsam_tune.backbone.encoder_prefix import KEY
from medsam_tune.data.datamodule import Stage
from medsam_tune.data.shared_memory import check_workers
from medsam_tune.errors import RecipeError
from medsam_tune.inference.automatic import AutomaticMaskGenerator
from medsam_tune.inference.prior_network import build_prior_network, prior_origin
from medsam_tune.precompute import (
    EmbeddingPrecompute,
    Filled,
    PrefixPrecompute,
    PriorCounts,
    PriorPrecompute,
    Store,
    count_masks,
    open_store,
)
from medsam_tune.precompute.base import Item, Lookup, Precompute
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
        data.use_prefixes(None)
        if data.cache_embeddings:
            embeddings = embedding_precompute(_checked(pl_module, data), data, device=device)
            data.use_embeddings(self._cached(trainer, data, embeddings, stages, "Embeddings", "cached"))
        # Other stages see an image once.
        if data.cache_prefix and stage == "fit":
            prefixes = prefix_precompute(_checked(pl_module, data), data, device=device)
            done = f"cached before {prefixes.before}"
            data.use_prefixes(self._cached(trainer, data, prefixes, stages, "Prefixes", done))
            # How large they are is known now.
            for name in stages:
                check_workers(data, name, processes=trainer.num_devices)

    def _cached(
        self,
        trainer: pl.Trainer,
        data: SegmentationDataModule,
        precompute: EmbeddingPrecompute,
        stages: Sequence[Stage],
        label: str,
        done: str,
    ) -> Lookup[Tensor]:
        """Fill the store, say so under ``label``, and return what finds its entries."""
        self.clock.start("cache")
        store, filled = self._fill(trainer, data, precompute, data.cache_items(stages))
        if trainer.is_global_zero:
            by = "" if trainer.world_size == 1 else f", by process 0 of {trainer.world_size}"
            made = f"{filled.made} of them now{by} ({span(filled.seconds)})"
            say(labelled(label, f"{len(filled.keys)} {done}, {made}"))
        self.clock.stop("cache")
        return lookup(store, precompute, filled.keys)

    @staticmethod
    def _fill(
        trainer: pl.Trainer, data: SegmentationDataModule, precompute: Precompute[Image, Value], items: Sequence[Item]
    ) -> tuple[Store, Filled]:
        store = open_store(precompute, _root(data))
        filled = fill(store, precompute, items, rank=trainer.global_rank, world=trainer.world_size)
        trainer.strategy.barrier(precompute.kind)
        store.refresh()
        return store, filled


def _checked(pl_module: pl.LightningModule, data: SegmentationDataModule) -> Segmenter:
    segmenter = tuned(pl_module).segmenter
    check_cacheable(segmenter, data)
    return segmenter


def check_cacheable(segmenter: Segmenter, data: SegmentationDataModule) -> None:
    """Refuse a cache under an encoder, or an encoder input, that changes.

    Raises:
        RecipeError: Naming the key that makes the embedding dynamic.
    """
    if data.cache_prefix:
        segmenter.first_tuned()
    reason = segmenter.not_precomputable() if data.cache_embeddings else None
    if reason is not None:
        first = _tuned_late(segmenter)
        instead = "false" if first is None else f"prefix, which keeps what reaches {first}, or false"
        raise RecipeError(f"{KEY}: true cannot be combined with {reason}. Set {KEY}: {instead}.")


def fill_embeddings(segmenter: Segmenter, data: SegmentationDataModule, *, stages: Sequence[Stage]) -> Filled:
    """Fill the store of embeddings, or of prefixes for training and validation, outside of a trainer.

    Raises:
        RecipeError: If the recipe's embedding is dynamic, or the recipe asks for no cache.
    """
    if not (data.cache_embeddings or data.cache_prefix):
        raise RecipeError("data.cache_embeddings: is false in this recipe, so there is nothing to build. Set it to true.")
    check_cacheable(segmenter, data)
    make = prefix_precompute if data.cache_prefix else embedding_precompute
    precompute = make(segmenter, data, device=_device())
    wanted = STAGES["fit"] if data.cache_prefix else stages
    return fill(open_store(precompute, _root(data)), precompute, data.cache_items(wanted))


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
    weights = _keyed_by(segmenter)
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


def prefix_precompute(segmenter: Segmenter, data: SegmentationDataModule, *, device: torch.device) -> PrefixPrecompute:
    """Say how the data's views go through the encoder's fixed first blocks; the network moves to ``device``.

    Raises:
        RecipeError: If the segmenter has no base weights, or no such blocks.
    """
    weights = _keyed_by(segmenter)
    segmenter.to(device).eval()

    def encode(images: Tensor, frames: Sequence[Frame]) -> Tensor:
        return segmenter.encode_prefix(images.to(device), frames)

    return PrefixPrecompute(
        segmenter.first_tuned(),
        weights_name=weights.name,
        weights_sha256=weights.sha256,
        rule=segmenter.input_rule,
        load=lambda item: data.input_image(*item),
        encode=encode,
        batch_size=GPU_BATCH_SIZE if device.type == "cuda" else 1,
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


def _tuned_late(segmenter: Segmenter) -> str | None:
    """Return the encoder's first tuned block, or None where nothing before it is fixed."""
    try:
        return segmenter.first_tuned()
    except RecipeError:
        return None


def _keyed_by(segmenter: Segmenter) -> WeightsIdentity:
    weights = segmenter.base_weights()
    if weights is None:
        raise RecipeError("data.cache_embeddings: this segmenter has no base weights to key a cache by. Set it to false.")
    return weights


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _root(data: SegmentationDataModule) -> Path | None:
    return None if data.cache_folder is None else Path(data.cache_folder)
