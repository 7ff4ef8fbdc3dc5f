"""Make the automatic masks that become prior maps before the first step, and hand their lookup to the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from medsam_tune.cache.prior_store import PriorStore, open_prior_store
from medsam_tune.data.datamodule import Stage
from medsam_tune.errors import RecipeError
from medsam_tune.inference.automatic import AutomaticMaskGenerator
from medsam_tune.inference.fill_priors import (
    FilledPriors,
    Generate,
    PriorCounts,
    PriorLookup,
    build_prior_network,
    count_masks,
    fill_priors,
    prior_origin,
)
from medsam_tune.training.cache_stage import STAGES
from medsam_tune.training.console import say

if TYPE_CHECKING:
    from medsam_tune.cache.prior_settings import PriorSettings
    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.training.callbacks import StageClock


class CachePriors(Callback):
    """Find each image's masks once before a stage starts, where ``data.priors`` asks for them; ranks share the work.

    Args:
        clock: Measures the stage ``priors``.
    """

    def __init__(self, clock: StageClock) -> None:
        self.clock = clock

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data: SegmentationDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if data.priors is None:
            return
        self.clock.start("priors")
        rank, world, device = trainer.global_rank, trainer.world_size, trainer.strategy.root_device
        store, filled = _fill(data, data.priors, STAGES[stage], device=device, rank=rank, world=world)
        trainer.strategy.barrier("priors")
        store.refresh()
        data.use_priors(PriorLookup(store, filled.keys))
        if trainer.is_global_zero:
            say(f"Priors: {count_masks(store, filled.keys.values())}")
        self.clock.stop("priors")


def make_priors(data: SegmentationDataModule, *, stages: Sequence[Stage]) -> tuple[FilledPriors, PriorCounts, Path]:
    """Fill the prior store outside of a trainer; return what was done, what is there now, and where.

    Raises:
        RecipeError: If the recipe asks for no priors.
    """
    if data.priors is None:
        raise RecipeError("data.priors: is null in this recipe, so there is nothing to make. Set data.priors.weights, say.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    store, filled = _fill(data, data.priors, stages, device=device, rank=0, world=1)
    return filled, count_masks(store, filled.keys.values()), store.folder


def _fill(
    data: SegmentationDataModule,
    settings: PriorSettings,
    stages: Sequence[Stage],
    *,
    device: torch.device,
    rank: int,
    world: int,
) -> tuple[PriorStore, FilledPriors]:
    store = open_prior_store(prior_origin(settings), None if data.cache_folder is None else Path(data.cache_folder))
    items = sorted({index for stage in stages for index in data.dataset(stage).indices})

    def load(index: int) -> Tensor:
        return data.source[index].image

    def build() -> Generate:
        return AutomaticMaskGenerator(build_prior_network(settings).to(device), settings).generate

    return store, fill_priors(store, items, load, build, rank=rank, world=world)
