"""Mask overlays for Weights & Biases, online or offline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from medsam_tune.inference.stitching import AskedImage, asked_images, mask_chunks, true_masks
from medsam_tune.training.module import tuned
from medsam_tune.types import SegmentationBatch

CLASS_LABELS = {0: "background", 1: "object"}


class WandbOverlays(Callback):
    """Log the first validation images with ground truth and prediction after each validation.

    Args:
        n_images: Images a validation.
    """

    def __init__(self, n_images: int = 4) -> None:
        self.n_images = n_images
        self._images: list[Any] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._images = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: SegmentationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        wanted = self.n_images - len(self._images) if "prediction" in outputs else 0
        if not trainer.is_global_zero or trainer.sanity_checking or _wandb(trainer) is None or wanted <= 0:
            return
        for image in asked_images(batch)[:wanted]:
            chunks = mask_chunks(outputs["prediction"], batch, image, tuned(pl_module).side_px)
            self._images.append(_overlay(batch, image, _union(chunks)))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logger = _wandb(trainer)
        if logger is not None and self._images:
            logger.experiment.log({"val/overlays": self._images, "trainer/global_step": trainer.global_step})
        self._images = []


def _wandb(trainer: pl.Trainer) -> WandbLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)


def _union(chunks: Iterable[Tensor]) -> Tensor:
    """Join chunks of masks (c, H, W) into one (H, W)."""
    return torch.stack([masks.any(dim=0) for masks in chunks]).any(dim=0)


def _overlay(batch: SegmentationBatch, image: AskedImage, predicted: Tensor) -> Any:  # noqa: ANN401 - wandb is not typed
    import wandb

    truth = true_masks(batch, image).union()
    return wandb.Image(
        _picture(batch, image).byte().permute(1, 2, 0).cpu().numpy(),
        masks={
            "ground_truth": {"mask_data": truth.byte().cpu().numpy(), "class_labels": CLASS_LABELS},
            "prediction": {"mask_data": predicted.byte().cpu().numpy(), "class_labels": CLASS_LABELS},
        },
        caption=image.image_id,
    )


def _picture(batch: SegmentationBatch, image: AskedImage) -> Tensor:
    """Return the image (3, H, W) in 0..255 at its own size, as the network saw it."""
    picture = batch.images.new_zeros((3, *image.size), dtype=torch.float32)
    for row in image.rows:
        frame = batch.frames[row]
        area = batch.tiles[row].area if batch.tiles else (slice(None), slice(None))
        seen = batch.images[row, :, : frame.input_size[0], : frame.input_size[1]]
        picture[:, *area] = _to_size(seen, frame.original_size)
    return picture


def _to_size(image: Tensor, size: tuple[int, int]) -> Tensor:
    import torch.nn.functional as F

    return F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0].clamp(0, 255)
