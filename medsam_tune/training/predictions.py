"""The files that ``medsam-tune predict`` leaves: one mask per image, or one volume per case."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.predict import predict_masks
from medsam_tune.files import write_json
from medsam_tune.inference.label_values import class_values, meaning_of
from medsam_tune.inference.stitching import asked_images
from medsam_tune.inference.writers import MaskWriter, mask_writer
from medsam_tune.training.console import say
from medsam_tune.training.module import tuned
from medsam_tune.types import SegmentationBatch

if TYPE_CHECKING:
    from medsam_tune.data.datamodule import SegmentationDataModule
    from medsam_tune.segmenters.base import Segmenter


LEGEND = "labels.json"
"""Stands beside predicted classes."""


def check_needs_no_user(segmenter: Segmenter) -> None:
    """Refuse a network that must be asked, before any image is opened: a recipe's data bring no prompts.

    Raises:
        RecipeError: Naming the command that takes them.
    """
    if segmenter.asks_user() is not None:
        raise RecipeError(
            f"model.prompts: {segmenter.asks_user()} draws its prompt from true masks, which new images do not have. "
            "Give boxes or points: medsam-tune predict RUN INPUT -o OUT --boxes FILE (or --points FILE)."
        )


def check_one_process(trainer: pl.Trainer) -> None:
    """Refuse several processes, none of which would have whole volumes to write.

    Raises:
        RecipeError: Naming the key.
    """
    if trainer.world_size > 1:
        raise RecipeError("trainer.devices: predict writes whole volumes from one process. Set trainer.devices: 1.")


class PredictionFiles(Callback):
    """Write every predicted mask; the objects of an image are joined, its classes have the values of the source's own masks.

    Beside classes ``labels.json`` says which value is which. They are numbered 1, 2, ... where their values are not their own.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: MaskWriter | None = None
        self._has_classes = False
        self._values: dict[str, int] = {}

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        segmenter = tuned(pl_module).segmenter
        data: SegmentationDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self._writer = mask_writer(data.source, self.folder)
        self._values = class_values(segmenter.classes(), _groups(data))

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: SegmentationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._writer is None:
            return
        self._has_classes = outputs.class_logits is not None
        for image, masks in zip(asked_images(batch), predict_masks(outputs, batch, tuned(pl_module).side_px), strict=True):
            mask = (_valued(masks, self._values.values()) if self._has_classes else _union(masks)).cpu().numpy()
            self._writer.add(image.image_id, image.case_id, mask, spacing_mm=image.spacing_mm)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._writer is not None:
            say(f"{len(self._writer.finish())} files in {self.folder}")
        if self._has_classes:
            data: SegmentationDataModule = trainer.datamodule  # type: ignore[attr-defined]
            groups = _groups(data)
            legend = {str(value): meaning_of(name, groups).as_json() for name, value in self._values.items()}
            write_json(self.folder / LEGEND, legend)


def _groups(data: SegmentationDataModule) -> dict[str, list[int]]:
    """Return the values that the source's masks have for each class."""
    groups = data.source.label_values()
    return {name: groups.get(label, [label]) for label, name in data.label_names.items()}


def _union(masks: Tensor) -> Tensor:
    return masks.any(dim=0)


def _valued(masks: Tensor, values: Iterable[int]) -> Tensor:
    """Return (H, W) int32 of disjoint class masks (K, H, W): 0 is background."""
    numbers = torch.tensor(list(values), device=masks.device, dtype=torch.int32)
    return (masks * numbers[:, None, None]).sum(dim=0, dtype=torch.int32)
