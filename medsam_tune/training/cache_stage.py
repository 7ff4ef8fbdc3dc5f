"""Fill the embedding cache before the first step, and hand its lookup to the data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from medsam_tune.cache.location import open_store
from medsam_tune.data.datamodule import Stage
from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame
from medsam_tune.inference.embed import fill_store, lookup
from medsam_tune.training.module import tuned

if TYPE_CHECKING:
    from medsam_tune.cache.store import EmbeddingStore
    from medsam_tune.data.datamodule import SegmentationDataModule
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


class CacheEmbeddings(Callback):
    """Run the frozen encoder once per image before a stage starts; ranks share the work.

    Args:
        clock: Measures the stage ``cache``.
    """

    def __init__(self, clock: StageClock) -> None:
        self.clock = clock

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data: SegmentationDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if not data.cache_embeddings:
            return
        segmenter = tuned(pl_module).segmenter
        check_cacheable(segmenter, data)
        self.clock.start("cache")
        rank, world = trainer.global_rank, trainer.world_size
        store, keys = _fill(segmenter, data, STAGES[stage], device=trainer.strategy.root_device, rank=rank, world=world)
        trainer.strategy.barrier("embedding cache")
        data.use_embeddings(lookup(store, keys))
        self.clock.stop("cache")


def check_cacheable(segmenter: Segmenter, data: SegmentationDataModule) -> None:
    """Refuse a cache under an encoder, or an encoder input, that changes.

    Raises:
        RecipeError: Naming the key that makes the embedding dynamic.
    """
    reason = segmenter.not_cacheable() if data.cache_embeddings else None
    if reason is not None:
        raise RecipeError(f"data.cache_embeddings: true cannot be combined with {reason}. Set data.cache_embeddings: false.")


def fill_cache(segmenter: Segmenter, data: SegmentationDataModule, *, stages: Sequence[Stage]) -> tuple[int, float]:
    """Fill the cache outside of a trainer; return the number of images it holds for the recipe and the seconds spent.

    Raises:
        RecipeError: If the recipe's embedding is dynamic, or the recipe asks for no cache.
    """
    if not data.cache_embeddings:
        raise RecipeError("data.cache_embeddings: is false in this recipe, so there is nothing to build. Set it to true.")
    check_cacheable(segmenter, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    start = time.monotonic()
    _, keys = _fill(segmenter, data, stages, device=device, rank=0, world=1)
    return len(keys), time.monotonic() - start


def _fill(
    segmenter: Segmenter, data: SegmentationDataModule, stages: Sequence[Stage], *, device: torch.device, rank: int, world: int
) -> tuple[EmbeddingStore, dict[tuple[int, int], str]]:
    weights = segmenter.base_weights()
    if weights is None:
        raise RecipeError("data.cache_embeddings: this segmenter has no base weights to key a cache by. Set it to false.")
    root = None if data.cache_folder is None else Path(data.cache_folder)
    store = open_store(weights_name=weights.name, weights_sha256=weights.sha256, rule=segmenter.input_rule, root=root)
    segmenter.to(device).eval()

    def encode(images: Tensor, frames: Sequence[Frame]) -> Tensor:
        return segmenter.encode(images.to(device), frames)

    filled = fill_store(
        store,
        data.cache_items(stages),
        lambda item: data.input_image(*item),
        encode,
        rank=rank,
        world=world,
        batch_size=GPU_BATCH_SIZE if device.type == "cuda" else 1,
    )
    return store, dict(filled.keys)
